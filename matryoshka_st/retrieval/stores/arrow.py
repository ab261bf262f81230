"""Ids and vectors as Arrow, which DuckDB and LanceDB take without a copy per value."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa

from matryoshka_st.retrieval.stores.base import Rows, vector_name, written


def arrow_schema(rows: Rows, dims: Sequence[int]) -> Any:
    """The columns ``id`` and one fixed-size list of float32 per dim."""
    kind = pa.int64() if rows.ids.dtype.kind == "i" else pa.string()
    return pa.schema([("id", kind), *((vector_name(dim), pa.list_(pa.float32(), dim)) for dim in dims)])


def arrow_batches(rows: Rows, dims: Sequence[int]) -> Iterator[Any]:
    """Record batches of that schema."""
    schema = arrow_schema(rows, dims)
    for ids, named in written(rows, dims):
        columns = [pa.FixedSizeListArray.from_arrays(pa.array(v.ravel()), v.shape[1]) for v in named.values()]
        yield pa.record_batch([pa.array(ids.tolist(), schema.field("id").type), *columns], schema=schema)


def fixed_sizes(schema: Any) -> dict[str, int]:
    """The length of the lists by column, for columns of fixed-size lists."""
    return {field.name: field.type.list_size for field in schema if pa.types.is_fixed_size_list(field.type)}
