"""Adaptive classification: one classifier per prefix, and each row is answered by the first that is sure enough.

MRL-AC of the MRL paper (arXiv 2205.13147, section 4.2.1 and appendix) as a scikit-learn classifier. Easy rows are
classified by a few dims, and only the hard ones read the whole vector.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassifierMixin, clone
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, StratifiedShuffleSplit
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, has_fit_parameter, validate_data

from matryoshka_st.cascade import NEVER, CascadePoint, at_thresholds, cheapest, frontier, grid_search, oracle, stops
from matryoshka_st.errors import UserError
from matryoshka_st.nesting import MatryoshkaDims, default_dims, truncate_normalize

METHODS = ("tolerance", "grid")
FLOATS = (np.float64, np.float32)
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class AdaptiveReport:
    """How a cascade does on some rows. Accuracies and shares are 0 to 1.

    Args:
        dims: The prefixes, ascending.
        accuracy: Of the cascade.
        expected_dims: Mean coordinates read per row: the prefix where it stops.
        classifier_dims: Mean coordinates that went through a classifier per row: all prefixes up to that one, summed,
            since each has a classifier of its own.
        full_accuracy: Of the longest prefix for every row.
        oracle_accuracy: If each row stopped at the shortest prefix that is right; no cascade does better.
        oracle_dims: Expected dims of that, rows that no prefix gets right counting with the shortest.
        accuracy_per_dim: Of each prefix for every row.
        share_per_dim: Rows that stop at each prefix.
    """

    dims: tuple[int, ...]
    accuracy: float
    expected_dims: float
    classifier_dims: float
    full_accuracy: float
    oracle_accuracy: float
    oracle_dims: float
    accuracy_per_dim: tuple[float, ...]
    share_per_dim: tuple[float, ...]


class AdaptiveClassifier(ClassifierMixin, BaseEstimator):
    """A cascade of classifiers over nested prefixes, as a scikit-learn classifier.

    ``fit`` learns one classifier per prefix and a confidence threshold for each but the longest. The confidence is the
    largest predicted probability. Thresholds are learned from held-out predictions: out-of-fold ones of the training
    rows, after which the classifiers are fitted on all of them, or predictions for rows that are given.

    Args:
        matryoshka_dims: Prefixes to use, in any order. Default: the width and the powers of two below it.
        estimator: Any scikit-learn classifier with ``predict_proba``, cloned for each prefix. Default: logistic
            regression. Out-of-fold thresholds suit the final classifiers best where it takes ``sample_weight``, by
            which fewer rows count as much as all.
        tolerance: With the method ``tolerance``: accuracy that may be lost against the longest prefix, 0 to 1.
        level: With that method: confidence, from 0.5 to below 1, that no more is lost. The bound is one-sided, on the
            held-out rows, and does not count that the thresholds were chosen on them. 0.5 asks it of the mean alone.
        method: ``tolerance``: the fewest expected dims within the tolerance (:func:`matryoshka_st.cascade.cheapest`);
            ``grid``: the paper's grid search (:func:`matryoshka_st.cascade.grid_search`).
        cv: Folds for out-of-fold predictions, 2 or more, or the share of rows to hold out once, between 0 and 1.
        normalize: Scale each prefix to unit length, as it is used everywhere else; off for data that are no embeddings
            or a pipeline that scales by itself.
        random_state: Seed of the folds.

    Attributes:
        classes_: Labels.
        matryoshka_dims_: The prefixes, ascending.
        estimators_: The fitted classifier of each prefix.
        thresholds_: Of each prefix but the last; infinity never stops there.
        held_out_: What these thresholds do on the held-out rows.
        held_out_predictions_: Confidence and correctness of every prefix on these rows.
        frontier_: Other trade-offs, fewest dims first, on the held-out rows.

    Raises:
        UserError: If a parameter is not valid, or the rows cannot be split.

    >>> rng = np.random.default_rng(0)
    >>> y = np.arange(400) % 2
    >>> X = rng.normal(size=(400, 16)) + 1.5 * y[:, None] * np.linspace(1, 0, 16)
    >>> adaptive = AdaptiveClassifier([2, 16], tolerance=0.02).fit(X[:300], y[:300])
    >>> report = adaptive.evaluate(X[300:], y[300:])
    >>> report.expected_dims < 16 and report.accuracy > 0.8
    True
    """

    def __init__(
        self,
        matryoshka_dims: Sequence[int] | None = None,
        estimator: Any = None,
        *,
        tolerance: float = 0.005,
        level: float = 0.95,
        method: Literal["tolerance", "grid"] = "tolerance",
        cv: int | float = 5,
        normalize: bool = True,
        random_state: int | None = 13,
    ) -> None:
        self.matryoshka_dims = matryoshka_dims
        self.estimator = estimator
        self.tolerance = tolerance
        self.level = level
        self.method = method
        self.cv = cv
        self.normalize = normalize
        self.random_state = random_state

    def fit(
        self,
        X: ArrayLike,
        y: ArrayLike,
        held_out: tuple[ArrayLike, ArrayLike] | None = None,
    ) -> AdaptiveClassifier:
        """Fit the classifiers and learn the thresholds.

        Args:
            X: Vectors at full width, n x width.
            y: Their labels.
            held_out: Other vectors and labels to learn the thresholds from. Default: part of the training rows.
        """
        self._check_parameters()
        x, y = validate_data(self, X, y, dtype=FLOATS)
        check_classification_targets(y)
        self.classes_, codes = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise UserError(
                f"The training rows have 1 class only, {str(self.classes_[0])!r}; give two classes or more."
            )
        dims = default_dims(x.shape[1]) if self.matryoshka_dims is None else list(self.matryoshka_dims)
        self.matryoshka_dims_ = MatryoshkaDims.of(dims, width=x.shape[1]).dims
        if held_out is None:
            confidence, correct = self._out_of_fold(x, codes)
            self.estimators_ = self._fitted(x, codes)
        else:
            self.estimators_ = self._fitted(x, codes)
            confidence, correct = self.predictions(*held_out)
        self.held_out_predictions_ = confidence, correct
        self.frontier_ = frontier(confidence, correct, self.matryoshka_dims_)
        self.held_out_ = self._learned(confidence, correct)
        self.thresholds_ = self.held_out_.thresholds
        return self

    def predict(self, X: ArrayLike) -> NDArray[Any]:
        """The label of each row."""
        probabilities, _ = self._answers(X)
        labels: NDArray[Any] = self.classes_[probabilities.argmax(axis=1)]
        return labels

    def predict_proba(self, X: ArrayLike) -> Floats:
        """The probabilities (n x classes) by the prefix at which each row stops."""
        return self._answers(X)[0]

    def dims_used(self, X: ArrayLike) -> NDArray[np.int64]:
        """The prefix at which each row stops, in coordinates."""
        return np.asarray(self.matryoshka_dims_)[self._answers(X)[1]]

    def evaluate(self, X: ArrayLike, y: ArrayLike) -> AdaptiveReport:
        """Score the cascade beside its longest prefix, each prefix alone, and the oracle."""
        confidence, correct = self.predictions(X, y)
        dims = np.asarray(self.matryoshka_dims_)
        stop = stops(confidence, self.thresholds_)
        point = at_thresholds(confidence, correct, self.matryoshka_dims_, self.thresholds_)
        best, fewest = oracle(correct, self.matryoshka_dims_)
        alone = tuple(map(float, correct.mean(axis=0)))
        return AdaptiveReport(
            dims=self.matryoshka_dims_,
            accuracy=point.accuracy,
            expected_dims=point.expected_dims,
            classifier_dims=float(dims.cumsum()[stop].mean()),
            full_accuracy=alone[-1],
            oracle_accuracy=best,
            oracle_dims=fewest,
            accuracy_per_dim=alone,
            share_per_dim=tuple((np.bincount(stop, minlength=len(dims)) / len(stop)).tolist()),
        )

    def curve(self, X: ArrayLike, y: ArrayLike) -> list[CascadePoint]:
        """Accuracy against expected dims on some rows, for the thresholds of ``frontier_``."""
        confidence, correct = self.predictions(X, y)
        return [at_thresholds(confidence, correct, self.matryoshka_dims_, p.thresholds) for p in self.frontier_]

    def predictions(self, X: ArrayLike, y: ArrayLike) -> tuple[Floats, NDArray[np.bool_]]:
        """Confidence and correctness (n x dims) of every prefix on some rows, for :mod:`matryoshka_st.cascade`."""
        check_is_fitted(self, "estimators_")
        x, y = validate_data(self, X, y, dtype=FLOATS, reset=False)
        found = [
            self._probabilities(estimator, x, dim)
            for estimator, dim in zip(self.estimators_, self.matryoshka_dims_, strict=True)
        ]
        answers = [self.classes_[p.argmax(axis=1)] == y for p in found]
        return np.stack([p.max(axis=1) for p in found], axis=1), np.stack(answers, axis=1)

    def _check_parameters(self) -> None:
        if self.method not in METHODS:
            raise UserError(f"method is {self.method!r}; use {' or '.join(map(repr, METHODS))}.")
        if not 0 <= self.tolerance <= 1:
            raise UserError(f"tolerance is {self.tolerance}; it is a share of the rows, from 0 to 1.")
        if not 0.5 <= self.level < 1:
            raise UserError(f"level is {self.level}; it is a confidence from 0.5 to below 1.")
        folds = isinstance(self.cv, int) and self.cv >= 2
        if not folds and not (isinstance(self.cv, float) and 0 < self.cv < 1):
            raise UserError(f"cv is {self.cv!r}; give 2 folds or more, or a share of the rows between 0 and 1.")
        if not hasattr(self._base(), "predict_proba"):
            raise UserError(f"{self.estimator!r} has no predict_proba; give a classifier that tells probabilities.")

    def _base(self) -> Any:
        return LogisticRegression(max_iter=1000) if self.estimator is None else self.estimator

    def _learned(self, confidence: Floats, correct: NDArray[np.bool_]) -> CascadePoint:
        if self.method == "grid":
            return grid_search(confidence, correct, self.matryoshka_dims_)
        return cheapest(confidence, correct, self.matryoshka_dims_, tolerance=self.tolerance, level=self.level)

    def _prefix(self, x: NDArray[Any], dim: int) -> NDArray[Any]:
        prefix = np.array(x[:, :dim])
        if not self.normalize:
            return prefix
        unit: NDArray[Any] = truncate_normalize(torch.from_numpy(prefix), dim).numpy()
        return unit

    def _fitted(self, x: NDArray[Any], codes: NDArray[np.int64], weight: float = 1.0) -> list[Any]:
        """One classifier per prefix; each row weighs ``weight`` where the classifier can be told."""
        weights = (
            {"sample_weight": np.full(len(x), weight)} if has_fit_parameter(self._base(), "sample_weight") else {}
        )
        return [clone(self._base()).fit(self._prefix(x, dim), codes, **weights) for dim in self.matryoshka_dims_]

    def _probabilities(self, estimator: Any, x: NDArray[Any], dim: int) -> Floats:
        """N x classes; a class that the estimator has not seen gets 0."""
        known = estimator.predict_proba(self._prefix(x, dim))
        probabilities = np.zeros((len(x), len(self.classes_)))
        probabilities[:, estimator.classes_] = known
        return probabilities

    def _out_of_fold(self, x: NDArray[Any], codes: NDArray[np.int64]) -> tuple[Floats, NDArray[np.bool_]]:
        largest = int(np.bincount(codes).max())
        if largest < 2:
            raise UserError("No class has 2 rows, so none can be held out; give more rows, or held_out rows.")
        confidence: list[Floats] = []
        correct: list[NDArray[np.bool_]] = []
        for train, asked in self._splits(codes, largest):
            # fewer rows against the same regularisation would make the classifiers less sure than those fitted on all
            estimators = self._fitted(x[train], codes[train], len(x) / len(train))
            found = [
                self._probabilities(estimator, x[asked], dim)
                for estimator, dim in zip(estimators, self.matryoshka_dims_, strict=True)
            ]
            confidence.append(np.stack([p.max(axis=1) for p in found], axis=1))
            correct.append(np.stack([p.argmax(axis=1) == codes[asked] for p in found], axis=1))
        return np.concatenate(confidence), np.concatenate(correct)

    def _splits(self, codes: NDArray[np.int64], largest: int) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
        if isinstance(self.cv, float):
            split = StratifiedShuffleSplit(1, test_size=self.cv, random_state=self.random_state)
        else:
            split = StratifiedKFold(min(self.cv, largest), shuffle=True, random_state=self.random_state)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The least populated class")  # it is then missing from some folds
            try:
                splits = list(split.split(codes, codes))
            except ValueError as error:
                reason = str(error).rstrip(".")
                raise UserError(
                    f"The rows cannot be split ({reason}); give another cv, more rows, or held_out rows."
                ) from error
        if any(len(np.unique(codes[train])) < 2 for train, _ in splits):
            raise UserError("A split leaves one class only to train on; give another cv, more rows, or held_out rows.")
        return splits

    def _answers(self, X: ArrayLike) -> tuple[Floats, NDArray[np.int64]]:
        """Probabilities, and the number of the prefix that gave them; a prefix sees only the rows that come to it."""
        check_is_fitted(self)
        x = validate_data(self, X, dtype=FLOATS, reset=False)
        probabilities = np.zeros((len(x), len(self.classes_)))
        stop = np.zeros(len(x), np.int64)
        left = np.arange(len(x))
        for k, (dim, threshold) in enumerate(zip(self.matryoshka_dims_, (*self.thresholds_, -NEVER), strict=True)):
            if not len(left):
                break
            probabilities[left] = self._probabilities(self.estimators_[k], x[left], dim)
            stop[left] = k
            left = left[probabilities[left].max(axis=1) < threshold]
        return probabilities, stop
