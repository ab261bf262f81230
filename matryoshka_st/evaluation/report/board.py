"""Which views were scored on which tasks, and the means that may be compared.

A mean is only there for a view that has every task of that mean, so that no two means are over different tasks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from matryoshka_st.errors import UserError
from matryoshka_st.evaluation.precision import PRECISIONS
from matryoshka_st.evaluation.runs import Run

MEAN = "Mean"
REVISION_LETTERS = 7


@dataclass(frozen=True)
class Series:
    """One way to cut one model: what a curve over dims is drawn of."""

    model: str
    revision: str
    variant: str
    width: int


@dataclass(frozen=True)
class View:
    """One vector per text: so many dims of a series at one precision."""

    series: Series
    dim: int
    precision: str
    bytes_per_vector: int


@dataclass(frozen=True)
class Group:
    """Tasks that are averaged."""

    name: str
    tasks: tuple[str, ...]


@dataclass(frozen=True)
class Board:
    """The scores of all views.

    Attributes:
        scores: View -> task -> score (0 to 1); models in the order of the runs, their plain cut,
            wide dims and fine precisions first.
        groups: One for each task type; with more than one type, the mean over all tasks comes last.
        metrics: Task -> name of its score.
        labels: Series -> a short name that no other series has.
    """

    scores: Mapping[View, Mapping[str, float]]
    groups: tuple[Group, ...]
    metrics: Mapping[str, str]
    labels: Mapping[Series, str]

    @property
    def overall(self) -> Group:
        """All tasks."""
        return self.groups[-1]

    def score(self, view: View, group: Group) -> float | None:
        """The mean over the group's tasks, if the view has them all."""
        found = self.scores[view]
        return None if self.missing(view, group) else fmean(found[task] for task in group.tasks)

    def missing(self, view: View, group: Group) -> list[str]:
        """The group's tasks that the view was not scored on."""
        return [task for task in group.tasks if task not in self.scores[view]]

    def full(self, series: Series, group: Group) -> float | None:
        """The score of the uncut float32 vector."""
        whole = (view for view in self.scores if view.series == series and view.dim == series.width)
        return next((self.score(view, group) for view in whole if view.precision == PRECISIONS[0]), None)

    def share(self, view: View, group: Group) -> float | None:
        """What the view keeps of its own series' uncut float32 score."""
        score, full = self.score(view, group), self.full(view.series, group)
        return score / full if score is not None and full else None


def board(runs: Iterable[Run]) -> Board:
    """Sort runs into views, tasks and groups.

    Raises:
        UserError: If there are no runs, the same view of the same task has two different scores, or a task was scored
            by one metric, split or subset here and by another there.
    """
    scores: dict[View, dict[str, float]] = {}
    kinds: dict[str, tuple[str, ...]] = {}
    for run in runs:
        view = _view(run)
        known = scores.setdefault(view, {})
        if known.setdefault(run.task, run.score) != run.score:
            raise UserError(
                f"{run.task} has two scores for {run.model} at {run.dim} dims, {run.precision} "
                f"({100 * known[run.task]:.2f} and {100 * run.score:.2f}); give folders of one evaluation."
            )
        kind = (run.task_type, run.metric, *run.parts)
        if kinds.setdefault(run.task, kind) != kind:
            raise UserError(
                f"{run.task} is {' '.join(kinds[run.task])} in one result and {' '.join(kind)} in another; "
                "give folders whose results can be compared."
            )
    if not scores:
        raise UserError("There is nothing to report; give folders that hold results.")
    series = _in_order(view.series for view in scores)
    ordered = sorted(scores, key=lambda view: (series.index(view.series), -view.dim, PRECISIONS.index(view.precision)))
    return Board(
        scores={view: scores[view] for view in ordered},
        groups=_groups({task: task_type for task, (task_type, *_) in kinds.items()}),
        metrics={task: kinds[task][1] for task in sorted(kinds)},
        labels=_labels(series),
    )


def pareto_front(board: Board, group: Group) -> list[View]:
    """The views for which no other is as small and as good, and smaller or better; smallest first."""
    scored = [(view, score) for view in board.scores if (score := board.score(view, group)) is not None]
    front = [
        (view, score)
        for view, score in scored
        if not any(
            other.bytes_per_vector <= view.bytes_per_vector
            and value >= score
            and (other.bytes_per_vector, value) != (view.bytes_per_vector, score)
            for other, value in scored
        )
    ]
    return [view for view, _ in sorted(front, key=lambda entry: entry[0].bytes_per_vector)]


def _in_order(series: Iterable[Series]) -> list[Series]:
    found = list(dict.fromkeys(series))
    models = list(dict.fromkeys((one.model, one.revision) for one in found))
    return sorted(found, key=lambda one: (models.index((one.model, one.revision)), one.variant))


def _view(run: Run) -> View:
    series = Series(run.model, run.revision, run.variant, run.width)
    return View(series, run.dim, run.precision, run.bytes_per_vector)


def _groups(types: Mapping[str, str]) -> tuple[Group, ...]:
    by_type = [
        Group(name, tuple(sorted(task for task in types if types[task] == name)))
        for name in sorted(set(types.values()))
    ]
    return tuple(by_type) if len(by_type) == 1 else (*by_type, Group(MEAN, tuple(sorted(types))))


def _labels(series: Sequence[Series]) -> dict[Series, str]:
    """The model's name, with its organisation or revision where another model has the same, and the variant."""
    revisions = Counter(model for model, _ in {(one.model, one.revision) for one in series})
    names = Counter(_name(model) for model in revisions)
    labels = {}
    for one in series:
        label = _name(one.model) if names[_name(one.model)] == 1 else one.model
        if revisions[one.model] > 1:
            label += f"@{one.revision[:REVISION_LETTERS]}"
        labels[one] = f"{label} {one.variant}".rstrip()
    return labels


def _name(model: str) -> str:
    return model.rsplit("/", 1)[-1]
