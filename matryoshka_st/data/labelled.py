"""Load and check labelled texts: one column of texts, one of labels, whatever the labels are written as."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from matryoshka_st.data.rows import BadRows, Rows, keep_text_rows
from matryoshka_st.data.sources import read_source
from matryoshka_st.data.splits import normalize_text
from matryoshka_st.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from datasets import Dataset

TEXT_COLUMNS = ("text", "sentence", "utterance")
LABEL_COLUMNS = ("label_text", "label", "intent")


def load_labelled(
    source: str,
    *,
    split: str = "train",
    text_column: str | None = None,
    label_column: str | None = None,
    bad_rows: BadRows = "error",
) -> Dataset:
    """Load texts with one label each and check every row.

    Args:
        source: A hub id, a local .parquet, .csv, .tsv or .jsonl file, or a folder; see
            :func:`~matryoshka_st.data.load_pairs`.
        split: The split of a hub dataset or a folder.
        text_column: Default: the first there is of ``text``, ``sentence``, ``utterance``.
        label_column: Names of classes, or their numbers. Default: the first there is of ``label_text``, ``label``,
            ``intent``.
        bad_rows: What to do with rows without text or label: ``error`` names them, ``drop`` leaves them out.

    Returns:
        A dataset with the columns ``text`` and ``label``, both strings.

    Raises:
        UserError: If the source cannot be read, a column is missing, or rows are unusable.
    """
    if bad_rows not in ("error", "drop"):
        raise UserError(f"bad_rows is {bad_rows!r}; use 'error' or 'drop'.")
    rows = read_source(source, split)
    text = _column(rows, text_column, TEXT_COLUMNS, "text")
    label = _column(rows, label_column, LABEL_COLUMNS, "label")
    columns: dict[str, list[Any]] = {"text": [], "label": []}
    for batch in rows.batches():
        columns["text"] += batch[text]
        columns["label"] += map(_as_name, batch[label])
    return keep_text_rows(replace(rows, data=columns), bad_rows)


def class_names(labels: Sequence[str]) -> tuple[str, ...]:
    """The different labels in order: of their numbers if all are whole numbers, else of the alphabet.

    >>> class_names(["10", "2", "2"]), class_names(["b", "a", "2"])
    (('2', '10'), ('2', 'a', 'b'))
    """
    different = set(labels)
    if all(label.removeprefix("-").isdecimal() for label in different):
        return tuple(sorted(different, key=lambda label: (int(label), label)))
    return tuple(sorted(different))


def class_numbers(labels: Sequence[str], names: Sequence[str], source: str) -> list[int]:
    """The place of each label among the names.

    Raises:
        UserError: If a label is none of them.
    """
    number = {name: i for i, name in enumerate(names)}
    unknown = next((label for label in labels if label not in number), None)
    if unknown is not None:
        raise UserError(
            f"{source} has the label {unknown!r}, which the training data has not{did_you_mean(unknown, names)}; "
            "use the same labels in both."
        )
    return [number[label] for label in labels]


def split_labelled(dataset: Dataset, size: int, seed: int) -> tuple[Dataset, Dataset]:
    """Hold out ``size`` rows, or as many as can be: the same share of every class, as near as whole rows allow.

    One row or more is held out of every class of two rows or more, as far as ``size`` goes, the largest first, and one
    row or more of every class is left. No held-out text stays in training, whatever its case and white space.

    Args:
        dataset: Columns ``text`` and ``label``.
        size: Rows to hold out, from 1 to one less than there are.
        seed: The same seed holds out the same rows.

    Returns:
        The training rows and the held-out rows, each in their old order.

    Raises:
        UserError: If the size does not fit, or a class has no training row left.
    """
    rows = len(dataset)
    if not 1 <= size < rows:
        raise UserError(f"Cannot hold out {size} of {rows} rows; hold out 1 to {rows - 1}.")
    labels = np.array(dataset["label"][:])
    draw = np.random.default_rng(seed)
    order = draw.permutation(rows)
    classes = [order[labels[order] == label] for label in draw.permutation(np.unique(labels))]
    counts = _held_out_counts(np.array([len(of_class) for of_class in classes]), size)
    held_out = [int(i) for of_class, count in zip(classes, counts, strict=True) for i in of_class[:count]]
    texts = [normalize_text(text) for text in dataset["text"][:]]
    seen = {texts[i] for i in held_out}
    kept = [i for i, text in enumerate(texts) if text not in seen]
    lost = set(labels) - set(labels[kept])
    if lost or not held_out:
        which = f"every text of the class {str(min(lost))!r} would be" if lost else "no text would be"
        raise UserError(f"Of {rows} rows, {which} held out; give more rows, or other --eval_data.")
    return dataset.select(kept), dataset.select(sorted(held_out))


def _held_out_counts(sizes: NDArray[np.int64], size: int) -> NDArray[np.int64]:
    """How many rows of each class to hold out: one, then by largest remainder; of classes alike, the first ones."""
    counts = (sizes > 1).astype(np.int64)
    left = size - int(counts.sum())
    if left <= 0:
        counts[np.argsort(-sizes, kind="stable")[size:]] = 0
        return counts
    shares = np.maximum(size * sizes / sizes.sum() - 1, 0)
    shares *= left / max(float(shares.sum()), left)
    counts += shares.astype(np.int64)
    left = size - int(counts.sum())
    counts[np.argsort(-(shares % 1), kind="stable")[:left]] += 1
    return np.minimum(counts, sizes - 1)


def _column(rows: Rows, asked: str | None, known: Sequence[str], role: str) -> str:
    columns = rows.columns
    there = ", ".join(map(repr, columns))
    if asked is not None:
        if asked not in columns:
            raise UserError(f"{rows.source} has no column {asked!r}{did_you_mean(asked, columns)}; it has {there}.")
        return asked
    found = next((name for name in known if name in columns), None)
    if found is None:
        raise UserError(
            f"{rows.source} has the columns {there}, none of which is known to be the {role}; name it with "
            f"--{role}_column ({role}_column=...)."
        )
    return found


def _as_name(label: Any) -> Any:
    return str(label) if isinstance(label, int) and not isinstance(label, bool) else label
