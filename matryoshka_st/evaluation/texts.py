"""The texts that a task is scored on: every text column of the evaluated splits, whatever the task's type."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from matryoshka_st.evaluation.tasks import subsets_of

if TYPE_CHECKING:
    from mteb.abstasks.abstask import AbsTask

NOT_TEXTS = frozenset({"id", "_id", "label", "labels", "label_text"})
RETRIEVAL_PARTS = ("queries", "corpus")


def evaluation_texts(task: AbsTask) -> Iterator[str]:
    """All texts of the wanted subsets and splits: sentences, queries, documents and their titles, summaries.

    Columns of ids and labels are left out. Of other columns without text, such as a genre, every value comes too.

    Args:
        task: With its data loaded.
    """
    subsets = subsets_of(task)
    for subset in task.hf_subsets:
        for split in task.eval_splits:
            data = subsets[subset][split]
            parts = [data[part] for part in RETRIEVAL_PARTS] if isinstance(data, Mapping) else [data]
            for part in parts:
                for column in part.column_names:
                    if column not in NOT_TEXTS and column != getattr(task, "label_column_name", None):
                        yield from _strings(part[column][:])


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        yield from _strings(list(value.values()))
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item)
