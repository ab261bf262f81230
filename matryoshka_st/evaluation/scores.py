"""The score of one dim on one task, and the table of many."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean

from rich.table import Table

from matryoshka_st.errors import OptionalDependencyError


@dataclass(frozen=True)
class DimScore:
    """What a prefix of one length is worth on one task.

    Attributes:
        task: Name of the task.
        task_type: mteb's type of the task (``STS``, ``Retrieval``, ...).
        metric: The task's main score.
        dim: Length of the prefix.
        score: Main score, 0 to 1, averaged over the evaluated splits and subsets.
        per_query: nDCG@10 of each query of a retrieval or reranking task, by ``split/subset/query id``; else empty.
    """

    task: str
    task_type: str
    metric: str
    dim: int
    score: float
    per_query: Mapping[str, float] = field(default_factory=dict, repr=False)


def per_query_ndcg(
    results: Mapping[str, Mapping[str, float]], qrels: Mapping[str, Mapping[str, int]], k: int = 10
) -> dict[str, float]:
    """NDCG@k of every judged query, computed by pytrec_eval as mteb does.

    Args:
        results: Query id -> document id -> score.
        qrels: Query id -> document id -> relevance.
        k: Rank at which the list is cut.

    Raises:
        OptionalDependencyError: If pytrec_eval (it comes with mteb) is not installed.
    """
    try:
        import pytrec_eval
    except ImportError as error:
        raise OptionalDependencyError("pytrec_eval", "eval") from error
    evaluator = pytrec_eval.RelevanceEvaluator(
        {query: dict(documents) for query, documents in qrels.items()}, {f"ndcg_cut.{k}"}
    )
    scored = evaluator.evaluate({query: dict(documents) for query, documents in results.items()})
    return {query: float(metrics[f"ndcg_cut_{k}"]) for query, metrics in scored.items()}


def score_table(scores: Iterable[DimScore], *, title: str | None = None) -> Table:
    """Lay scores out: a row per task, a column per dim from wide to narrow, times 100.

    With more than one task a last row holds the means, for dims that every task has.
    """
    by_task: dict[str, dict[int, float]] = {}
    for score in scores:
        by_task.setdefault(score.task, {})[score.dim] = score.score
    dims = sorted({dim for row in by_task.values() for dim in row}, reverse=True)
    table = Table(title=title)
    table.add_column("task", overflow="fold")
    for dim in dims:
        table.add_column(str(dim), justify="right")
    for task, row in by_task.items():
        table.add_row(task, *_cells([row.get(dim) for dim in dims]))
    if len(by_task) > 1:
        table.add_section()
        columns = [[row.get(dim) for row in by_task.values()] for dim in dims]
        table.add_row("mean", *_cells([_mean(column) for column in columns]))
    return table


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if len(known) == len(values) else None


def _cells(values: Sequence[float | None]) -> list[str]:
    return ["-" if value is None else f"{100 * value:.2f}" for value in values]
