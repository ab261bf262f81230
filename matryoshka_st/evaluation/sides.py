"""Who can be compared: published models and our own runs, each at one dim, with its scores by task."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from statistics import fmean
from typing import TYPE_CHECKING

from matryoshka_st.errors import UserError
from matryoshka_st.evaluation.published import published_averages, published_scores
from matryoshka_st.evaluation.tasks import benchmark_tasks

if TYPE_CHECKING:
    from matryoshka_st.evaluation.runs import Run

PUBLISHED = "published"
_BENCHMARKS = ("MTEB(eng, v1)", "MTEB(eng, v2)")
_REVISION_SHOWN = len(PUBLISHED)


@dataclass(frozen=True)
class TaskScore:
    """The score of one side on one task.

    Attributes:
        task_type: mteb's type of the task.
        metric: The task's main score.
        score: 0 to 1.
        source: Where a published score stands; ``our run`` for ours.
        parts: What the score is the mean of, as ``split/subset``; empty for an average over other tasks.
        per_query: nDCG@10 by query of our runs on retrieval and reranking tasks; else empty.
    """

    task_type: str
    metric: str
    score: float
    source: str
    parts: tuple[str, ...] = ()
    per_query: Mapping[str, float] = field(default_factory=dict, repr=False)


@dataclass(frozen=True)
class Side:
    """One model at one dim with its scores by task.

    Attributes:
        model: ``organisation/name``.
        revision: Of our weights, or ``published``.
        dim: Length of the vectors.
        width: The full width; of a published model the largest dim with scores.
        precision: How vectors are stored.
        variant: What was done before the cut; empty for the plain cut.
        scores: By task; empty where only averages are published.
    """

    model: str
    revision: str
    dim: int
    width: int
    precision: str = "float32"
    variant: str = ""
    scores: Mapping[str, TaskScore] = field(default_factory=dict, repr=False)

    @property
    def is_published(self) -> bool:
        """Whether somebody else measured it."""
        return self.revision == PUBLISHED

    @property
    def label(self) -> str:
        """What a user types to get this side.

        >>> Side("local/x", "0f3c", 64, 384, "binary").label
        'local/x@64:binary'
        """
        extra = [part for part in (self.precision, self.variant) if part not in ("float32", "")]
        return ":".join([f"{self.model}@{self.dim}", *extra])

    @property
    def full_label(self) -> str:
        """The label with the revision.

        >>> Side("local/x", "0f3c5a7b9d", 64, 384).full_label
        'local/x#0f3c5a7b9@64'
        """
        return self.label.replace("@", f"#{self.revision[:_REVISION_SHOWN]}@", 1)


def published_sides(*, newest: bool = False) -> list[Side]:
    """Every published model at every dim; see :func:`published_scores` for ``newest``."""
    scores: dict[tuple[str, int], dict[str, TaskScore]] = {}
    types, subsets = _task_types(), _published_subsets()
    for row in published_scores(newest=newest):
        parts = tuple(sorted(f"{row.split}/{subset}" for subset in subsets.get(row.task, ["default"])))
        score = TaskScore(types[row.task], row.metric, row.score / 100, row.source, parts)
        scores.setdefault((row.model, row.dim), {})[row.task] = score
    for average in published_averages():
        scores.setdefault((average.model, average.dim), {})
    widths: dict[str, int] = {}
    for model, dim in scores:
        widths[model] = max(dim, widths.get(model, 0))
    return [Side(model, PUBLISHED, dim, widths[model], scores=by_task) for (model, dim), by_task in scores.items()]


def run_sides(runs: Iterable[Run]) -> list[Side]:
    """Our runs, one side per model, revision, dim, precision and variant.

    Where all parts of an aggregate task (CQADupstack) were run, their mean is the score of the aggregate.

    Raises:
        UserError: If the same view of the same task has two different scores.
    """
    views: dict[tuple[str, str, int, int, str, str], dict[str, TaskScore]] = {}
    for run in runs:
        view = (run.model, run.revision, run.dim, run.width, run.precision, run.variant)
        score = TaskScore(run.task_type, run.metric, run.score, "our run", run.parts, run.per_query)
        known = views.setdefault(view, {}).setdefault(run.task, score)
        if known.score != score.score:
            raise UserError(
                f"{run.task} has two scores for {Side(*view).full_label} ({100 * known.score:.2f} and "
                f"{100 * score.score:.2f}); give folders of one evaluation."
            )
    return [Side(*view, scores=_with_aggregates(scores)) for view, scores in views.items()]


@cache
def aggregate_parts() -> dict[str, list[str]]:
    """The parts of the published tasks that mteb averages over others.

    >>> {task: len(parts) for task, parts in aggregate_parts().items()}
    {'CQADupstackRetrieval': 12}
    """
    import mteb
    from mteb.abstasks.aggregated_task import AbsTaskAggregate

    tasks = [mteb.get_task(name) for name in _task_types()]
    return {
        task.metadata.name: [part.metadata.name for part in task.tasks]
        for task in tasks
        if isinstance(task, AbsTaskAggregate)
    }


def _with_aggregates(scores: Mapping[str, TaskScore]) -> dict[str, TaskScore]:
    completed = dict(scores)
    for whole, parts in aggregate_parts().items():
        if whole not in scores and all(part in scores for part in parts):
            mean = fmean(scores[part].score for part in parts)
            first = scores[parts[0]]
            completed[whole] = TaskScore(first.task_type, first.metric, mean, first.source)
    return completed


@cache
def _published_subsets() -> dict[str, list[str]]:
    """By task, the subsets that published scores are means over: those of mteb's English benchmarks."""
    return {task.metadata.name: list(task.hf_subsets) for name in _BENCHMARKS for task in benchmark_tasks(name)}


@cache
def _task_types() -> dict[str, str]:
    import mteb

    return {task: mteb.get_task(task).metadata.type for task in {row.task for row in published_scores()}}
