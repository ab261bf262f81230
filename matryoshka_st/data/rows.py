"""Rows on their way to a dataset, and the check that each of them holds text."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from matryoshka_st.errors import UserError

if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.getLogger(__name__)

BadRows = Literal["error", "drop"]
SHOWN_NUMBERS = 5
BATCH_ROWS = 10_000


@dataclass(frozen=True)
class Rows:
    """Rows as they were read, unchecked.

    Args:
        source: What messages call them.
        data: A dataset, or lists of values by column where a column may mix types.
        numbers: The number by which a user finds each row.
        unit: What these numbers count: ``line`` of the file, or data ``row``, both from 1.
    """

    source: str
    data: Dataset | dict[str, list[Any]]
    numbers: Sequence[int]
    unit: Literal["line", "row"]

    @classmethod
    def of_dataset(cls, source: str, dataset: Dataset) -> Rows:
        """Wrap a dataset, its rows numbered from 1."""
        return cls(source, dataset, range(1, len(dataset) + 1), "row")

    @property
    def columns(self) -> list[str]:
        """The names of the columns, in order."""
        return list(self.data) if isinstance(self.data, dict) else list(self.data.column_names)

    def batches(self) -> Iterator[Mapping[str, list[Any]]]:
        """The values by column, some thousand rows at a time."""
        return iter([self.data]) if isinstance(self.data, dict) else self.data.iter(batch_size=BATCH_ROWS)

    def select_columns(self, names: Mapping[str, str]) -> Rows:
        """Keep the columns that are keys of ``names``, in that order, under their new names."""
        if isinstance(self.data, dict):
            return replace(self, data={new: self.data[old] for old, new in names.items()})
        selected = self.data.select_columns(list(names))
        # Two steps, so that a column may take the old name of another.
        selected = selected.rename_columns({old: f"{new} <- {old}" for old, new in names.items()})
        return replace(self, data=selected.rename_columns({f"{new} <- {old}": new for old, new in names.items()}))

    def take(self, indices: list[int]) -> Dataset:
        """The dataset of these rows."""
        from datasets import Dataset

        if isinstance(self.data, dict):
            return Dataset.from_dict({name: [values[i] for i in indices] for name, values in self.data.items()})
        return self.data if len(indices) == len(self.data) else self.data.select(indices)


def keep_text_rows(rows: Rows, bad_rows: BadRows) -> Dataset:
    """Check that every cell holds text, and make the dataset.

    Args:
        rows: Rows whose columns are the final ones.
        bad_rows: ``error`` to refuse rows without text, ``drop`` to leave them out and log how many.

    Raises:
        UserError: If a row holds an empty, missing, broken or non-text value and ``bad_rows`` is ``error``, or if all
            rows do.
    """
    faults: Counter[str] = Counter()
    bad: list[int] = []
    good: list[int] = []
    hashes: list[int] = []
    index = 0
    for batch in rows.batches():
        for cells in zip(*batch.values(), strict=True):
            fault = _row_fault(batch.keys(), cells)
            if fault is None:
                good.append(index)
                hashes.append(hash(cells))
            else:
                bad.append(index)
                faults[fault] += 1
            index += 1
    if bad:
        _report_bad(rows, bad, faults, index, bad_rows)
    repeated = len(hashes) - len(np.unique(np.array(hashes, dtype=np.int64)))
    if repeated:
        logger.info("%s: %d of %d rows repeat an earlier row.", rows.source, repeated, len(good))
    return rows.take(good)


def is_broken(text: str) -> bool:
    r"""Whether a text holds half a character (a lone surrogate), which JSON can write and no tokenizer takes.

    >>> is_broken("\ud83d"), is_broken("\U0001f600")
    (True, False)
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


def _row_fault(names: Sequence[str] | Any, cells: tuple[Any, ...]) -> str | None:
    for name, value in zip(names, cells, strict=True):
        if not isinstance(value, str):
            missing = value is None or value != value
            return f"missing {name}" if missing else f"{type(value).__name__} as {name}"
        if not value or value.isspace():
            return f"empty {name}"
        if is_broken(value):
            return f"half a character (a lone surrogate) in {name}"
    return None


def _report_bad(rows: Rows, bad: list[int], faults: Counter[str], total: int, bad_rows: BadRows) -> None:
    counts = ", ".join(f"{count} {fault}" for fault, count in faults.most_common())
    first = ", ".join(str(rows.numbers[index]) for index in bad[:SHOWN_NUMBERS])
    unit = f"{rows.unit}s" if len(bad) > 1 else rows.unit
    where = f"first at {unit} {first}" if len(bad) > SHOWN_NUMBERS else f"at {unit} {first}"
    found = f"{len(bad)} of {total} rows without text in every column ({counts}; {where})"
    if len(bad) == total:
        raise UserError(f"{rows.source} has only bad rows: {found}; give text in every column.")
    if bad_rows == "error":
        raise UserError(
            f"{rows.source} has {found}; fix them, or leave them out with --bad_rows drop (bad_rows='drop')."
        )
    logger.warning("%s: dropped %s.", rows.source, found)
