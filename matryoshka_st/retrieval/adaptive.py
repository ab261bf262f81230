"""Retrieval in two stages: a shortlist by the first dims, reranked by more (MRL, arXiv 2205.13147, section 4.3.1)."""

from __future__ import annotations

from typing import Self

from numpy.typing import ArrayLike

from matryoshka_st.retrieval.cascade import Cascade
from matryoshka_st.retrieval.ids import GivenIds
from matryoshka_st.retrieval.settings import Settings
from matryoshka_st.retrieval.vectors import check_vectors


class AdaptiveRetriever(Cascade):
    """``shortlist_dim`` dims find candidates, ``rerank_dim`` dims rank them.

    See :class:`Cascade` for when its results are exact, and for ties.
    """

    @classmethod
    def build(
        cls,
        vectors: ArrayLike,
        ids: GivenIds | None = None,
        *,
        shortlist_dim: int,
        shortlist: int = 200,
        rerank_dim: int | None = None,
        metric: str = "cosine",
        precision: str = "float32",
        index: str = "flat",
    ) -> Self:
        """Index vectors; see :meth:`FunnelRetriever.build` for what is not said here.

        Args:
            vectors: Shape ``[n, width]``.
            ids: One per vector.
            shortlist_dim: Leading coordinates that find candidates.
            shortlist: Candidates per query.
            rerank_dim: Leading coordinates that rank them; default: all.
            metric: ``cosine`` or ``dot``.
            precision: Of the first prefix.
            index: ``flat`` or ``hnsw``.

        Raises:
            OptionalDependencyError: If faiss is not installed.
            UserError: If vectors, ids or settings will not do.

        >>> import numpy as np
        >>> documents = np.random.default_rng(0).normal(size=(1000, 64))
        >>> retriever = AdaptiveRetriever.build(documents, shortlist_dim=16, shortlist=100)
        >>> retriever.search(documents[:2], k=3).ids[:, 0]
        array([0, 1])
        """
        rows = check_vectors(vectors, "document")
        dims = [shortlist_dim, rows.shape[1] if rerank_dim is None else rerank_dim]
        settings = Settings.of(rows.shape[1], dims, [shortlist], metric=metric, precision=precision, index=index)
        return cls._of(rows, ids, settings)
