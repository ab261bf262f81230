from __future__ import annotations

import pytest
import torch
from sklearn.decomposition import PCA, TruncatedSVD

from matryoshka_st.errors import UserError
from matryoshka_st.evaluation.steps import baseline, layer_norm, named_step


def vectors(count: int = 300, width: int = 12) -> torch.Tensor:
    x = torch.randn(count, width) * torch.linspace(0.2, 2.0, width) + 0.3
    return torch.nn.functional.normalize(x, dim=1)


def test_pca_is_that_of_scikit_learn() -> None:
    x = vectors()
    expected = PCA(5).fit(x.double().numpy()).transform(x.double().numpy())
    ours = baseline("pca", x, "some")(x)[:, :5]
    torch.testing.assert_close(ours.abs(), torch.tensor(expected, dtype=torch.float32).abs(), atol=1e-5, rtol=1e-4)


def test_svd_is_that_of_scikit_learn() -> None:
    x = vectors()
    expected = TruncatedSVD(5, algorithm="arpack").fit(x.double().numpy()).transform(x.double().numpy())
    ours = baseline("svd", x, "some")(x)[:, :5]
    torch.testing.assert_close(ours.abs(), torch.tensor(expected, dtype=torch.float32).abs(), atol=1e-5, rtol=1e-4)


def test_random_coordinates_follow_the_seed_and_lose_none() -> None:
    x = vectors()
    first, again, other = (baseline("random", x, "some", seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first(x), again(x))
    assert not torch.equal(first(x), other(x))
    assert torch.equal(first(x).sort(dim=1).values, x.sort(dim=1).values)
    assert (first.name, other.name) == ("random-1", "random-2")


def test_a_step_is_named_or_imported() -> None:
    x = vectors()
    assert torch.equal(named_step("layer_norm")(x), layer_norm(x))
    assert torch.equal(named_step("torch:neg")(x), -x)
    assert layer_norm(x).mean(dim=1).abs().max() < 1e-6


@pytest.mark.parametrize(
    "name", ["layernorm", "torch:no_such_function", "no_such_module:f", ":f", "torch:", ".relative:f"]
)
def test_an_unknown_step_is_refused(name: str) -> None:
    with pytest.raises(UserError, match=r"use layer_norm or package\.module:function"):
        named_step(name)


def test_an_unknown_baseline_is_refused() -> None:
    with pytest.raises(UserError, match=r"no baseline 'pcb'.*use pca, svd, random"):
        baseline("pcb", vectors(), "some")
