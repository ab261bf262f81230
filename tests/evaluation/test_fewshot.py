"""Few-shot and long-tail accuracy by the nearest class mean, against scikit-learn's and against counting by hand."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from sklearn.neighbors import NearestCentroid
from torch import Tensor

from matryoshka_st.errors import UserError
from matryoshka_st.evaluation.fewshot import FewShotScore, few_shot, long_tail, nearest_class_mean, tail_scores

CLASSES = 6


def vectors(rows: int, seed: int) -> tuple[Tensor, NDArray[np.int64]]:
    """Classes that lie apart in the leading coordinates; each of ``rows`` classes in turn."""
    centres = torch.randn(CLASSES, 16, generator=torch.Generator().manual_seed(0)) * torch.linspace(1.5, 0.1, 16)
    labels = np.arange(rows) % CLASSES
    noise = torch.randn(rows, 16, generator=torch.Generator().manual_seed(seed))
    return centres[labels] + noise, labels


@pytest.mark.parametrize("dim", [3, 16])
def test_the_nearest_mean_is_scikit_learns(dim: int) -> None:
    (train, labels), (test, _) = vectors(70, 1), vectors(500, 2)
    got = nearest_class_mean(train, torch.from_numpy(labels), test, dim)
    known, asked = (F.normalize(x[:, :dim], dim=1).numpy() for x in (train, test))
    assert got.tolist() == NearestCentroid().fit(known, labels).predict(asked).tolist()


def test_more_shots_and_more_dims_know_more() -> None:
    scores = few_shot(*vectors(600, 1), *vectors(1200, 2), [2, 16], shots=[1, 4, 16], draws=8)
    assert [(score.dim, score.shots) for score in scores] == [(16, 1), (16, 4), (16, 16), (2, 1), (2, 4), (2, 16)]
    mean = {(score.dim, score.shots): score.mean for score in scores}
    assert mean[16, 1] < mean[16, 4] < mean[16, 16]
    assert all(mean[2, shots] < mean[16, shots] for shots in (1, 4, 16))
    assert all(len(score.accuracies) == 8 and 0 < score.spread < 0.2 for score in scores)


def test_a_draw_is_what_the_seed_says_whatever_the_dims_and_shots() -> None:
    data = (*vectors(600, 1), *vectors(300, 2))
    whole = {(s.dim, s.shots): s.accuracies for s in few_shot(*data, [4, 16], shots=[1, 2, 8], draws=4, seed=5)}
    part = few_shot(*data, [4], shots=[2], draws=2, seed=5)
    assert part == [FewShotScore(4, 2, whole[4, 2][:2])]
    assert few_shot(*data, [4], shots=[2], draws=2, seed=6) != part
    assert few_shot(*data, [4], shots=[2], draws=1)[0].spread == 0


def test_shots_beyond_a_class_use_all_of_it() -> None:
    train, labels = vectors(60, 1)
    test, asked = vectors(300, 2)
    all_of_it = nearest_class_mean(train, torch.from_numpy(labels), test, 16).numpy() == asked
    (score,) = few_shot(train, labels, test, asked, [16], shots=[10_000], draws=1)
    assert score.mean == pytest.approx(all_of_it.mean())


def test_class_sizes_fall_exponentially_in_a_drawn_order() -> None:
    labels = np.repeat(np.arange(5), 200)
    rows, rank = long_tail(labels, largest=100, imbalance=100, seed=1)
    sizes = Counter(labels[rows].tolist())
    assert [sizes[c] for c in np.argsort(rank)] == [100, 32, 10, 3, 1]
    assert sorted(rank) == [0, 1, 2, 3, 4] and rank.tolist() != [0, 1, 2, 3, 4]
    again, _ = long_tail(labels, largest=100, imbalance=100, seed=1)
    other, _ = long_tail(labels, largest=100, imbalance=100, seed=2)
    assert rows.tolist() == again.tolist() != other.tolist()
    assert len(set(rows)) == len(rows) == 146


def test_a_small_class_gives_what_it_has() -> None:
    labels = np.repeat(np.arange(4), 7)
    rows, _ = long_tail(labels, largest=100, imbalance=2, seed=0)
    assert len(rows) == 28


def test_the_tail_is_harder_and_the_groups_make_up_the_whole() -> None:
    data = (*vectors(1200, 1), *vectors(1200, 2))
    wide, narrow = tail_scores(*data, [3, 16], largest=100, imbalance=100, draws=6)
    assert (wide.dim, narrow.dim) == (16, 3)
    mean = {name: np.mean(values) for name, values in wide.accuracies.items()}
    assert mean["head"] > mean["tail"] + 0.05
    for draw in range(6):
        of = {name: values[draw] for name, values in wide.accuracies.items()}
        assert of["all"] == pytest.approx((of["head"] + of["middle"] + of["tail"]) / 3)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"shots": [0]}, r"shots is \[0\] and draws 10; give whole numbers of 1 or more"),
        ({"draws": 0}, "draws 0; give whole numbers of 1 or more"),
        ({"dims": [17]}, "matryoshka_dims holds 17, above the model's width of 16"),
    ],
)
def test_bad_arguments_are_refused(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        few_shot(*vectors(60, 1), *vectors(60, 2), **{"dims": [4], **options})


def test_classes_without_examples_are_refused() -> None:
    train, labels = vectors(60, 1)
    keep = labels != 2
    with pytest.raises(UserError, match="Class 2 has no training vector; give one or more of every class"):
        few_shot(train[torch.from_numpy(keep)], labels[keep], train, labels, [4])
    with pytest.raises(UserError, match="There are 2 classes and 10 draws; head, middle and tail need 3"):
        tail_scores(train, labels % 2, train, labels % 2, [4])
    with pytest.raises(UserError, match=r"imbalance 0\.5; both are 1 or more"):
        long_tail(labels, largest=10, imbalance=0.5, seed=0)
