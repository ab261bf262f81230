"""Two sides on the tasks they share: means per task type and overall, tasks won, and the sentence to quote."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean

from matryoshka_st.errors import UserError
from matryoshka_st.evaluation.sides import Side, TaskScore
from matryoshka_st.evaluation.significance import Difference, paired_mean_difference

OVERALL = "overall"

_SAME_METRIC = {
    "cos_sim.spearman": "cosine_spearman",
    "map_at_1000": "map",
    "max_over_subqueries_map_at_1000": "map",
    "cos_sim.ap": "max_ap",
    "max.ap": "max_ap",
}
"""Main scores that mteb renamed over its versions."""


@dataclass(frozen=True)
class TaskPair:
    """Both scores of one task."""

    task: str
    left: TaskScore
    right: TaskScore

    @cached_property
    def interval(self) -> Difference | None:
        """Of the difference, where both sides have scores per query; else None."""
        return _paired_interval([self])

    @property
    def outcome(self) -> int:
        """1 if left wins, -1 if right does, 0 if they show equal scores or the interval does not tell them apart."""
        if _undecided(self.interval):
            return 0
        shown = round(100 * self.left.score, 2), round(100 * self.right.score, 2)
        return (shown[0] > shown[1]) - (shown[0] < shown[1])


@dataclass(frozen=True)
class Group:
    """Tasks of one type, or all.

    Attributes:
        name: The type, or ``overall``.
        pairs: At least one.
        interval: Of the mean difference, where both sides have scores per query for every task; else None.
    """

    name: str
    pairs: Sequence[TaskPair]
    interval: Difference | None

    @property
    def left(self) -> float:
        """Mean over the tasks, 0 to 1."""
        return fmean(pair.left.score for pair in self.pairs)

    @property
    def right(self) -> float:
        """Mean over the tasks, 0 to 1."""
        return fmean(pair.right.score for pair in self.pairs)

    @property
    def difference(self) -> str:
        """Left minus right, times 100, with its interval where there is one."""
        mean = signed(self.left - self.right)
        if self.interval is None:
            return mean
        return f"{mean} [{100 * self.interval.low:.2f}, {100 * self.interval.high:.2f}]"

    @property
    def outcomes(self) -> tuple[int, int, int]:
        """Tasks that left wins, that are equal, and that right wins."""
        outcomes = [pair.outcome for pair in self.pairs]
        return outcomes.count(1), outcomes.count(0), outcomes.count(-1)


@dataclass(frozen=True)
class Comparison:
    """Two sides side by side.

    Attributes:
        left: What the sentence is about.
        right: What it is compared with.
        types: One group per task type, by name.
        overall: All shared tasks, each with the same weight.
        other_metric: Tasks left out because the two were not measured by the same main score.
        other_parts: Tasks left out because the two were scored on other splits or subsets.
        scope: Which tasks, for the sentence: ``the mean of the 56 tasks of MTEB(eng, v1)``.
    """

    left: Side
    right: Side
    types: Sequence[Group]
    overall: Group
    other_metric: Sequence[str]
    other_parts: Sequence[str]
    scope: str


def compare(
    left: Side,
    right: Side,
    *,
    tasks: Sequence[str] | None = None,
    benchmark: str | None = None,
    aggregates: Mapping[str, Sequence[str]] | None = None,
) -> Comparison:
    """Compare two sides on the tasks that both have scores for.

    Args:
        left: A side.
        right: Another one.
        tasks: Compare on these at most; default: all shared tasks.
        benchmark: What the tasks are called.
        aggregates: Parts of tasks that average over others; parts do not count beside their whole, unless asked for.

    Raises:
        UserError: If both sides are the same, or share no task.
    """
    if left == right:
        raise UserError(f"Both sides are {left.label}; name two different ones.")
    shared = [task for task in left.scores if task in right.scores and (tasks is None or task in tasks)]
    if tasks is None:
        counted = {part for whole, parts in (aggregates or {}).items() if whole in shared for part in parts}
        shared = [task for task in shared if task not in counted]
    other_metric = [task for task in shared if _metric(left.scores[task]) != _metric(right.scores[task])]
    other_parts = [task for task in shared if _differ(left.scores[task].parts, right.scores[task].parts)]
    pairs = [
        TaskPair(task, left.scores[task], right.scores[task])
        for task in sorted(shared)
        if task not in other_metric and task not in other_parts
    ]
    if not pairs:
        raise UserError(_nothing_shared(left, right, benchmark))
    names = sorted({pair.left.task_type for pair in pairs})
    return Comparison(
        left=left,
        right=right,
        types=[_group(name, [pair for pair in pairs if pair.left.task_type == name]) for name in names],
        overall=_group(OVERALL, pairs),
        other_metric=other_metric,
        other_parts=other_parts,
        scope=_scope([pair.task for pair in pairs], tasks, benchmark),
    )


def sentence(comparison: Comparison) -> str:
    """The result in one sentence that holds without the table."""
    overall = comparison.overall
    left, right = _describe(comparison)
    interval = " at 95 %" if overall.interval else ""
    text = (
        f"{left} {_verb(overall)} {right} on {comparison.scope}: "
        f"{100 * overall.left:.2f} against {100 * overall.right:.2f} ({overall.difference}{interval})"
    )
    won, equal, _ = overall.outcomes
    count = len(overall.pairs)
    if count > 1:
        text += f", with {won} of {count} tasks won" + (f" and {equal} tied" if equal else "")
    return text + "."


def signed(difference: float) -> str:
    """A difference of scores times 100, to two decimals; what rounds to nothing has no minus.

    >>> signed(0.0101), signed(-0.00001)
    ('+1.01', '+0.00')
    """
    return f"{round(100 * difference, 2) + 0.0:+.2f}"


def _differ(left: Sequence[str], right: Sequence[str]) -> bool:
    """Whether two scores are means over other splits and subsets; of an average over tasks none are known."""
    return bool(left and right) and left != right


def _metric(score: TaskScore) -> str:
    return _SAME_METRIC.get(score.metric, score.metric)


def _group(name: str, pairs: Sequence[TaskPair]) -> Group:
    return Group(name, pairs, _paired_interval(pairs))


def _paired_interval(pairs: Sequence[TaskPair]) -> Difference | None:
    """Only where the scores per query are those behind the main scores, query by query."""
    if not all(_has_paired_queries(pair) for pair in pairs):
        return None
    return paired_mean_difference([pair.left.per_query for pair in pairs], [pair.right.per_query for pair in pairs])


def _has_paired_queries(pair: TaskPair) -> bool:
    scores = (pair.left, pair.right)
    return (
        pair.left.per_query.keys() == pair.right.per_query.keys()
        and len(pair.left.per_query) > 1
        and all(abs(fmean(score.per_query.values()) - score.score) < 1e-4 for score in scores)
    )


def _nothing_shared(left: Side, right: Side, benchmark: str | None) -> str:
    for side in (left, right):
        if not side.scores:
            return f"Of {side.label} only averages are published, no score per task; choose another dim or model."
    within = f" of {benchmark}" if benchmark else ""
    return (
        f"{left.label} and {right.label} share no task{within} measured by the same score on the same splits and "
        "subsets; --list shows how many tasks each has, eval --tasks adds some to your runs."
    )


def _scope(shared: Sequence[str], tasks: Sequence[str] | None, benchmark: str | None) -> str:
    if len(shared) == 1:
        return shared[0]
    count = len(shared)
    if benchmark and tasks is not None:
        whole = len(tasks)
        part = f"the {count} tasks" if count == whole else f"{count} of the {whole} tasks"
        return f"the mean of {part} of {benchmark}"
    return f"the mean of {count} tasks"


def _verb(overall: Group) -> str:
    if _undecided(overall.interval):
        return "cannot be told from"
    difference = round(100 * (overall.left - overall.right), 2)
    return "beats" if difference > 0 else "trails" if difference < 0 else "ties with"


def _undecided(interval: Difference | None) -> bool:
    return interval is not None and interval.low <= 0 <= interval.high


def _describe(comparison: Comparison) -> tuple[str, str]:
    left, right = comparison.left, comparison.right
    names = [side.model.split("/")[-1] for side in (left, right)]
    if names[0] == names[1] and left.model != right.model:
        names = [left.model, right.model]
    if left.model == right.model and left.revision != right.revision:
        names = [side.full_label.split("@")[0] for side in (left, right)]
    return _at_dim(names[0], left), _at_dim(names[1], right)


def _at_dim(name: str, side: Side) -> str:
    dims = f"its full {side.dim} dims" if side.dim == side.width else f"{side.dim} of its {side.width} dims"
    extra = [part for part in (side.precision, side.variant) if part not in ("float32", "")]
    return f"{name} at {dims}" + (f" ({', '.join(extra)})" if extra else "")
