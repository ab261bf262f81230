"""How sure a difference is: paired bootstrap over queries (Efron and Tibshirani 1993, chapter 13), through scipy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import bootstrap

from matryoshka_st.errors import UserError

RESAMPLES = 10_000


@dataclass(frozen=True)
class Difference:
    """A mean difference and its 95 % bootstrap interval, in the units of the scores."""

    mean: float
    low: float
    high: float

    @property
    def is_gain(self) -> bool:
        """Whether the whole interval lies above zero."""
        return self.low > 0

    def __str__(self) -> str:
        return f"{100 * self.mean:+.1f} [{100 * self.low:.1f}, {100 * self.high:.1f}]"


def paired_difference(ours: Mapping[str, float], theirs: Mapping[str, float], *, seed: int = 13) -> Difference:
    """The mean of ``ours - theirs`` over the same queries, with its 95 % percentile interval.

    Args:
        ours: Score of each query.
        theirs: Score of each query, of the same queries.
        seed: Seed of the resampling.

    Raises:
        UserError: If the queries differ or there are fewer than two.
    """
    return paired_mean_difference([ours], [theirs], seed=seed)


def paired_mean_difference(
    ours: Sequence[Mapping[str, float]], theirs: Sequence[Mapping[str, float]], *, seed: int = 13
) -> Difference:
    """The mean over tasks of each task's mean of ``ours - theirs``, with its 95 % percentile interval.

    Queries are resampled within their task: the interval is for these tasks, not for tasks like them.

    Args:
        ours: For each task the score of each query.
        theirs: For the same tasks, the score of the same queries.
        seed: Seed of the resampling.

    Raises:
        UserError: If the queries of a task differ or there are fewer than two.
    """
    differences = [_differences(mine, other) for mine, other in zip(ours, theirs, strict=True)]
    mean = float(_mean_of_means(*differences))
    if all(np.ptp(task) == 0 for task in differences):
        return Difference(mean, mean, mean)
    interval = bootstrap(
        differences,
        _mean_of_means,
        n_resamples=RESAMPLES,
        batch=500,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return Difference(mean, float(interval.low), float(interval.high))


def _differences(ours: Mapping[str, float], theirs: Mapping[str, float]) -> NDArray[np.float64]:
    if ours.keys() != theirs.keys() or len(ours) < 2:
        raise UserError(
            f"A paired comparison needs the same two or more queries on both sides; got {len(ours)} and {len(theirs)}."
        )
    return np.array([ours[query] - theirs[query] for query in ours])


def _mean_of_means(*samples: NDArray[np.float64], axis: int = -1) -> NDArray[np.float64]:
    means: NDArray[np.float64] = np.mean([sample.mean(axis=axis) for sample in samples], axis=0)
    return means
