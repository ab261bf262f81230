"""Pairs of texts as a file that training and rotation read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from matryoshka_st.files import write_whole


def write_pairs(path: Path, pairs: Sequence[tuple[str, str]]) -> None:
    """Write a Parquet file with the columns ``anchor`` and ``positive``, whole or not at all.

    Args:
        path: The file; its folder is made if missing.
        pairs: Anchor and positive of each row, at least one.
    """
    anchors, positives = zip(*pairs, strict=True)
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"anchor": anchors, "positive": positives}), sink)
    write_whole(path, sink.getvalue().to_pybytes())
