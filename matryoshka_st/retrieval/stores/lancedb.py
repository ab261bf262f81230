"""LanceDB: one table; the store shortlists by the column of the first dim and hands over the whole vectors.

LanceDB has no second stage over another column, so candidates are reranked in numpy. A vector index on the first
column (``table.create_index(vector_column_name="dim_64", metric="dot")``) is used once there is one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import ArrayLike

from matryoshka_st.errors import UserError
from matryoshka_st.retrieval.ids import GivenIds, Ids
from matryoshka_st.retrieval.rerank import Scores
from matryoshka_st.retrieval.settings import Settings
from matryoshka_st.retrieval.stores.arrow import arrow_batches, arrow_schema, fixed_sizes
from matryoshka_st.retrieval.stores.base import (
    DEFAULT_SHORTLISTS,
    Store,
    check_build,
    rank_rows,
    stored_dims,
    vector_name,
)
from matryoshka_st.retrieval.vectors import Vectors

if TYPE_CHECKING:
    from lancedb.db import DBConnection


class LanceDBStore(Store):
    """A table of LanceDB.

    Args:
        table: As ``database.open_table`` gives it.
        settings: Of the cascade.
        exact: Scan all first prefixes even if there is an index on them.
    """

    def __init__(self, table: Any, settings: Settings, *, exact: bool = False) -> None:
        super().__init__(settings)
        self.table = table
        self.exact = exact

    @classmethod
    def build(
        cls,
        database: DBConnection,
        table: str,
        vectors: ArrayLike,
        ids: GivenIds | None = None,
        *,
        dims: Sequence[int],
        shortlists: Sequence[int] = DEFAULT_SHORTLISTS,
        exact: bool = False,
    ) -> Self:
        """Make a table of vectors with the columns ``id`` and one for the first and for the last dim.

        Args:
            database: From ``lancedb.connect(folder)``.
            table: A name that is not taken.
            vectors: Shape ``[n, width]``, n of 1 or more.
            ids: One per vector, all different, whole numbers or texts; default: 0 to n - 1.
            dims: Ascending, the last one the width.
            shortlists: How many candidates each dim but the last keeps.
            exact: As above.

        Raises:
            UserError: If the name is taken, or vectors, ids or dims will not do.
        """
        rows = check_build(vectors, ids, dims, shortlists)
        if table in _names(database):
            raise UserError(f"LanceDB holds a table {table!r} already; give another name, or drop it first.")
        stored = (rows.settings.dims[0], rows.settings.width)
        made = database.create_table(table, arrow_batches(rows, stored), schema=arrow_schema(rows, stored))
        return cls(made, rows.settings, exact=exact)

    @classmethod
    def load(
        cls,
        database: DBConnection,
        table: str,
        *,
        dims: Sequence[int] | None = None,
        shortlists: Sequence[int] = DEFAULT_SHORTLISTS,
        exact: bool = False,
    ) -> Self:
        """Use a table that :meth:`build` made.

        Args:
            database: As above.
            table: Its name.
            dims: Ascending; default: the two that are stored. Only dims in between can be chosen.
            shortlists: How many candidates each dim but the last keeps.
            exact: As above.

        Raises:
            UserError: If there is no such table, or it does not hold the vectors of these dims.
        """
        names = _names(database)
        if table not in names:
            found = ", ".join(map(repr, names)) or "none"
            raise UserError(f"LanceDB has no table {table!r} (it has {found}); make it with build.")
        opened = database.open_table(table)
        stored = stored_dims(fixed_sizes(opened.schema), f"Table {table!r}")
        settings = Settings.of(stored[-1], stored if dims is None else dims, shortlists)
        if settings.dims[0] not in stored or settings.dims[-1] != settings.width:
            raise UserError(
                f"dims is {list(settings.dims)}, but table {table!r} holds {list(stored)}; start and end there."
            )
        return cls(opened, settings, exact=exact)

    def __len__(self) -> int:
        return int(self.table.count_rows())

    def _search(self, prefixes: Sequence[Vectors], keep: Sequence[int]) -> Iterator[tuple[Ids, Scores]]:
        whole = vector_name(self.settings.width)
        for query in zip(*prefixes, strict=True):
            search = self.table.search(query[0], vector_column_name=vector_name(self.settings.dims[0]))
            search = search.distance_type("dot").limit(keep[0]).select(["id", whole, "_distance"])
            found = (search.bypass_vector_index() if self.exact else search).to_arrow()
            found = found.filter(found[whole].is_valid())  # flatten leaves nulls out
            vectors = found[whole].combine_chunks().flatten().to_numpy().reshape(-1, self.settings.width)
            order, scores = rank_rows(query[1:], vectors, keep[1:])
            yield np.array(found["id"].take(order).to_pylist()), scores


def _names(database: DBConnection) -> list[str]:
    names: list[str] = []
    token = None
    while True:
        page = database.list_tables(page_token=token)
        names += page.tables
        token = page.page_token
        if not token:
            return names
