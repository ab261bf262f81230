"""What prefixes know of classes with few examples: nearest class mean, few-shot and on a long tail.

The MRL paper's few-shot and long-tail measurements (arXiv 2205.13147, section 4.3), on text. A vector belongs to the
class whose mean of unit-length prefixes is nearest (Mensink et al. 2013); nothing is trained on the classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from torch import Tensor

from matryoshka_st.errors import UserError
from matryoshka_st.nesting import MatryoshkaDims, truncate_normalize

GROUPS = ("head", "middle", "tail")
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class FewShotScore:
    """Test accuracies (0 to 1) of one prefix with so many examples per class, one for each draw of examples."""

    dim: int
    shots: int
    accuracies: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Over the draws."""
        return float(np.mean(self.accuracies))

    @property
    def spread(self) -> float:
        """Standard deviation over the draws; 0 for one."""
        return float(np.std(self.accuracies, ddof=1)) if len(self.accuracies) > 1 else 0.0


@dataclass(frozen=True)
class TailScore:
    """Test accuracies (0 to 1) of one prefix in each group of classes, one for each draw of the long tail."""

    dim: int
    accuracies: dict[str, tuple[float, ...]]


def nearest_class_mean(
    train: Float[Tensor, "n width"],
    train_labels: Int[Tensor, " n"],
    test: Float[Tensor, "m width"],
    dim: int,
) -> Int[Tensor, " m"]:
    """The class with the nearest mean, for each vector, by the prefix of ``dim`` coordinates.

    Args:
        train: Full-width vectors.
        train_labels: Their classes, from 0 on; each has one vector or more.
        test: Full-width vectors.
        dim: The prefix.
    """
    known, asked = truncate_normalize(train, dim), truncate_normalize(test, dim)
    counts = torch.bincount(train_labels)
    sums = known.new_zeros(len(counts), dim).index_add_(0, train_labels, known)
    means = sums / counts[:, None]
    # |x - m|^2 without the part that is the same for all classes
    return (2 * asked @ means.T - means.square().sum(dim=1)).argmax(dim=1)


def few_shot(
    train: Float[Tensor, "n width"],
    train_labels: Ints,
    test: Float[Tensor, "m width"],
    test_labels: Ints,
    dims: Sequence[int],
    *,
    shots: Sequence[int] = (1, 2, 4, 8, 16, 32),
    draws: int = 10,
    seed: int = 13,
) -> list[FewShotScore]:
    """Nearest-class-mean accuracy for every prefix and number of examples per class.

    All prefixes and models see the same examples, and those of few shots are among those of more. A class with fewer
    examples gives what it has.

    Args:
        train: Full-width vectors to draw examples from.
        train_labels: Their classes, from 0 on.
        test: Full-width vectors of other texts.
        test_labels: Their classes.
        dims: Prefix lengths, in any order.
        shots: Examples per class.
        draws: How often they are drawn.
        seed: Of the draws.

    Returns:
        One score per dim and number of shots, wide dims first.

    Raises:
        UserError: If a dim, ``shots`` or ``draws`` is not valid, or a class is missing from the training vectors.
    """
    if not shots or min(shots) < 1 or draws < 1:
        raise UserError(f"shots is {list(shots)} and draws {draws}; give whole numbers of 1 or more.")
    widths = MatryoshkaDims.of(dims, width=train.shape[1]).dims[::-1]
    _check_classes(train_labels, test_labels)
    found: dict[tuple[int, int], list[float]] = {(dim, count): [] for dim in widths for count in sorted(shots)}
    for number in range(draws):
        rank = _ranks(train_labels, np.random.default_rng([seed, number]))
        for dim, count in found:
            rows = np.flatnonzero(rank < count)
            right = _right(train, train_labels, test, test_labels, rows, dim)
            found[dim, count].append(float(right.double().mean()))
    return [FewShotScore(dim, count, tuple(values)) for (dim, count), values in found.items()]


def long_tail(labels: Ints, *, largest: int, imbalance: float, seed: int) -> tuple[Ints, Ints]:
    """Draw a long-tailed part of some rows: class sizes fall exponentially, in a drawn order of classes.

    The class of rank ``r`` (0 to C - 1) keeps ``largest * imbalance ** (-r / (C - 1))`` rows, rounded, one at least,
    and no more than it has (Cui et al. 2019, arXiv 1901.05555, section 5.1).

    Args:
        labels: Classes of all rows, from 0 on.
        largest: Rows of the first class.
        imbalance: How many times smaller the last class is; 1 or more.
        seed: Of the order of classes and of the rows.

    Returns:
        The rows, ascending, and the rank of each class.

    Raises:
        UserError: If a number is not valid.
    """
    if largest < 1 or imbalance < 1:
        raise UserError(f"largest is {largest} and imbalance {imbalance}; both are 1 or more.")
    rng = np.random.default_rng(seed)
    classes = int(labels.max()) + 1
    rank_of_class = rng.permutation(classes)
    sizes = np.maximum(1, np.rint(largest * imbalance ** (-rank_of_class / max(classes - 1, 1)))).astype(np.int64)
    rows = np.flatnonzero(_ranks(labels, rng) < sizes[labels])
    return rows, rank_of_class


def tail_scores(
    train: Float[Tensor, "n width"],
    train_labels: Ints,
    test: Float[Tensor, "m width"],
    test_labels: Ints,
    dims: Sequence[int],
    *,
    largest: int = 100,
    imbalance: float = 100.0,
    draws: int = 10,
    seed: int = 13,
) -> list[TailScore]:
    """Nearest-class-mean accuracy in the head, middle and tail (thirds of the classes) of long-tailed training rows.

    Args:
        train: Full-width vectors to draw from.
        train_labels: Their classes, from 0 on.
        test: Full-width vectors of other texts.
        test_labels: Their classes.
        dims: Prefix lengths, in any order.
        largest: See :func:`long_tail`.
        imbalance: See :func:`long_tail`.
        draws: How often the tail is drawn, with another order of classes.
        seed: Of the draws.

    Returns:
        One score per dim, wide dims first; ``all`` is the accuracy on all test rows.

    Raises:
        UserError: If an argument is not valid, there are fewer than 3 classes, or one is missing.
    """
    widths = MatryoshkaDims.of(dims, width=train.shape[1]).dims[::-1]
    _check_classes(train_labels, test_labels)
    classes = int(train_labels.max()) + 1
    if classes < len(GROUPS) or draws < 1:
        raise UserError(f"There are {classes} classes and {draws} draws; head, middle and tail need 3 and 1 or more.")
    found: dict[int, dict[str, list[float]]] = {dim: {name: [] for name in ("all", *GROUPS)} for dim in widths}
    for number in range(draws):
        rows, rank_of_class = long_tail(train_labels, largest=largest, imbalance=imbalance, seed=seed + number)
        group = rank_of_class[test_labels] * len(GROUPS) // classes
        for dim, values in found.items():
            right = _right(train, train_labels, test, test_labels, rows, dim).double().cpu().numpy()
            values["all"].append(float(right.mean()))
            for i, name in enumerate(GROUPS):
                values[name].append(float(right[group == i].mean()))
    return [TailScore(dim, {name: tuple(of) for name, of in values.items()}) for dim, values in found.items()]


def _right(
    train: Tensor, train_labels: Ints, test: Tensor, test_labels: Ints, rows: Ints, dim: int
) -> Bool[Tensor, " m"]:
    chosen = torch.from_numpy(rows).to(train.device)
    labels = torch.from_numpy(train_labels).to(train.device)
    answers = nearest_class_mean(train[chosen], labels[chosen], test, dim)
    return answers == torch.from_numpy(test_labels).to(train.device)


def _ranks(labels: Ints, rng: np.random.Generator) -> Ints:
    """The place of each row among those of its class, in a drawn order."""
    order = rng.permutation(len(labels))
    by_class = order[np.argsort(labels[order], kind="stable")]
    starts = np.concatenate([[0], np.cumsum(np.bincount(labels))[:-1]])
    ranks = np.empty(len(labels), np.int64)
    ranks[by_class] = np.arange(len(labels)) - starts[labels[by_class]]
    return ranks


def _check_classes(train_labels: Ints, test_labels: Ints) -> None:
    classes = max(int(train_labels.max()), int(test_labels.max())) + 1
    missing = np.flatnonzero(np.bincount(train_labels, minlength=classes) == 0)
    if len(missing):
        raise UserError(f"Class {missing[0]} has no training vector; give one or more of every class.")
