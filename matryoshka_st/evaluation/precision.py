"""What is left of a vector in fewer bits: float16, int8 with one calibration, or the signs.

Legend: n vectors, d coordinates.

int8 follows faiss's ``ScalarQuantizer`` (QT_8bit): 256 even steps between the least and the largest calibration value
of each coordinate, and the decoded values are compared. Binary follows sentence-transformers: bit 1 for values above
zero; compared as +1 and -1, whose cosine is ``1 - 2 * hamming / d``.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from matryoshka_st.errors import UserError, did_you_mean

Precision = Literal["float32", "float16", "int8", "binary"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)

_BITS: dict[Precision, int] = {"float32": 32, "float16": 16, "int8": 8, "binary": 1}
_STEPS = 255


class Ranges(NamedTuple):
    """The least and the largest value of each coordinate (d each), and what they were taken from."""

    low: Tensor
    high: Tensor
    source: str


def check_precision(name: str) -> Precision:
    """Check the name of a precision.

    Raises:
        UserError: If it is unknown.
    """
    for precision in PRECISIONS:
        if name == precision:
            return precision
    raise UserError(f"There is no precision {name!r}{did_you_mean(name, PRECISIONS)}; use {', '.join(PRECISIONS)}.")


def bytes_per_vector(dim: int, precision: Precision) -> int:
    """Bytes of one stored vector.

    >>> bytes_per_vector(384, "float32"), bytes_per_vector(100, "binary")
    (1536, 13)
    """
    return -(-dim * _BITS[precision] // 8)


def calibrate(vectors: Float[Tensor, "n d"], source: str) -> Ranges:
    """The ranges of some vectors.

    Args:
        vectors: At least one.
        source: What they are, for the record.
    """
    return Ranges(vectors.amin(dim=0), vectors.amax(dim=0), source)


def quantize(
    vectors: Float[Tensor, "n d"], precision: Precision, ranges: Ranges | None = None
) -> Float[Tensor, "n d"]:
    """The float32 values that vectors stored in this precision stand for.

    Args:
        vectors: What is stored.
        precision: How.
        ranges: Needed for int8.

    >>> quantize(torch.tensor([[0.3, -0.2, 0.0]]), "binary")
    tensor([[ 1., -1., -1.]])
    """
    if precision == "float16":
        return vectors.half().float()
    if precision == "binary":
        return torch.where(vectors > 0, 1.0, -1.0)
    if precision == "int8":
        if ranges is None:
            raise ValueError("int8 needs ranges")
        low, high = ranges.low.to(vectors.device), ranges.high.to(vectors.device)
        step = (high - low) / _STEPS
        codes = ((vectors - low) / step.clamp(min=torch.finfo(step.dtype).tiny)).round().clamp(0, _STEPS)
        return low + codes * step
    return vectors


def with_exact_length(signs: Float[Tensor, "n d"]) -> Float[Tensor, "n more"]:
    """Append constant whole numbers that make the length of +1/-1 vectors a power of two.

    Whoever normalises them then divides without rounding, so equal Hamming distances stay ties. Cosines become
    ``(d * cosine + p) / (d + p)``: no order, correlation or threshold-free metric changes.

    >>> with_exact_length(torch.tensor([[1.0, -1.0, 1.0]]))
    tensor([[ 1., -1.,  1.,  1.]])
    """
    dim = signs.shape[1]
    rest = 4 ** math.ceil((dim - 1).bit_length() / 2) - dim
    while rest > 0:
        constant = math.isqrt(rest)
        rest -= constant**2
        signs = F.pad(signs, (0, 1), value=float(constant))
    return signs
