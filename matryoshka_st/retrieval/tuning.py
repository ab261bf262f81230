"""Which shortlist is good enough: every dim and length tried on held-out queries, the whole trade-off shown."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from rich.table import Table

from matryoshka_st.errors import UserError
from matryoshka_st.evaluation.precision import Precision, bytes_per_vector, check_precision
from matryoshka_st.nesting import default_dims
from matryoshka_st.retrieval.costs import Operations, count_operations
from matryoshka_st.retrieval.ids import GivenIds, check_ids
from matryoshka_st.retrieval.metrics import Qrels, by_position, ndcg
from matryoshka_st.retrieval.rerank import Rows
from matryoshka_st.retrieval.settings import Settings
from matryoshka_st.retrieval.shortlist import Positions, Shortlist
from matryoshka_st.retrieval.vectors import Vectors, check_vectors, prefix

LENGTHS_PER_K = (1, 2, 5, 10, 20, 50, 100)
_TIE = 1e-6


@dataclass(frozen=True)
class TradeOff:
    """One shortlist, measured.

    Attributes:
        shortlist_dim: Leading coordinates that find candidates.
        shortlist: Candidates per query.
        precision: Of the prefix.
        recall: Share of the exact top k that is found; a vector that scores as high as the last of them counts.
        ndcg: nDCG@k, if there are judgements.
        ndcg_share: The same divided by that of exact search.
        operations: Of one query.
        ratio: Operations of exact search, one product per coordinate and vector, divided by these.
        bytes_per_vector: Of the prefix in RAM, without the links of a graph.
    """

    shortlist_dim: int
    shortlist: int
    precision: Precision
    recall: float
    ndcg: float | None
    ndcg_share: float | None
    operations: Operations
    ratio: float
    bytes_per_vector: int

    @property
    def quality(self) -> float:
        """What a target is compared with: the share of nDCG where there is one, else recall."""
        return self.recall if self.ndcg_share is None else self.ndcg_share


@dataclass(frozen=True)
class Tuning:
    """What :func:`tune` found.

    Attributes:
        trade_offs: Every dim, length and precision that was tried.
        target: The least quality asked for.
        exact_ndcg: nDCG@k of exact search, if there are judgements.
        fixed: Arguments of ``AdaptiveRetriever.build`` that were the same for all.
    """

    trade_offs: tuple[TradeOff, ...]
    target: float
    exact_ndcg: float | None
    fixed: Mapping[str, Any]

    @property
    def best(self) -> TradeOff:
        """The one with the fewest operations that reaches the target; among equals the one with fewer bytes.

        Raises:
            UserError: If none reaches it.
        """
        good = [trade_off for trade_off in self.trade_offs if trade_off.quality >= self.target]
        if not good:
            near = max(self.trade_offs, key=lambda trade_off: trade_off.quality)
            raise UserError(
                f"No shortlist reaches {self.target:g}; the best is {near.quality:.4f}, with {near.shortlist} "
                f"candidates by {near.shortlist_dim} dims in {near.precision}; try longer shortlists, more dims or a "
                "lower target."
            )
        return min(good, key=lambda trade_off: (trade_off.operations.total, trade_off.bytes_per_vector))

    @property
    def options(self) -> dict[str, Any]:
        """The best one as arguments of ``AdaptiveRetriever.build``.

        Raises:
            UserError: If none reaches the target.
        """
        return self.options_of(self.best)

    def options_of(self, one: TradeOff) -> dict[str, Any]:
        """One of the trade-offs as arguments of ``AdaptiveRetriever.build``."""
        chosen = {"shortlist_dim": one.shortlist_dim, "shortlist": one.shortlist, "precision": one.precision}
        return {**self.fixed, **chosen}

    def table(self, title: str | None = None) -> Table:
        """One row per dim and precision, one column per length: quality, and how many times fewer operations.

        What reaches the target is bold.
        """
        lengths = sorted({trade_off.shortlist for trade_off in self.trade_offs})
        rows: dict[tuple[str, int], dict[int, str]] = {}
        for trade_off in self.trade_offs:
            cell = f"{trade_off.quality:.4f} ({trade_off.ratio:.1f}x)"
            bold = f"[bold]{cell}[/bold]" if trade_off.quality >= self.target else cell
            rows.setdefault((trade_off.precision, trade_off.shortlist_dim), {})[trade_off.shortlist] = bold
        table = Table(title=title)
        for column in ("precision", "dims", *(str(length) for length in lengths)):
            table.add_column(column, justify="left" if column == "precision" else "right")
        for (precision, dim), cells in rows.items():
            table.add_row(precision, str(dim), *(cells.get(length, "-") for length in lengths))
        return table


def tune(
    vectors: ArrayLike,
    queries: ArrayLike,
    *,
    ids: GivenIds | None = None,
    qrels: Qrels | None = None,
    target: float = 0.99,
    k: int = 10,
    dims: Sequence[int] | None = None,
    lengths: Sequence[int] | None = None,
    precisions: Sequence[str] = ("float32",),
    metric: str = "cosine",
    index: str = "flat",
    rerank_dim: int | None = None,
) -> Tuning:
    """Measure shortlists of every dim, length and precision against exact search, on held-out queries.

    Args:
        vectors: Of the documents, shape ``[n, width]``.
        queries: Shape ``[m, width]``; not the ones that results are reported on.
        ids: One per document, as ``qrels`` names them; default: 0 to n - 1.
        qrels: One mapping per query. With it the target is a share of the nDCG@k of exact search, without it recall.
        target: Between 0 and 1.
        k: Documents per query.
        dims: Of the shortlist; default: the usual ladder below the width, and for binary the width itself.
        lengths: Of the shortlist; default: 1 to 100 times k, up to n.
        precisions: Of the shortlist.
        metric: ``cosine`` or ``dot``.
        index: ``flat`` or ``hnsw``; with the latter the operations are those that faiss counted.
        rerank_dim: Leading coordinates that rank; default: all. Exact search uses them too.

    Raises:
        OptionalDependencyError: If faiss is not installed.
        UserError: If an argument will not do.
    """
    documents, asked = check_vectors(vectors, "document"), check_vectors(queries, "query")
    check_vectors(asked, "query", documents.shape[1])
    known = check_ids(ids, len(documents))
    _check_counts(len(documents), len(asked), qrels, k, target)
    widest = documents.shape[1] if rerank_dim is None else rerank_dim
    for name, given in (("dims", dims), ("lengths", lengths), ("precisions", precisions)):
        if given is not None and not len(given):
            raise UserError(f"{name} is empty; give at least one.")
    wanted = _lengths(lengths, k, len(documents))
    settings = [
        Settings.of(documents.shape[1], [dim, widest], wanted[-1:], metric=metric, precision=precision, index=index)
        for precision in precisions
        for dim in dims or _ladder(widest, check_precision(precision))
    ]
    judge = _Judge(documents, asked, settings[0], k, None if qrels is None else by_position(qrels, known))
    measured = [
        judge.measure(one, length, candidates, visited)
        for one in settings
        for length, candidates, visited in _candidates(documents, asked, one, wanted)
    ]
    return Tuning(tuple(measured), target, judge.exact_ndcg, {"rerank_dim": widest, "metric": metric, "index": index})


class _Judge:
    """Compares shortlists with exact search."""

    def __init__(
        self, documents: Vectors, queries: Vectors, settings: Settings, k: int, judgements: Qrels | None
    ) -> None:
        self._k, self._judgements = k, judgements
        self._rows = Rows(prefix(documents, settings.dims[-1], settings.metric))
        self._queries = prefix(queries, settings.dims[-1], settings.metric)
        scores, positions = self._rows.exact(self._queries, k, None)
        self._bar = scores[:, -1:] - _TIE * np.abs(scores[:, -1:])
        self.exact_ndcg = self._ndcg(positions)
        if self.exact_ndcg == 0:
            raise UserError(
                "Exact search finds no relevant document, so there is no nDCG to keep; leave qrels out to tune for "
                "recall, or check that they name the documents by their ids."
            )

    def measure(self, settings: Settings, length: int, candidates: Positions, visited: int | None) -> TradeOff:
        """Rank the first ``length`` candidates of each query and look what was lost."""
        scores, columns = self._rows.best_of(self._queries, candidates[:, :length], self._k)
        found = self._ndcg(np.take_along_axis(candidates, columns, axis=1))
        count = len(self._rows)
        cost = count_operations(count, settings.dims, [length], settings.precision, visited=visited)
        return TradeOff(
            shortlist_dim=settings.dims[0],
            shortlist=length,
            precision=settings.precision,
            recall=float((scores >= self._bar).mean()),
            ndcg=found,
            ndcg_share=None if found is None or self.exact_ndcg is None else found / self.exact_ndcg,
            operations=cost,
            ratio=count * settings.dims[-1] / cost.total,
            bytes_per_vector=bytes_per_vector(settings.dims[0], settings.precision),
        )

    def _ndcg(self, positions: Positions) -> float | None:
        return None if self._judgements is None else float(ndcg(positions, self._judgements).mean())


def _candidates(
    documents: Vectors, queries: Vectors, settings: Settings, lengths: Sequence[int]
) -> Iterator[tuple[int, Positions, int | None]]:
    """Length, candidates and vectors visited per query; a graph walks further for a longer list, so it walks anew."""
    shortlist = Shortlist.of(prefix(documents, settings.dims[0], settings.metric), settings)
    prefixes = prefix(queries, settings.dims[0], settings.metric)
    if settings.index == "flat":
        candidates = shortlist.search(prefixes, lengths[-1])
        yield from ((length, candidates, None) for length in lengths)
        return
    for length in lengths:
        yield length, *shortlist.search_counted(prefixes, length)


def _ladder(width: int, precision: Precision) -> tuple[int, ...]:
    ladder = default_dims(width)
    return ladder if precision == "binary" else ladder[:-1]


def _lengths(lengths: Sequence[int] | None, k: int, count: int) -> list[int]:
    wanted = [factor * k for factor in LENGTHS_PER_K] if lengths is None else sorted(lengths)
    for length in wanted:
        if length < k:
            raise UserError(f"A shortlist of {length} is shorter than k = {k}; use {k} or more.")
    return sorted({min(length, count) for length in wanted})


def _check_counts(documents: int, queries: int, qrels: Qrels | None, k: int, target: float) -> None:
    if not queries:
        raise UserError("There are no queries to tune on; give some that results are not reported on.")
    if not 1 <= k <= documents:
        raise UserError(f"k is {k}, but there are {documents} vectors; use 1 to {documents}.")
    if not 0 < target <= 1:
        raise UserError(f"target is {target:g}; give a share above 0 and up to 1.")
    if qrels is not None and len(qrels) != queries:
        raise UserError(f"There are {len(qrels)} judgements for {queries} queries; give one mapping per query.")
