"""Held-out (query, document) pairs as an mteb retrieval task in memory: find each query's document among all."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

from datasets import Dataset

from matryoshka_st.errors import UserError
from matryoshka_st.evaluation.tasks import require_mteb

if TYPE_CHECKING:
    from mteb.abstasks import AbsTaskRetrieval

DEFAULT_DESCRIPTION = "Held-out pairs: the document of each query is to be found among the documents of all queries."


def pairs_retrieval_task(
    queries: Sequence[str], documents: Sequence[str], *, name: str, description: str = DEFAULT_DESCRIPTION
) -> AbsTaskRetrieval:
    """Build a retrieval task whose query ``i`` is answered by document ``i``.

    Equal documents become one, and equal queries become one with all their documents. The task's dataset revision is a
    hash of the texts, so results for other pairs under the same name are never reused.

    Args:
        queries: One per pair.
        documents: One per pair; together they are the corpus.
        name: The task's name, also the name of its result file.
        description: What the pairs are.

    Returns:
        A task with its data loaded, which no network is needed for. Its main score is nDCG@10.

    Raises:
        OptionalDependencyError: If mteb is not installed.
        UserError: If there are no pairs, the counts differ, or the name cannot be a file name.
    """
    require_mteb()
    from mteb.abstasks import AbsTaskRetrieval
    from mteb.abstasks.retrieval_dataset_loaders import RetrievalSplitData
    from mteb.abstasks.task_metadata import TaskMetadata

    _check(queries, documents, name)
    query_ids = {text: f"q{i}" for i, text in enumerate(dict.fromkeys(queries))}
    document_ids = {text: f"d{i}" for i, text in enumerate(dict.fromkeys(documents))}
    relevant: dict[str, dict[str, int]] = {query_id: {} for query_id in query_ids.values()}
    for query, document in zip(queries, documents, strict=True):
        relevant[query_ids[query]][document_ids[document]] = 1
    revision = hashlib.sha256(json.dumps([list(queries), list(documents)]).encode()).hexdigest()[:16]

    class PairsRetrieval(AbsTaskRetrieval):
        """The task; mteb reads ``metadata`` from the class."""

        metadata = TaskMetadata(
            name=name,
            description=description,
            dataset={"path": f"local/{name}", "revision": revision},
            type="Retrieval",
            category="t2t",
            modalities=["text"],
            eval_splits=["test"],
            eval_langs=["eng-Latn"],
            main_score="ndcg_at_10",
        )

    task = PairsRetrieval()
    task.dataset = {
        "default": {
            "test": RetrievalSplitData(
                queries=_texts(query_ids), corpus=_texts(document_ids), relevant_docs=relevant, top_ranked=None
            )
        }
    }
    task.data_loaded = True
    return task


def _texts(ids: dict[str, str]) -> Dataset:
    return Dataset.from_dict({"id": list(ids.values()), "text": list(ids)})


def _check(queries: Sequence[str], documents: Sequence[str], name: str) -> None:
    if not queries or len(queries) != len(documents):
        raise UserError(
            f"There are {len(queries)} queries and {len(documents)} documents; give as many of each, at least one."
        )
    if not name or set(name) & set("/\\:"):
        raise UserError(f"{name!r} cannot name a task; use letters, digits, '-', '_' or '.'.")
