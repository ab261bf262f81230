"""What stores have in common: names of vectors, checks, and the cascade in numpy where a store has none."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from matryoshka_st.errors import UserError
from matryoshka_st.retrieval.cascade import Hits
from matryoshka_st.retrieval.ids import GivenIds, Ids, check_ids
from matryoshka_st.retrieval.rerank import Scores
from matryoshka_st.retrieval.settings import Settings
from matryoshka_st.retrieval.shortlist import Positions
from matryoshka_st.retrieval.vectors import Vectors, check_vectors, prefix

WRITE_ROWS = 10_000
DEFAULT_SHORTLISTS = (200,)


class Store(ABC):
    """Vectors in somebody's store, searched with few dims first, as :class:`~matryoshka_st.retrieval.FunnelRetriever`.

    Each store holds ids and unit vectors of the first dim and of the last, called ``dim_64`` and ``dim_384`` or the
    like, some also those of the dims in between. Scores are cosines.

    Args:
        settings: Of the cascade; its last dim is the whole width.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    @abstractmethod
    def __len__(self) -> int:
        """Vectors in the store."""

    def search(self, queries: ArrayLike, k: int, *, shortlists: Sequence[int] | None = None) -> Hits:
        """Find the best vectors of each query.

        Args:
            queries: Shape ``[m, width]``.
            k: Vectors per query, 1 to the size of the store and of the last shortlist.
            shortlists: Other lengths than the store was built or loaded with.

        Raises:
            UserError: If the store is empty, or queries, k or lengths will not do.
        """
        rows = check_vectors(queries, "query", self.settings.width)
        keep = (*self.settings.lengths(k, len(self), shortlists), k)
        prefixes = [prefix(rows, dim, "cosine") for dim in self.settings.dims]
        found = list(self._search(prefixes, keep))
        for ids, _ in found:
            if len(ids) < k:
                raise UserError(
                    f"The store found {len(ids)} of {k} vectors; rows that lack a vector are counted but not found: "
                    "complete or delete them."
                )
        if not found:
            return Hits(np.empty((0, k), dtype=np.int64), np.empty((0, k), dtype=np.float32))
        return Hits(np.stack([ids for ids, _ in found]), np.stack([scores for _, scores in found]))

    @abstractmethod
    def _search(self, prefixes: Sequence[Vectors], keep: Sequence[int]) -> Iterable[tuple[Ids, Scores]]:
        """Ids and scores of each query, best first.

        Args:
            prefixes: Of all queries, one array per dim.
            keep: How many each dim keeps.
        """


class Rows(NamedTuple):
    """Checked input of a build."""

    settings: Settings
    ids: Ids
    vectors: Vectors


def check_build(vectors: ArrayLike, ids: GivenIds | None, dims: Sequence[int], shortlists: Sequence[int]) -> Rows:
    """Check what is to be written.

    Raises:
        UserError: If vectors, ids or dims will not do.
    """
    rows = check_vectors(vectors, "document")
    settings = Settings.of(rows.shape[1], dims, shortlists)
    if settings.dims[-1] != settings.width:
        raise UserError(
            f"The vectors have {settings.width} dims and dims ends at {settings.dims[-1]}; stores rank by whole "
            f"vectors, so end with {settings.width} or cut the vectors first."
        )
    if not len(rows):
        raise UserError("There are no vectors to store; give at least one.")
    return Rows(settings, check_ids(ids, len(rows)), rows)


def written(rows: Rows, dims: Sequence[int]) -> Iterator[tuple[Ids, dict[str, Vectors]]]:
    """Ids and unit vectors by name, some thousand rows at a time."""
    for start in range(0, len(rows.ids), WRITE_ROWS):
        part = slice(start, start + WRITE_ROWS)
        yield rows.ids[part], {vector_name(dim): prefix(rows.vectors[part], dim, "cosine") for dim in dims}


def vector_name(dim: int) -> str:
    """What the vectors of a dim are called in a store.

    >>> vector_name(64)
    'dim_64'
    """
    return f"dim_{dim}"


def stored_dims(sizes: Mapping[str, int], what: str) -> tuple[int, ...]:
    """The dims whose vectors a store holds, ascending.

    Args:
        sizes: Number of coordinates by name of the vectors.
        what: The table or collection, for the message.

    Raises:
        UserError: If there are no two of them, as a cascade needs.

    >>> stored_dims({"dim_384": 384, "image": 512, "dim_64": 64}, "Table 'docs'")
    (64, 384)
    """
    dims = sorted(size for name, size in sizes.items() if name == vector_name(size))
    if len(dims) < 2:
        raise UserError(
            f"{what} holds {', '.join(map(repr, sizes)) or 'no vectors'}, where a cascade needs two or more such as "
            "'dim_64' and 'dim_384'; fill it with build."
        )
    return tuple(dims)


def rank_rows(queries: Sequence[Vectors], vectors: Vectors, keep: Sequence[int]) -> tuple[Positions, Scores]:
    """Rank candidates by rising dims.

    Args:
        queries: One unit vector per dim after the first.
        vectors: Candidates, shape ``[s, width]``, unit length.
        keep: How many each of these dims keeps.

    Returns:
        Positions of the best candidates and their cosines at the last dim, best first.
    """
    chosen: Positions = np.arange(len(vectors))
    scores = np.empty(0, dtype=np.float32)
    for query, kept in zip(queries, keep, strict=True):
        products = prefix(vectors[chosen], len(query), "cosine") @ query
        order = np.argsort(-products, kind="stable")[:kept]
        chosen, scores = chosen[order], products[order]
    return chosen, scores
