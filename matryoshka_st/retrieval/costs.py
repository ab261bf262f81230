"""Operations of a query in theory, as the MRL paper counts them (arXiv 2205.13147, section 4.3), and bytes in RAM."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from matryoshka_st.evaluation.precision import Precision

WORD = 64


class Operations(NamedTuple):
    """What one query costs.

    Attributes:
        multiply_adds: Products of two coordinates that are summed.
        words: 64-bit words of signs that are compared (xor, count the ones, add).
    """

    multiply_adds: int
    words: int

    @property
    def total(self) -> int:
        """Both, a word counted as one operation."""
        return self.multiply_adds + self.words


def count_operations(
    count: int, dims: Sequence[int], shortlists: Sequence[int], precision: Precision, *, visited: int | None = None
) -> Operations:
    """Operations of one query through a cascade.

    Args:
        count: Vectors in the index.
        dims: Of the stages, ascending.
        shortlists: Candidates that each stage but the last keeps.
        precision: Of the first stage.
        visited: Vectors that the first stage compares with the query; default: all of them.

    >>> count_operations(10_000, [64, 384], [100], "float32")
    Operations(multiply_adds=678400, words=0)
    >>> count_operations(10_000, [384, 384], [100], "binary")
    Operations(multiply_adds=38400, words=60000)
    """
    compared = count if visited is None else visited
    rerank = sum(min(length, count) * dim for length, dim in zip(shortlists, dims[1:], strict=True))
    if precision == "binary":
        return Operations(rerank, compared * -(-dims[0] // WORD))
    return Operations(compared * dims[0] + rerank, 0)
