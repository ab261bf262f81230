"""Load and check pairs for contrastive training: ``anchor``, ``positive`` and any number of negatives.

Every row of the result is fit to train on: columns in the order sentence-transformers reads them, text in every cell.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain, count
from pathlib import Path
from typing import TYPE_CHECKING

from matryoshka_st.data.columns import name_columns
from matryoshka_st.data.lists import spread_lists
from matryoshka_st.data.preview import describe_columns
from matryoshka_st.data.rows import BadRows, keep_text_rows
from matryoshka_st.data.sources import read_source
from matryoshka_st.data.splits import normalize_text, require_batch, split_holdout
from matryoshka_st.errors import UserError

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

__all__ = [
    "BadRows",
    "describe_columns",
    "load_pairs",
    "load_training_sets",
    "normalize_text",
    "require_batch",
    "source_names",
    "split_holdout",
]


def load_pairs(
    source: str,
    *,
    split: str = "train",
    bad_rows: BadRows = "error",
    column_order: Sequence[str] | None = None,
) -> Dataset:
    """Load one set of pairs and check every row of it.

    Args:
        source: A hub dataset id (``owner/name`` or ``owner/name:config``), a local .parquet, .csv, .tsv, .jsonl or
            .json (one object per line) file, a local dataset folder, or ``docstrings`` for the built-in pairs.
            FlagEmbedding rows (``query``, ``pos`` and ``neg`` lists) become one row per positive.
        split: The split of a hub dataset, a folder or ``docstrings``; a single file has only one.
        bad_rows: What to do with rows that hold anything but text: ``error`` names them, ``drop`` leaves them out.
        column_order: The columns to use, in the order anchor, positive, negatives. Default: by their names, which must
            then stand in that order.

    Returns:
        A dataset with the columns ``anchor``, ``positive`` and, if there are negatives, ``negative`` (one) or
        ``negative_1`` to ``negative_n`` (several).

    Raises:
        UserError: If the source cannot be read, its columns are not understood, or rows are unusable.
    """
    if bad_rows not in ("error", "drop"):
        raise UserError(f"bad_rows is {bad_rows!r}; use 'error' or 'drop'.")
    rows = read_source(source, split)
    rows = spread_lists(name_columns(rows, column_order))
    return keep_text_rows(rows, bad_rows)


def load_training_sets(
    sources: Sequence[str],
    *,
    split: str = "train",
    bad_rows: BadRows = "error",
    column_order: Sequence[str] | None = None,
) -> Dataset | DatasetDict:
    """Load one or several sets of pairs, as sentence-transformers' trainer takes them.

    Args:
        sources: What :func:`load_pairs` takes, each.
        split: As in :func:`load_pairs`, for every source.
        bad_rows: As in :func:`load_pairs`.
        column_order: As in :func:`load_pairs`, for every source.

    Returns:
        One dataset for one source; for several, a ``DatasetDict`` keyed by file stem or last part of the hub id.

    Raises:
        UserError: If there is no source, or one of them cannot be used.
    """
    from datasets import DatasetDict

    if not sources:
        raise UserError("No training data was named; give at least one hub id, file or the word 'docstrings'.")
    loaded = [load_pairs(source, split=split, bad_rows=bad_rows, column_order=column_order) for source in sources]
    if len(loaded) == 1:
        return loaded[0]
    return DatasetDict(dict(zip(source_names(sources), loaded, strict=True)))


def source_names(sources: Sequence[str]) -> list[str]:
    """A short name of each source: file stem or last part of the hub id, numbered where it repeats."""
    names: list[str] = []
    for source in sources:
        path = Path(source).expanduser()
        stem = path.stem if path.is_file() else path.name.replace(":", "-")
        numbered = (f"{stem}-{number}" for number in count(2))
        names.append(next(name for name in chain([stem], numbered) if name not in names))
    return names
