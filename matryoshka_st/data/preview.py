"""What a training set looks like to sentence-transformers, for a dry run."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datasets import Dataset

SHOWN_ROWS = 2
SHOWN_CHARACTERS = 80
ROLES = {
    "anchor": "the text to find a match for",
    "positive": "its match; the other rows' positives are its negatives",
    "negative": "a text that does not match",
}


def describe_columns(dataset: Dataset) -> str:
    """Name the part each column plays and show its first rows, shortened.

    Args:
        dataset: A dataset of :func:`matryoshka_st.data.load_pairs`.
    """
    columns = ", ".join(dataset.column_names)
    lines = [f"{len(dataset):,} rows; columns in the order sentence-transformers reads them: {columns}"]
    for position, name in enumerate(dataset.column_names, start=1):
        lines.append(f"  {position}. {name} ({ROLES[name.split('_')[0]]})")
        texts = dataset[:SHOWN_ROWS][name]
        lines += [f"       row {number}: {_shortened(text)}" for number, text in enumerate(texts, start=1)]
    return "\n".join(lines)


def _shortened(text: str) -> str:
    return textwrap.shorten(text, SHOWN_CHARACTERS, placeholder=" ...")
