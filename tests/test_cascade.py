"""Thresholds of a cascade: what they do, and that the learned ones are as good as trying them all."""

from __future__ import annotations

import itertools
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from matryoshka_st.cascade import (
    ALWAYS,
    NEVER,
    CascadePoint,
    at_thresholds,
    cheapest,
    frontier,
    grid_search,
    oracle,
    stops,
)
from matryoshka_st.errors import UserError

DIMS = (8, 16, 64)


def predictions(rows: int, seed: int, prefixes: int = 3) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Classifiers that know how sure they are, the longer the surer; confidences repeat."""
    rng = np.random.default_rng(seed)
    ease = rng.random((rows, 1)) + np.linspace(-0.2, 0.3, prefixes) + rng.normal(0, 0.1, (rows, prefixes))
    confidence = np.clip(np.round(ease, 2), 0.01, 1.0)
    return confidence, rng.random((rows, prefixes)) < np.clip(ease, 0.05, 0.97)


def every_point(
    confidence: NDArray[np.float64], correct: NDArray[np.bool_], dims: tuple[int, ...]
) -> list[CascadePoint]:
    """The slow way: all thresholds that tell rows apart."""
    choices = [[*np.unique(confidence[:, k]), NEVER] for k in range(len(dims) - 1)]
    return [at_thresholds(confidence, correct, dims, chosen) for chosen in itertools.product(*choices)]


def keeps(point: CascadePoint, confidence: NDArray[np.float64], correct: NDArray[np.bool_], tolerance: float,
          level: float) -> bool:  # fmt: skip
    stop = stops(confidence, point.thresholds)
    lost = correct[np.arange(len(stop)), stop].astype(float) - correct[:, -1]
    return bool(lost.mean() - NormalDist().inv_cdf(level) * lost.std() / np.sqrt(len(lost)) >= -tolerance - 1e-9)


def test_a_row_stops_at_the_first_prefix_that_is_sure_enough() -> None:
    confidence = np.array([[0.9, 0.1, 0.1], [0.5, 0.7, 0.1], [0.4, 0.6, 0.1], [0.5, 0.9, 0.9]])
    assert stops(confidence, [0.6, 0.7]).tolist() == [0, 1, 2, 1]
    assert stops(confidence, [ALWAYS, NEVER]).tolist() == [0, 0, 0, 0]
    assert stops(confidence, [NEVER, NEVER]).tolist() == [2, 2, 2, 2]


def test_accuracy_and_dims_by_hand() -> None:
    confidence = np.array([[0.9, 0.5], [0.8, 0.5], [0.3, 0.5], [0.2, 0.5]])
    correct = np.array([[True, True], [False, True], [False, True], [True, False]])
    assert at_thresholds(confidence, correct, [2, 10], [0.5]) == CascadePoint((0.5,), 0.5, 6.0)
    assert oracle(correct, [2, 10]) == (1.0, 6.0)
    assert oracle(np.zeros((3, 2), bool), [2, 10]) == (0.0, 2.0)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 500), price=st.sampled_from([1e-4, 1e-3, 5e-3, 2e-2]))
def test_the_frontier_is_as_good_as_every_threshold(seed: int, price: float) -> None:
    """Found by visiting thresholds in turn, so that it may miss the best by little."""
    confidence, correct = predictions(30, seed)
    best = max(point.accuracy - price * point.expected_dims for point in every_point(confidence, correct, DIMS))
    found = max(point.accuracy - price * point.expected_dims for point in frontier(confidence, correct, DIMS))
    assert best - 0.02 <= found <= best + 1e-9


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 500), tolerance=st.sampled_from([0.0, 0.02, 0.1]), level=st.sampled_from([0.5, 0.9]))
def test_the_cheapest_keeps_its_word_and_is_nearly_the_cheapest(seed: int, tolerance: float, level: float) -> None:
    confidence, correct = predictions(30, seed)
    found = cheapest(confidence, correct, DIMS, tolerance=tolerance, level=level)
    assert keeps(found, confidence, correct, tolerance, level)
    allowed = [
        point.expected_dims
        for point in every_point(confidence, correct, DIMS)
        if keeps(point, confidence, correct, tolerance, level)
    ]
    assert min(allowed) - 1e-9 <= found.expected_dims <= min(allowed) + 4


def test_it_finds_the_very_cheapest_most_of_the_time() -> None:
    gaps = []
    for seed in range(20):
        confidence, correct = predictions(30, seed)
        found = cheapest(confidence, correct, DIMS, tolerance=0.05, level=0.5)
        points = every_point(confidence, correct, DIMS)
        allowed = [p.expected_dims for p in points if keeps(p, confidence, correct, 0.05, 0.5)]
        gaps.append(found.expected_dims - min(allowed))
    assert sum(gap < 1e-9 for gap in gaps) >= 18


def test_one_threshold_lower_is_one_too_many() -> None:
    confidence, correct = predictions(500, 1, prefixes=4)
    dims = (4, 8, 16, 64)
    found = cheapest(confidence, correct, dims, tolerance=0.01, level=0.5)
    for k, now in enumerate(found.thresholds):
        for lower in np.unique(confidence[:, k][confidence[:, k] < now]):
            other = at_thresholds(
                confidence, correct, dims, [*found.thresholds[:k], lower, *found.thresholds[k + 1 :]]
            )
            if other.expected_dims < found.expected_dims - 1e-9:
                assert not keeps(other, confidence, correct, 0.01, 0.5)


def test_the_frontier_rises_from_the_shortest_prefix_to_the_best() -> None:
    confidence, correct = predictions(2000, 2)
    points = frontier(confidence, correct, DIMS)
    assert points[0].expected_dims == 8 and points[0].accuracy == correct[:, 0].mean()
    assert points[-1].accuracy >= correct[:, -1].mean()
    assert all(a.accuracy < b.accuracy and a.expected_dims < b.expected_dims for a, b in itertools.pairwise(points))


def test_it_spends_less_than_the_grid_search_of_the_paper() -> None:
    confidence, correct = predictions(4000, 3, prefixes=5)
    dims = (8, 16, 32, 64, 128)
    paper = grid_search(confidence, correct, dims)
    lost = correct[:, -1].mean() - paper.accuracy
    ours = cheapest(confidence, correct, dims, tolerance=max(lost, 0.0), level=0.5)
    assert ours.accuracy >= paper.accuracy - 1e-9 and ours.expected_dims < paper.expected_dims


def test_the_grid_search_is_the_one_written_out() -> None:
    confidence, correct = predictions(200, 4)
    found = grid_search(confidence, correct, DIMS, samples=11)
    for k, threshold in enumerate(found.thresholds):
        right = []
        for tried in np.linspace(0, 1, 11):
            answers = [correct[n, k] if confidence[n, k] >= tried else correct[n, k + 1] for n in range(200)]
            right.append(np.mean(answers))
        assert threshold == pytest.approx(np.linspace(0, 1, 11)[int(np.argmax(right))])


def test_confidence_asks_for_more_dims() -> None:
    confidence, correct = predictions(1000, 5)
    spent = [
        cheapest(confidence, correct, DIMS, tolerance=0.02, level=level).expected_dims for level in (0.5, 0.9, 0.999)
    ]
    assert spent == sorted(spent) and spent[0] < spent[-1]


def test_confidences_with_nothing_between_them_are_told_apart() -> None:
    sure = np.nextafter(0.5, 1.0)
    confidence = np.array([[sure, 1.0], [0.5, 1.0]] * 20)
    correct = np.array([[True, True], [False, True]] * 20)
    assert cheapest(confidence, correct, [2, 10], tolerance=0.0, level=0.5) == CascadePoint((sure,), 1.0, 6.0)


def test_one_prefix_has_no_threshold() -> None:
    confidence, correct = predictions(20, 6, prefixes=1)
    assert cheapest(confidence, correct, [8], tolerance=0.1, level=0.9).thresholds == ()
    assert len(frontier(confidence, correct, [8])) == 1


def test_predictions_that_do_not_fit_are_refused() -> None:
    confidence, correct = predictions(20, 7)
    with pytest.raises(UserError, match=r"The confidences are \(20, 3\) and the answers \(20, 3\) for 2 dims"):
        frontier(confidence, correct, [8, 16])
    with pytest.raises(UserError, match="for one row or more"):
        frontier(confidence[:0], correct[:0], DIMS)
