"""How well each prefix separates labelled texts: a linear probe and the nearest neighbour.

The two measures of the MRL paper (arXiv 2205.13147, section 4.2): a linear classifier on frozen vectors, and the
nearest of all training vectors. mteb's own classification score is neither: it fits on a few samples per label.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor

from matryoshka_st.errors import UserError
from matryoshka_st.nesting import MatryoshkaDims, truncate_normalize


@dataclass(frozen=True)
class ProbeScore:
    """Test accuracies (0 to 1) of one prefix."""

    dim: int
    linear: float
    nearest: float


def probe(
    train: Float[Tensor, "n width"],
    train_labels: Int[np.ndarray, " n"],
    test: Float[Tensor, "m width"],
    test_labels: Int[np.ndarray, " m"],
    dims: Sequence[int],
    *,
    max_iter: int = 1000,
) -> list[ProbeScore]:
    """Fit and score both at every dim, on unit vectors of the prefix.

    Args:
        train: Full-width vectors.
        train_labels: Their classes.
        test: Full-width vectors of other texts.
        test_labels: Their classes.
        dims: Prefix lengths, in any order.
        max_iter: Of the logistic regression (scikit-learn's defaults otherwise).

    Returns:
        One score per dim, wide dims first.

    Raises:
        UserError: If a dim is not valid or there are fewer than two classes.
    """
    if len(np.unique(train_labels)) < 2:
        raise UserError("The training texts have one label only; a probe needs two or more.")
    scores = []
    for dim in reversed(MatryoshkaDims.of(dims, width=train.shape[1]).dims):
        known, asked = (truncate_normalize(x, dim).cpu().numpy() for x in (train, test))
        linear = LogisticRegression(max_iter=max_iter).fit(known, train_labels)
        nearest = KNeighborsClassifier(n_neighbors=1, algorithm="brute").fit(known, train_labels)
        scores.append(
            ProbeScore(dim, float(linear.score(asked, test_labels)), float(nearest.score(asked, test_labels)))
        )
    return scores
