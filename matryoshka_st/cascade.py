"""When to stop at a prefix: confidence thresholds for a cascade of classifiers, learned from held-out predictions.

Adaptive classification of the MRL paper (arXiv 2205.13147, section 4.2.1 and appendix): a row is classified by the
shortest prefix whose confidence reaches that prefix's threshold, and by the longest if none does.

Legend: N held-out rows, K prefixes of ``dims`` coordinates, ascending; ``confidence`` (N x K) is how sure the K
classifiers are of their own answers, ``correct`` (N x K) whether these are right.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from matryoshka_st.errors import UserError

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]

NEVER = float("inf")
ALWAYS = 0.0
PRICES = 64


@dataclass(frozen=True)
class CascadePoint:
    """What some thresholds do.

    Args:
        thresholds: One per prefix but the last; 0 always stops there, infinity never does.
        accuracy: Share of rows classified right, 0 to 1.
        expected_dims: Mean number of coordinates read per row.
    """

    thresholds: tuple[float, ...]
    accuracy: float
    expected_dims: float


def stops(confidence: Floats, thresholds: Sequence[float]) -> Ints:
    """The number (0 to K - 1) of the prefix at which each row stops: the first with ``confidence >= threshold``.

    >>> stops(np.array([[0.9, 0.2], [0.3, 0.2]]), [0.5])
    array([0, 1])
    """
    enough = confidence >= np.array([*thresholds, -NEVER])
    stop: Ints = np.argmax(enough, axis=1).astype(np.int64)
    return stop


def at_thresholds(
    confidence: Floats, correct: Bools, dims: Sequence[int], thresholds: Sequence[float]
) -> CascadePoint:
    """Accuracy and expected dims of a cascade."""
    stop = stops(confidence, thresholds)
    return CascadePoint(
        tuple(thresholds), float(_of(correct, stop).mean()), float(np.asarray(dims, np.float64)[stop].mean())
    )


def oracle(correct: Bools, dims: Sequence[int]) -> tuple[float, float]:
    """The bound of every cascade: accuracy and expected dims if each row stopped at the shortest prefix that is right.

    Rows that no prefix gets right count with the shortest.

    >>> oracle(np.array([[True, True], [False, True], [False, False]]), [8, 16])
    (0.6666666666666666, 10.666666666666666)
    """
    stop = np.argmax(correct, axis=1)
    return float(correct.any(axis=1).mean()), float(np.asarray(dims, np.float64)[stop].mean())


def frontier(confidence: Floats, correct: Bools, dims: Sequence[int]) -> list[CascadePoint]:
    """Thresholds for every trade-off between accuracy and dims, fewest dims first.

    Each point maximises ``accuracy - price * expected_dims`` for one price: given the other thresholds, the best one
    of a prefix is found exactly, among all that tell rows apart, from running sums in the order of confidence; the
    thresholds are visited in turn until none changes. Points beaten by another in both respects are left out.
    """
    problem = _Problem(confidence, correct, dims)
    thresholds = [NEVER] * (len(dims) - 1)
    points = {at_thresholds(confidence, correct, dims, thresholds)}
    for price in problem.prices():
        thresholds = problem.ascend(thresholds, price)
        points.add(at_thresholds(confidence, correct, dims, thresholds))
    kept: list[CascadePoint] = []
    for point in sorted(points, key=lambda point: (point.expected_dims, -point.accuracy)):
        if not kept or point.accuracy > kept[-1].accuracy:
            kept.append(point)
    return kept


def cheapest(
    confidence: Floats, correct: Bools, dims: Sequence[int], *, tolerance: float, level: float
) -> CascadePoint:
    """The fewest expected dims that keep the accuracy of the longest prefix, within a tolerance.

    The difference between the cascade and the longest prefix is a mean over rows of -1, 0 and 1; its one-sided lower
    confidence bound is not to be below ``-tolerance``. From every point of the frontier, each threshold in turn is set
    to the one that keeps to this with the fewest dims, until none changes; the best end is taken.

    Args:
        confidence: N x K.
        correct: N x K.
        dims: K.
        tolerance: Accuracy that may be lost, 0 to 1.
        level: Of the bound, 0.5 (the mean itself) up to below 1; normal approximation.

    Returns:
        The point on the held-out rows; never stopping early is always allowed.
    """
    problem = _Problem(confidence, correct, dims)
    quantile = NormalDist().inv_cdf(level)
    best = at_thresholds(confidence, correct, dims, [NEVER] * (len(dims) - 1))
    for start in [best, *frontier(confidence, correct, dims)]:
        thresholds = problem.descend(start.thresholds, tolerance, quantile)
        if thresholds is not None:
            point = at_thresholds(confidence, correct, dims, thresholds)
            best = min(best, point, key=lambda point: (point.expected_dims, -point.accuracy))
    return best


def grid_search(confidence: Floats, correct: Bools, dims: Sequence[int], samples: int = 100) -> CascadePoint:
    """The paper's thresholds: one prefix after the other, the smallest of a grid with which most rows are right.

    A prefix is looked at beside the next one alone: rows at or above the threshold take its answer, the others that of
    the next prefix.

    Args:
        confidence: N x K.
        correct: N x K.
        dims: K.
        samples: Thresholds tried for each prefix, evenly spaced from 0 to 1.
    """
    grid = np.linspace(0, 1, samples)
    thresholds = []
    for k in range(len(dims) - 1):
        stay = confidence[:, k, None] >= grid
        right = np.where(stay, correct[:, k, None], correct[:, k + 1, None]).mean(axis=0)
        thresholds.append(float(grid[np.argmax(right)]))
    return at_thresholds(confidence, correct, dims, thresholds)


def check_predictions(confidence: Floats, correct: Bools, dims: Sequence[int]) -> None:
    """Refuse arrays that do not fit together.

    Raises:
        UserError: Naming the shapes.
    """
    shape = (len(confidence), len(dims))
    if confidence.shape != shape or correct.shape != shape or not len(confidence):
        raise UserError(
            f"The confidences are {confidence.shape} and the answers {correct.shape} for {len(dims)} dims; give one "
            "of each per row and dim, for one row or more."
        )


class _Problem:
    """Held-out predictions, sorted once per prefix."""

    def __init__(self, confidence: Floats, correct: Bools, dims: Sequence[int]) -> None:
        check_predictions(confidence, correct, dims)
        self.confidence = confidence
        self.correct = correct.astype(np.float64)
        self.dims = np.asarray(dims, np.float64)
        self.order = np.argsort(-confidence, axis=0, kind="stable")

    def prices(self) -> Floats:
        """From next to nothing per dim to more than a right answer."""
        widths = np.diff(self.dims)
        least = 0.1 / (len(self.correct) * (self.dims[-1] - self.dims[0])) if len(widths) else 1.0
        return np.geomspace(least, 2 / widths.min(), PRICES) if len(widths) else np.empty(0)

    def ascend(self, thresholds: Sequence[float], price: float) -> list[float]:
        """Raise ``accuracy - price * dims`` one threshold at a time, the longest prefixes first, while that helps."""
        current = list(thresholds)
        values = self.correct - price * self.dims
        changed = True
        while changed:
            changed = False
            for k in reversed(range(len(current))):
                cuts = self.cuts(current, k)
                totals = cuts.totals(values)
                best = int(np.argmax(totals))
                if totals[best] > totals[cuts.now] + 1e-9:
                    current[k] = cuts.thresholds[best]
                    changed = True
        return current

    def descend(self, thresholds: Sequence[float], tolerance: float, quantile: float) -> list[float] | None:
        """Set one threshold at a time to the fewest dims with which the accuracy holds; ``None`` if it never does."""
        current = list(thresholds)
        lost = self.correct - self.correct[:, -1:]
        dims_NK = np.broadcast_to(self.dims, lost.shape)  # noqa: N806
        holding, changed = not current, True
        while changed:
            changed = False
            for k in reversed(range(len(current))):
                cuts = self.cuts(current, k)
                holds = _holds(cuts.totals(lost), cuts.totals(lost**2), len(lost), tolerance, quantile)
                dims = np.where(holds, cuts.totals(dims_NK), np.inf)
                best = int(np.argmin(dims))
                holding = bool(holds[best])
                if holding and dims[best] < dims[cuts.now] - 1e-9:
                    current[k] = cuts.thresholds[best]
                    changed = True
        return current if holding else None

    def cuts(self, thresholds: Sequence[float], k: int) -> _Cuts:
        """Every way to cut at prefix ``k``, the other thresholds as they are."""
        onward = list(thresholds)
        onward[k] = NEVER
        otherwise = stops(self.confidence, onward)
        reaching = otherwise > k
        return _Cuts(self.confidence[:, k], self.order[:, k], otherwise, reaching, k, thresholds[k])


class _Cuts:
    """All numbers of most confident rows that may stop at one prefix, from none on, rows of equal confidence together.

    Args:
        confidence: At the prefix, N.
        order: Rows by falling confidence.
        otherwise: Where each row stops if it does not stop here.
        reaching: Which rows come this far.
        k: The prefix.
        threshold: The one in force.
    """

    def __init__(
        self, confidence: Floats, order: Ints, otherwise: Ints, reaching: Bools, k: int, threshold: float
    ) -> None:
        self.k = k
        self.otherwise = otherwise
        self.rows = order[reaching[order]]
        falling = confidence[self.rows]
        ends = np.flatnonzero(np.append(falling[1:] < falling[:-1], True)) + 1 if len(falling) else np.empty(0, int)
        self.counts = np.concatenate([[0], ends]).astype(np.int64)
        above, below = falling[ends[:-1] - 1], falling[ends[:-1]]
        between = (above + below) / 2
        between = np.where(between > below, between, above)  # neighbours in floating point have nothing between them
        self.thresholds = [NEVER, *between.tolist(), *([ALWAYS] if len(ends) else [])]
        self.now = int(np.searchsorted(self.counts, int((falling >= threshold).sum())))

    def totals(self, values: Floats) -> Floats:
        """The sum over all rows of their value (N x K) where they stop, for each cut."""
        base = _of(values, self.otherwise)
        gains = values[self.rows, self.k] - base[self.rows]
        totals: Floats = base.sum() + np.concatenate([[0.0], np.cumsum(gains)])[self.counts]
        return totals


def _holds(sums: Floats, squares: Floats, rows: int, tolerance: float, quantile: float) -> Bools:
    mean = sums / rows
    error = np.sqrt(np.maximum(squares / rows - mean**2, 0) / rows)
    held: Bools = mean - quantile * error >= -tolerance - 1e-12
    return held


def _of(values: NDArray[np.generic], stop: Ints) -> Floats:
    return np.take_along_axis(values, stop[:, None], axis=1)[:, 0].astype(np.float64)
