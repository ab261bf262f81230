"""How sure a difference is: paired bootstrap over queries (Efron and Tibshirani 1993, chapter 13), through scipy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
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
    if ours.keys() != theirs.keys() or len(ours) < 2:
        raise UserError(
            f"A paired comparison needs the same two or more queries on both sides; got {len(ours)} and {len(theirs)}."
        )
    differences = np.array([ours[query] - theirs[query] for query in ours])
    mean = float(differences.mean())
    if np.ptp(differences) == 0:
        return Difference(mean, mean, mean)
    interval = bootstrap(
        (differences,), np.mean, n_resamples=RESAMPLES, batch=500, method="percentile", rng=np.random.default_rng(seed)
    ).confidence_interval
    return Difference(mean, float(interval.low), float(interval.high))
