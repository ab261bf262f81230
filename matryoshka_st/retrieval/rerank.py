"""Dot products of queries with chosen rows of a vector file, and with all of them.

faiss reads the rows where they lie, which may be a memory-mapped file; nothing is gathered into a copy.

Legend: m queries, n rows, d dims, s candidates, k kept.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from matryoshka_st.retrieval.shortlist import Positions, require_faiss
from matryoshka_st.retrieval.vectors import Vectors

Scores = NDArray[np.float32]
BLOCK = 65_536  # a multiple of faiss's own block of 1,024 rows, so that its sums are the same


class Rows:
    """Vectors of one dim: a block that is never changed (in RAM or memory-mapped), and what was added since.

    Args:
        base: Shape ``[n, d]``, contiguous.
    """

    def __init__(self, base: Vectors) -> None:
        self.base = base
        self._added = np.empty((0, base.shape[1]), dtype=np.float32)
        self._count = 0

    def __len__(self) -> int:
        return len(self.base) + self._count

    @property
    def added(self) -> Vectors:
        """Rows behind the base, in RAM."""
        return self._added[: self._count]

    @property
    def ram_bytes(self) -> int:
        """Bytes that are not memory-mapped."""
        return self._added.nbytes + (0 if _is_mapped(self.base) else self.base.nbytes)

    def append(self, vectors: Vectors) -> None:
        """Add rows behind the others."""
        needed = self._count + len(vectors)
        if needed > len(self._added):
            grown = np.empty((max(needed, 2 * len(self._added)), self.base.shape[1]), dtype=np.float32)
            grown[: self._count] = self.added
            self._added = grown
        self._added[self._count : needed] = vectors
        self._count = needed

    def take(self, rows: Positions) -> Vectors:
        """A copy of some rows."""
        taken = np.empty((len(rows), self.base.shape[1]), dtype=np.float32)
        old = rows < len(self.base)
        taken[old], taken[~old] = self.base[rows[old]], self.added[rows[~old] - len(self.base)]
        return taken

    def best_of(self, queries: Vectors, rows: Positions, k: int) -> tuple[Scores, Positions]:
        """The best candidates of each query.

        Args:
            queries: Shape ``[m, d]``.
            rows: Candidates, shape ``[m, s]``; -1 for none.
            k: 1 to s.

        Returns:
            Scores and columns of ``rows``, shape ``[m, k]``, best first, equal scores in the order of the columns;
            ``-inf`` for none.
        """
        if self._count:
            inside = rows < len(self.base)
            scores = _products(queries, self.base, np.where(inside, rows, -1))
            late = _products(queries, self.added, np.where(inside, -1, rows - len(self.base)))
            scores = np.maximum(scores, late)
        else:
            scores = _products(queries, self.base, rows)
        columns = _best_columns(scores, k)
        return np.take_along_axis(scores, columns, axis=1), columns

    def exact(self, queries: Vectors, k: int, rows: Positions | None) -> tuple[Scores, Positions]:
        """The best of all rows, or of some, found as ``faiss.IndexFlatIP`` finds them.

        Args:
            queries: Shape ``[m, d]``.
            k: 1 to the number of rows.
            rows: Rows to look at, ascending; default: all.

        Returns:
            Scores and positions in ``rows``, shape ``[m, k]``, best first.
        """
        faiss = require_faiss()
        if rows is None and not self._count:
            found: tuple[Scores, Positions] = faiss.knn(queries, self.base, k, metric=faiss.METRIC_INNER_PRODUCT)
            return found
        wanted = np.arange(len(self)) if rows is None else rows
        scores, positions = np.empty((len(queries), 0), np.float32), np.empty((len(queries), 0), np.int64)
        for start in range(0, len(wanted), BLOCK):
            block = self.take(wanted[start : start + BLOCK])
            best = faiss.knn(queries, block, min(k, len(block)), metric=faiss.METRIC_INNER_PRODUCT)
            scores, positions = np.hstack([scores, best[0]]), np.hstack([positions, best[1] + start])
            columns = np.argsort(-scores, axis=1, kind="stable")[:, :k]
            scores = np.take_along_axis(scores, columns, axis=1)
            positions = np.take_along_axis(positions, columns, axis=1)
        return scores, positions


def _best_columns(scores: Scores, k: int) -> Positions:
    """The columns of the k largest, best first, equal ones from left to right."""
    if k < scores.shape[1]:
        chosen = np.sort(np.argpartition(-scores, k - 1, axis=1)[:, :k], axis=1)
    else:
        chosen = np.broadcast_to(np.arange(k), scores.shape)
    order = np.argsort(-np.take_along_axis(scores, chosen, axis=1), axis=1, kind="stable")
    return np.take_along_axis(chosen, order, axis=1)


def _products(queries: Vectors, base: Vectors, rows: Positions) -> Scores:
    """Shape of ``rows``; -inf where it is -1."""
    faiss = require_faiss()
    chosen = np.ascontiguousarray(rows)  # has to outlive the call, which is given its address
    scores = np.empty(rows.shape, dtype=np.float32)
    faiss.fvec_inner_products_by_idx(
        faiss.swig_ptr(scores),
        faiss.swig_ptr(queries),
        faiss.swig_ptr(base),
        faiss.swig_ptr(chosen),
        queries.shape[1],
        *rows.shape,
    )
    return scores


def _is_mapped(array: Vectors) -> bool:
    while isinstance(array, np.ndarray):
        if isinstance(array, np.memmap):
            return True
        array = array.base  # type: ignore[assignment]
    return False
