"""Prefixes of an embedding: which ones are valid, and the one way to take them.

Matryoshka Representation Learning (Kusupati et al. 2022, arXiv 2205.13147, section 3): the first ``d`` coordinates of
an embedding are themselves an embedding, for every ``d`` in a set of nested dimensions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from matryoshka_st.errors import UserError


def truncate_normalize(x: Float[Tensor, "*batch width"], dim: int) -> Float[Tensor, "*batch dim"]:
    """Cut to the first ``dim`` coordinates, **then** scale to unit length.

    Args:
        x: Embeddings, last axis the width.
        dim: Coordinates kept, 1 to the width.

    Returns:
        Vectors of norm 1 (a zero prefix stays zero).

    Raises:
        UserError: If ``dim`` is not between 1 and the width.

    >>> import torch
    >>> truncate_normalize(torch.tensor([[3.0, 4.0, 12.0]]), 2)
    tensor([[0.6000, 0.8000]])
    """
    if not 1 <= dim <= x.shape[-1]:
        raise UserError(f"Cannot cut embeddings of width {x.shape[-1]} to {dim} dims; use 1 to {x.shape[-1]}.")
    return F.normalize(x[..., :dim], dim=-1)


def default_dims(width: int) -> tuple[int, ...]:
    """The usual ladder for a width: the width itself and the powers of two below it, down to 32 (or an eighth of it).

    >>> default_dims(384)
    (32, 64, 128, 256, 384)
    >>> default_dims(64)
    (8, 16, 32, 64)
    """
    smallest = min(32, max(1, width // 8))
    powers = [2**e for e in range(width.bit_length()) if smallest <= 2**e < width]
    return (*powers, width)


@dataclass(frozen=True)
class MatryoshkaDims:
    """A validated set of nested dims, ascending, each with the weight of its loss (paper, equation 1: ``c_m``).

    Build it with :meth:`of`; the constructor takes values that are already checked.
    """

    dims: tuple[int, ...]
    weights: tuple[float, ...]

    @classmethod
    def of(
        cls, dims: Sequence[int], weights: Sequence[float] | None = None, *, width: int | None = None
    ) -> MatryoshkaDims:
        """Check dims and weights and sort them.

        Args:
            dims: Numbers of leading coordinates, in any order.
            weights: One finite weight >= 0 per dim, in the order of ``dims``; not all zero. Default: 1 each.
            width: The embedding width that no dim may exceed, if known.

        Raises:
            UserError: If a dim is not an integer, below 1, repeated or above the width, or if weights do not fit.

        >>> MatryoshkaDims.of([64, 32], [1.0, 2.0], width=64)
        MatryoshkaDims(dims=(32, 64), weights=(2.0, 1.0))
        """
        if isinstance(dims, str) or not isinstance(dims, Sequence) or not dims:
            raise UserError(f"matryoshka_dims is {dims!r}; give at least one whole number, for example 256 128 64.")
        checked = [_check_dim(dim, width) for dim in dims]
        repeated = sorted({dim for dim in checked if checked.count(dim) > 1})
        if repeated:
            raise UserError(f"matryoshka_dims names {repeated[0]} more than once; name each dim once.")
        pairs = sorted(zip(checked, _check_weights(weights, len(checked)), strict=True))
        return cls(tuple(dim for dim, _ in pairs), tuple(weight for _, weight in pairs))

    def __len__(self) -> int:
        return len(self.dims)


def _check_dim(dim: Any, width: int | None) -> int:
    allowed = f"a whole number from 1 to {width}" if width is not None else "a whole number of 1 or more"
    if isinstance(dim, bool) or not isinstance(dim, int):
        raise UserError(f"matryoshka_dims holds {dim!r}, which is not an integer; each dim is {allowed}.")
    if dim < 1:
        raise UserError(f"matryoshka_dims holds {dim}; each dim is {allowed}.")
    if width is not None and dim > width:
        raise UserError(f"matryoshka_dims holds {dim}, above the model's width of {width}; each dim is {allowed}.")
    return dim


def _check_weights(weights: Sequence[float] | None, count: int) -> list[float]:
    if weights is None:
        return [1.0] * count
    if len(weights) != count:
        raise UserError(f"matryoshka_weights has {len(weights)} values for {count} dims; give one weight per dim.")
    values = [float(weight) for weight in weights]
    if any(not math.isfinite(value) or value < 0 for value in values) or not any(values):
        raise UserError(f"matryoshka_weights is {list(weights)}; weights are finite, not negative and not all zero.")
    return values
