"""The adaptive classifier: a scikit-learn estimator whose cascade keeps the accuracy of the full width."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.model_selection import GridSearchCV
from sklearn.naive_bayes import GaussianNB
from sklearn.utils.estimator_checks import parametrize_with_checks

from matryoshka_st.adaptive import AdaptiveClassifier
from matryoshka_st.errors import UserError
from matryoshka_st.nesting import truncate_normalize

DIMS = [4, 16, 64]


def nested(rows: int, seed: int, classes: int = 5, width: int = 64) -> tuple[NDArray[Any], NDArray[Any]]:
    """Unit vectors whose leading coordinates say most, as a Matryoshka model makes them."""
    centres = np.random.default_rng(0).normal(size=(classes, width)) * np.linspace(1, 0.3, width)
    rng = np.random.default_rng(seed)
    labels = rng.integers(classes, size=rows)
    vectors = centres[labels] + rng.normal(size=(rows, width)) * 1.4
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True), np.array(list("abcde"))[labels]


@parametrize_with_checks([AdaptiveClassifier(), AdaptiveClassifier(cv=0.3, method="grid", normalize=False)])
def test_it_is_a_scikit_learn_classifier(estimator: Any, check: Any) -> None:
    check(estimator)


def test_the_accuracy_is_that_of_the_full_width_at_fewer_dims() -> None:
    adaptive = AdaptiveClassifier(DIMS, tolerance=0.01, level=0.99).fit(*nested(3000, 1))
    report = adaptive.evaluate(*nested(6000, 2))
    assert report.accuracy >= report.full_accuracy - 0.01
    assert report.expected_dims < 0.75 * 64
    assert report.full_accuracy > max(report.accuracy_per_dim[:-1]) + 0.03
    assert adaptive.held_out_.accuracy == pytest.approx(report.accuracy, abs=0.03)


def test_the_report_counts_what_predict_does() -> None:
    adaptive = AdaptiveClassifier(DIMS).fit(*nested(1500, 1))
    x, y = nested(500, 2)
    report, used = adaptive.evaluate(x, y), adaptive.dims_used(x)
    assert report.accuracy == adaptive.score(x, y)
    assert report.expected_dims == pytest.approx(used.mean())
    assert report.classifier_dims == pytest.approx(np.array([{4: 4, 16: 20, 64: 84}[dim] for dim in used]).mean())
    assert report.share_per_dim == pytest.approx([(used == dim).mean() for dim in DIMS])
    assert report.oracle_accuracy >= max(report.accuracy, *report.accuracy_per_dim)
    assert report.oracle_dims <= report.expected_dims


def test_each_row_is_answered_by_the_first_prefix_that_is_sure_enough() -> None:
    adaptive = AdaptiveClassifier(DIMS, tolerance=0.05).fit(*nested(1500, 1))
    x, _ = nested(300, 2)
    for row, got, used in zip(x, adaptive.predict_proba(x), adaptive.dims_used(x), strict=True):
        for dim, classifier, threshold in zip(DIMS, adaptive.estimators_, (*adaptive.thresholds_, 0.0), strict=True):
            prefix = truncate_normalize(torch.from_numpy(row[None]), dim).numpy()
            want = classifier.predict_proba(prefix)[0]
            if want.max() >= threshold:
                break
        assert used == dim
        np.testing.assert_allclose(got, want, atol=1e-12)
    assert len(set(adaptive.dims_used(x))) == 3


def test_the_prefixes_see_nothing_beyond_them() -> None:
    adaptive = AdaptiveClassifier([4], normalize=False).fit(*nested(500, 1))
    x, _ = nested(50, 2)
    other = np.concatenate([x[:, :4], np.zeros((50, 60))], axis=1)
    np.testing.assert_array_equal(adaptive.predict_proba(x), adaptive.predict_proba(other))


def test_given_rows_set_the_thresholds() -> None:
    train, held_out, test = nested(1500, 1), nested(1500, 2), nested(400, 3)
    adaptive = AdaptiveClassifier(DIMS).fit(*train, held_out=held_out)
    assert adaptive.held_out_.accuracy == adaptive.score(*held_out)
    unsure = (held_out[0], np.roll(held_out[1], 1))
    wrong = AdaptiveClassifier(DIMS, tolerance=0.0, level=0.5).fit(*train, held_out=unsure)
    assert wrong.thresholds_ != adaptive.thresholds_
    assert [e.coef_.tolist() for e in wrong.estimators_] == [e.coef_.tolist() for e in adaptive.estimators_]
    assert adaptive.evaluate(*test).dims == (4, 16, 64)


def test_the_tolerance_trades_accuracy_for_dims() -> None:
    train, test = nested(3000, 1), nested(2000, 2)
    spent = [
        AdaptiveClassifier(DIMS, tolerance=tolerance).fit(*train).evaluate(*test).expected_dims
        for tolerance in (0.0, 0.01, 0.05, 1.0)
    ]
    assert spent == sorted(spent, reverse=True) and len(set(spent)) == 4
    assert spent[-1] == 4
    curve = AdaptiveClassifier(DIMS).fit(*train).curve(*test)
    assert [point.expected_dims for point in curve] == sorted(point.expected_dims for point in curve)
    assert curve[0].expected_dims == 4 and len(curve) > 10


def test_any_classifier_with_probabilities_will_do_and_parameters_can_be_searched() -> None:
    x, y = nested(600, 1)
    search = GridSearchCV(AdaptiveClassifier(DIMS, GaussianNB(), cv=0.25), {"tolerance": [0.0, 0.2]}, cv=2).fit(x, y)
    assert search.best_score_ > 0.6
    nested_parameter = AdaptiveClassifier(DIMS, LogisticRegression()).set_params(estimator__C=0.5)
    assert nested_parameter.estimator.C == 0.5


def test_a_class_with_one_row_is_kept() -> None:
    x, y = nested(300, 1)
    y = np.where(np.arange(300) == 7, "rare", y)
    adaptive = AdaptiveClassifier(DIMS).fit(x, y)
    assert "rare" in adaptive.classes_ and adaptive.predict_proba(x).shape == (300, 6)


@pytest.mark.parametrize(
    ("parameters", "sentence"),
    [
        ({"matryoshka_dims": [65]}, "matryoshka_dims holds 65, above the model's width of 64"),
        ({"tolerance": 1.5}, r"tolerance is 1\.5; it is a share of the rows, from 0 to 1"),
        ({"level": 1.0}, r"level is 1\.0; it is a confidence from 0\.5 to below 1"),
        ({"cv": 1}, "cv is 1; give 2 folds or more, or a share of the rows between 0 and 1"),
        ({"cv": 1.5}, r"cv is 1\.5; give 2 folds or more"),
        ({"method": "best"}, "method is 'best'; use 'tolerance' or 'grid'"),
        ({"estimator": RidgeClassifier()}, r"RidgeClassifier\(\) has no predict_proba; give a classifier that tells"),
    ],
)
def test_bad_parameters_are_refused(parameters: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        AdaptiveClassifier(**parameters).fit(*nested(100, 1))


@pytest.mark.parametrize(
    ("cv", "labels", "sentence"),
    [
        (0.2, ["rare", *["a", "b"] * 50], r"The rows cannot be split \(The least populated class.*\); give an"),
        (0.2, [n % 40 for n in range(101)], r"The rows cannot be split \(The test_size = 21 should be .*\); give an"),
        (5, ["rare", *["a"] * 100], "A split leaves one class only to train on; give another cv, more rows, or"),
    ],
    ids=["a class of one row", "more classes than held-out rows", "a fold without the second class"],
)
def test_rows_that_cannot_be_held_out_are_refused(cv: float, labels: list[Any], sentence: str) -> None:
    x, _ = nested(101, 1)
    with pytest.raises(UserError, match=sentence):
        AdaptiveClassifier(DIMS, cv=cv).fit(x, labels)
    assert len(AdaptiveClassifier(DIMS).fit(x, labels, held_out=(x, labels)).thresholds_) == 2


def test_bad_rows_are_refused() -> None:
    x, y = nested(100, 1)
    with pytest.raises(UserError, match="1 class only, 'a'; give two classes or more"):
        AdaptiveClassifier().fit(x, np.full(100, "a"))
    with pytest.raises(UserError, match="No class has 2 rows, so none can be held out"):
        AdaptiveClassifier().fit(x[:2], ["a", "b"])
    fitted = AdaptiveClassifier(DIMS).fit(x, y)
    with pytest.raises(ValueError, match="X has 63 features, but AdaptiveClassifier is expecting 64"):
        fitted.predict(x[:, :63])
    x[3, 5] = np.nan
    with pytest.raises(ValueError, match="contains NaN"):
        fitted.predict(x)
