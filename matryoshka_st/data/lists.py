"""FlagEmbedding rows: ``pos`` and ``neg`` hold lists of texts, which become plain rows."""

from __future__ import annotations

import logging
from typing import Any

import pyarrow as pa

from matryoshka_st.data.columns import negative_names
from matryoshka_st.data.rows import Rows

logger = logging.getLogger(__name__)


def spread_lists(rows: Rows) -> Rows:
    """Make one row per positive, each with the same number of negatives: the smallest number that a row has.

    Rows whose positives and negatives are plain text pass through. A row without positives, or without negatives where
    others have some, gets a missing value, which the check of the rows then finds.
    """
    if not _has_lists(rows):
        return rows
    records = [cells for batch in rows.batches() for cells in zip(*batch.values(), strict=True)]
    negatives = [[text for value in negative for text in _as_list(value)] for _, _, *negative in records]
    counts = sorted({len(texts) for texts in negatives if texts})
    kept = counts[0] if counts else 0
    if len(counts) > 1:
        logger.info("%s: rows have %d to %d negatives; the first %d are used.", rows.source, kept, counts[-1], kept)
    spread: list[list[Any]] = []
    numbers: list[int] = []
    for number, (anchor, positive, *_), texts in zip(rows.numbers, records, negatives, strict=True):
        for one in _as_list(positive) or [None]:
            spread.append([anchor, one, *(texts[:kept] or [None] * kept)])
            numbers.append(number)
    names = ["anchor", "positive", *negative_names(kept)]
    columns = {name: [cells[i] for cells in spread] for i, name in enumerate(names)}
    return Rows(rows.source, columns, numbers, rows.unit)


def _has_lists(rows: Rows) -> bool:
    if isinstance(rows.data, dict):
        return any(
            isinstance(value, list) for name, values in rows.data.items() if name != "anchor" for value in values
        )
    return any(pa.types.is_nested(field.type) for field in rows.data.features.arrow_schema)


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]
