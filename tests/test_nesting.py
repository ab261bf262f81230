"""Which prefixes are valid, and how one is taken."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from matryoshka_st.errors import UserError
from matryoshka_st.nesting import MatryoshkaDims, default_dims, truncate_normalize


@given(st.integers(1, 12), st.floats(1e-3, 1e3))
def test_a_prefix_is_cut_then_scaled_to_length_one(dim: int, scale: float) -> None:
    x = torch.randn(5, 12)
    cut = truncate_normalize(x * scale, dim)
    assert cut.shape == (5, dim)
    torch.testing.assert_close(cut.norm(dim=1), torch.ones(5))
    torch.testing.assert_close(cut, x[:, :dim] / x[:, :dim].norm(dim=1, keepdim=True), rtol=1e-4, atol=1e-5)


def test_a_zero_prefix_stays_zero() -> None:
    assert not truncate_normalize(torch.tensor([[0.0, 0.0, 5.0]]), 2).any()


@pytest.mark.parametrize("dim", [0, -1, 13])
def test_a_cut_outside_the_width_is_refused(dim: int) -> None:
    with pytest.raises(UserError, match=f"width 12 to {dim} dims; use 1 to 12"):
        truncate_normalize(torch.randn(2, 12), dim)


@pytest.mark.parametrize(
    ("dims", "sentence"),
    [
        ([0], "holds 0; each dim is a whole number from 1 to 384"),
        ([-8], "holds -8; each dim"),
        ([385], "holds 385, above the model's width of 384"),
        ([64, 32, 64], "names 64 more than once"),
        ([12.5], r"holds 12\.5, which is not an integer"),
        ([True], "holds True, which is not an integer"),
        (["64"], "holds '64', which is not an integer"),
        ([], "give at least one whole number"),
        ("384", "give at least one whole number"),
    ],
)
def test_bad_dims(dims: Any, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        MatryoshkaDims.of(dims, width=384)


@pytest.mark.parametrize("weights", [[1.0, -1.0], [0.0, 0.0], [float("nan"), 1.0], [float("inf"), 1.0]])
def test_bad_weights(weights: list[float]) -> None:
    with pytest.raises(UserError, match="weights are finite, not negative and not all zero"):
        MatryoshkaDims.of([2, 4], weights)


@given(st.lists(st.integers(1, 5000), min_size=1, unique=True))
def test_dims_come_out_ascending_with_their_own_weights(dims: list[int]) -> None:
    nesting = MatryoshkaDims.of(dims, [float(dim) for dim in dims])
    assert list(nesting.dims) == sorted(dims)
    assert nesting.weights == tuple(float(dim) for dim in nesting.dims)


@given(st.integers(1, 8192))
def test_the_default_ladder_ends_in_the_width_and_is_valid(width: int) -> None:
    dims = default_dims(width)
    assert dims[-1] == width
    assert MatryoshkaDims.of(dims, width=width).dims == dims
