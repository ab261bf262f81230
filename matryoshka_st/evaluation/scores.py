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
        precision: How the vectors were stored.
        variant: What was done to the full width before the cut, if anything.
        per_query: nDCG@10 of each query of a retrieval or reranking task, by ``split/subset/query id``; else empty.
    """

    task: str
    task_type: str
    metric: str
    dim: int
    score: float
    precision: str = "float32"
    variant: str = ""
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
    """Lay scores out, times 100: a column per dim from wide to narrow, a row per task, precision and variant.

    Where a kind of row has more than one task, a last row holds its means, for dims that every task has.
    """
    rows: dict[tuple[str, str], dict[str, dict[int, float]]] = {}
    for score in scores:
        tasks = rows.setdefault((score.variant, score.precision), {})
        tasks.setdefault(score.task, {})[score.dim] = score.score
    dims = sorted({dim for tasks in rows.values() for row in tasks.values() for dim in row}, reverse=True)
    table = Table(title=title)
    table.add_column("task", overflow="fold")
    labelled = any(kind != ("", "float32") for kind in rows)
    if labelled:
        table.add_column("stored as")
    for dim in dims:
        table.add_column(str(dim), justify="right")
    for kind, tasks in rows.items():
        label = [" ".join(filter(None, kind))] if labelled else []
        for task, row in tasks.items():
            table.add_row(task, *label, *_cells([row.get(dim) for dim in dims]))
        if len(tasks) > 1:
            table.add_section()
            columns = [[row.get(dim) for row in tasks.values()] for dim in dims]
            table.add_row("mean", *label, *_cells([_mean(column) for column in columns]))
        table.add_section()
    return table


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if len(known) == len(values) else None


def _cells(values: Sequence[float | None]) -> list[str]:
    return ["-" if value is None else f"{100 * value:.2f}" for value in values]
