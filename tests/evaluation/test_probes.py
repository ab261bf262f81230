from __future__ import annotations

import numpy as np
import pytest
import torch

from matryoshka_st.errors import UserError
from matryoshka_st.evaluation.probes import probe


def clouds(count: int, seed: int) -> tuple[torch.Tensor, np.ndarray]:
    """Three classes told apart by coordinates 2 to 5 only; the first two are noise."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 3
    x = 0.3 * torch.randn(count, 8, generator=generator)
    x[torch.arange(count), 2 + labels] += 2.0
    return x, labels.numpy()


def test_a_prefix_scores_what_its_coordinates_tell() -> None:
    scores = probe(*clouds(300, 1), *clouds(150, 2), dims=[2, 8, 5])
    assert [score.dim for score in scores] == [8, 5, 2]
    by_dim = {score.dim: score for score in scores}
    assert min(by_dim[8].linear, by_dim[8].nearest, by_dim[5].linear) > 0.97
    assert max(by_dim[2].linear, by_dim[2].nearest) < 0.5


def test_the_nearest_neighbour_by_hand() -> None:
    train, train_labels = clouds(30, 3)
    test, test_labels = clouds(20, 4)
    unit = torch.nn.functional.normalize
    nearest = (unit(test[:, :4], dim=1) @ unit(train[:, :4], dim=1).T).argmax(dim=1)
    (score,) = probe(train, train_labels, test, test_labels, dims=[4])
    assert score.nearest == pytest.approx((train_labels[nearest] == test_labels).mean())


def test_one_label_is_refused() -> None:
    x, labels = clouds(9, 1)
    with pytest.raises(UserError, match="one label only"):
        probe(x, 0 * labels, x, labels, dims=[8])
