"""Retrieval through a falling cascade of shortlists and rising dims (MRL, arXiv 2205.13147, section 4.3.1)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

from numpy.typing import ArrayLike

from matryoshka_st.retrieval.cascade import Cascade
from matryoshka_st.retrieval.ids import GivenIds
from matryoshka_st.retrieval.settings import Settings
from matryoshka_st.retrieval.vectors import check_vectors


class FunnelRetriever(Cascade):
    """Each of ``dims`` ranks what the one before left over, and leaves fewer.

    See :class:`Cascade` for when its results are exact, and for ties.
    """

    @classmethod
    def build(
        cls,
        vectors: ArrayLike,
        ids: GivenIds | None = None,
        *,
        dims: Sequence[int],
        shortlists: Sequence[int],
        metric: str = "cosine",
        precision: str = "float32",
        index: str = "flat",
    ) -> Self:
        """Index vectors.

        Args:
            vectors: Shape ``[n, width]``, n of 1 or more. A float32 array that needs no scaling (unit length, or
                ``metric="dot"``) is kept, not copied; it may be memory-mapped, and must not be changed afterwards.
            ids: One per vector, all different, whole numbers or texts; default: 0 to n - 1.
            dims: Ascending; the last one ranks what is returned. The first two may be equal if the first prefix is
                stored in fewer bits.
            shortlists: How many candidates each dim but the last keeps.
            metric: ``cosine`` (every prefix is renormalised) or ``dot``.
            precision: Of the first prefix: ``float32``, ``float16``, ``int8`` (faiss's 8-bit quantizer; ranges of
                these vectors, beyond which later ones are clipped) or ``binary`` (signs, compared by Hamming
                distance).
            index: ``flat`` (looks at every first prefix) or ``hnsw`` (walks a graph).

        Raises:
            OptionalDependencyError: If faiss is not installed.
            UserError: If vectors, ids or settings will not do.
        """
        rows = check_vectors(vectors, "document")
        settings = Settings.of(rows.shape[1], dims, shortlists, metric=metric, precision=precision, index=index)
        return cls._of(rows, ids, settings)
