"""DuckDB: one table, one SQL query per search, exact; each stage reads only the column of its dim.

The vectors are ``FLOAT[n]`` arrays of unit length, so ``array_inner_product`` is the cosine (and 0 for a vector of
zeros, where ``array_cosine_similarity`` is NaN, which DuckDB sorts before all numbers).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Self

import numpy as np
import pyarrow as pa
from numpy.typing import ArrayLike

from matryoshka_st.errors import UserError
from matryoshka_st.retrieval.ids import GivenIds, Ids
from matryoshka_st.retrieval.rerank import Scores
from matryoshka_st.retrieval.settings import Settings
from matryoshka_st.retrieval.stores.arrow import arrow_batches, arrow_schema
from matryoshka_st.retrieval.stores.base import DEFAULT_SHORTLISTS, Store, check_build, stored_dims, vector_name
from matryoshka_st.retrieval.vectors import Vectors

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection


INCOMING = "matryoshka_st_incoming"


class DuckDBStore(Store):
    """A table of DuckDB.

    Args:
        connection: From ``duckdb.connect(file)``; a ``cursor()`` of it for each thread.
        table: Its name, in the current schema.
        settings: Of the cascade.
    """

    def __init__(self, connection: DuckDBPyConnection, table: str, settings: Settings) -> None:
        super().__init__(settings)
        self.connection = connection
        self.table = table

    @classmethod
    def build(
        cls,
        connection: DuckDBPyConnection,
        table: str,
        vectors: ArrayLike,
        ids: GivenIds | None = None,
        *,
        dims: Sequence[int],
        shortlists: Sequence[int] = DEFAULT_SHORTLISTS,
    ) -> Self:
        """Make a table of vectors with the columns ``id`` and one per dim, in one transaction.

        Args:
            connection: As above.
            table: A name that is not taken.
            vectors: Shape ``[n, width]``, n of 1 or more.
            ids: One per vector, all different, whole numbers or texts; default: 0 to n - 1.
            dims: Ascending, the last one the width.
            shortlists: How many candidates each dim but the last keeps.

        Raises:
            UserError: If the name is taken, or vectors, ids or dims will not do.
        """
        rows = check_build(vectors, ids, dims, shortlists)
        if _columns(connection, table):
            raise UserError(f"DuckDB holds a table {table!r} already; give another name, or drop it first.")
        dims = rows.settings.dims
        reader = pa.RecordBatchReader.from_batches(arrow_schema(rows, dims), arrow_batches(rows, dims))
        connection.register(INCOMING, reader)
        try:
            connection.execute(f"CREATE TABLE {_quoted(table)} AS SELECT * FROM {INCOMING}")
        finally:
            connection.unregister(INCOMING)
        return cls(connection, table, rows.settings)

    @classmethod
    def load(
        cls, connection: DuckDBPyConnection, table: str, *, shortlists: Sequence[int] = DEFAULT_SHORTLISTS
    ) -> Self:
        """Use a table that :meth:`build` made.

        Raises:
            UserError: If there is no such table, or it does not hold the vectors of a cascade.
        """
        columns = _columns(connection, table)
        if not columns:
            names = connection.execute("SELECT table_name FROM duckdb_tables()").fetchall()
            found = ", ".join(repr(name) for (name,) in names) or "none"
            raise UserError(f"DuckDB has no table {table!r} (it has {found}); make it with build.")
        sizes = {name: int(kind[6:-1]) for name, kind in columns.items() if kind.startswith("FLOAT[") and kind[6:-1]}
        dims = stored_dims(sizes, f"Table {table!r}")
        return cls(connection, table, Settings.of(dims[-1], dims, shortlists))

    def __len__(self) -> int:
        counted = self.connection.execute(f"SELECT count(*) FROM {_quoted(self.table)}").fetchall()
        return int(counted[0][0])

    def _search(self, prefixes: Sequence[Vectors], keep: Sequence[int]) -> Iterator[tuple[Ids, Scores]]:
        sql = cascade_sql(self.table, self.settings.dims)
        lengths = {f"keep_{dim}": count for dim, count in zip(self.settings.dims, keep, strict=True)}
        for query in zip(*prefixes, strict=True):
            vectors = {f"query_{dim}": vector for dim, vector in zip(self.settings.dims, query, strict=True)}
            found = self.connection.execute(sql, vectors | lengths).fetchnumpy()
            yield np.array(found["id"].tolist()), found["score"]


def cascade_sql(table: str, dims: Sequence[int]) -> str:
    """One query for all stages, each over the row ids that the one before kept.

    Its parameters are ``$query_64`` and ``$keep_64`` for dim 64, and so on.
    """
    stages = [
        f"stage_{dim} AS MATERIALIZED (SELECT rowid AS row, id, array_inner_product({vector_name(dim)}, "
        f"$query_{dim}::FLOAT[{dim}]) AS score FROM {_quoted(table)}{_among(before)} "
        f"ORDER BY score DESC, id LIMIT $keep_{dim})"
        for before, dim in zip([None, *dims], dims, strict=False)
    ]
    found = f"SELECT id, score FROM stage_{dims[-1]} WHERE score IS NOT NULL ORDER BY score DESC, id"
    return f"WITH {', '.join(stages)} {found}"


def _among(dim: int | None) -> str:
    return "" if dim is None else f" WHERE rowid IN (SELECT row FROM stage_{dim})"


def _columns(connection: DuckDBPyConnection, table: str) -> dict[str, str]:
    """Types by name of the columns of a table or view in the current schema; none if there is none."""
    sql = (
        "SELECT column_name, data_type FROM duckdb_columns() WHERE table_name = ? AND schema_name = current_schema() "
        "AND database_name = current_database()"
    )
    return dict(connection.execute(sql, [table]).fetchall())


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
