"""Paired bootstrap intervals."""

from __future__ import annotations

import numpy as np
import pytest

from matryoshka_st.errors import UserError
from matryoshka_st.evaluation.significance import paired_difference, paired_mean_difference


def scores(values: np.ndarray) -> dict[str, float]:
    return {str(i): float(value) for i, value in enumerate(values)}


def test_the_interval_is_the_one_of_the_normal_approximation_for_many_queries() -> None:
    rng = np.random.default_rng(0)
    theirs = rng.random(2000)
    ours = theirs + rng.normal(0.02, 0.1, 2000)
    found = paired_difference(scores(ours), scores(theirs))
    half = 1.96 * (ours - theirs).std(ddof=1) / np.sqrt(2000)
    assert found.mean == pytest.approx((ours - theirs).mean())
    assert (found.low, found.high) == pytest.approx((found.mean - half, found.mean + half), abs=4e-4)
    assert found.is_gain
    assert not paired_difference(scores(theirs), scores(ours)).is_gain


def test_equal_scores_have_no_interval() -> None:
    same = scores(np.linspace(0, 1, 5))
    assert str(paired_difference(same, same)) == "+0.0 [0.0, 0.0]"


def test_only_the_same_queries_can_be_compared() -> None:
    with pytest.raises(UserError, match="needs the same two or more queries on both sides; got 3 and 2"):
        paired_difference(scores(np.zeros(3)), scores(np.zeros(2)))


def test_tasks_weigh_alike_and_are_resampled_on_their_own() -> None:
    rng = np.random.default_rng(0)
    zeros = [np.zeros(400), np.zeros(3000)]
    gains = [rng.normal(0.05, 0.1, 400), rng.normal(-0.01, 0.1, 3000)]
    found = paired_mean_difference([scores(gain) for gain in gains], [scores(zero) for zero in zeros])
    half = 1.96 * np.sqrt(sum(gain.var(ddof=1) / len(gain) for gain in gains)) / 2
    assert found.mean == pytest.approx((gains[0].mean() + gains[1].mean()) / 2)
    assert (found.low, found.high) == pytest.approx((found.mean - half, found.mean + half), abs=4e-4)
