"""Vectors as an index takes them: float32 rows, finite, prefixes renormalised."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from matryoshka_st.errors import UserError
from matryoshka_st.nesting import truncate_normalize

if TYPE_CHECKING:
    from matryoshka_st.retrieval.settings import Metric

Vectors = NDArray[np.float32]
_UNIT = 1e-5
_CHUNK = 65_536


def check_vectors(vectors: ArrayLike, what: str, width: int | None = None) -> Vectors:
    """Check vectors; those that are float32 rows already are not copied.

    Args:
        vectors: Shape ``[n, width]``, numbers.
        what: What they are, for the message: ``query``, ``vector``.
        width: The width they need, if it is known.

    Raises:
        UserError: If they are no rows of numbers, have another width, or one of them is not finite.
    """
    rows = np.asarray(vectors)
    if rows.ndim != 2 or rows.dtype.kind not in "fiu" or rows.shape[1] == 0:
        raise UserError(
            f"{what.capitalize()} vectors have shape {list(rows.shape)} and type {rows.dtype}; give numbers of shape "
            f"[n, {width or 'width'}], one row each."
        )
    if width is not None and rows.shape[1] != width:
        raise UserError(f"{what.capitalize()} vectors have {rows.shape[1]} dims, but the index has {width}.")
    checked = np.ascontiguousarray(rows, dtype=np.float32)
    finite = np.isfinite(_squared_norms(checked))
    if not finite.all():
        row = int(np.flatnonzero(~finite)[0])
        raise UserError(
            f"{what.capitalize()} vector {row} of {len(checked)} holds NaN, infinity or values beyond float32; "
            "leave it out or repair what made it."
        )
    return checked


def prefix(vectors: Vectors, dim: int, metric: Metric) -> Vectors:
    """The first ``dim`` coordinates, for ``cosine`` scaled to unit length.

    Vectors whose whole length is kept, and which are all within 1e-5 of unit length, are taken as they are.

    Args:
        vectors: Checked rows.
        dim: 1 to their width.
        metric: ``cosine`` or ``dot``.
    """
    if metric == "dot" or (dim == vectors.shape[1] and is_unit(vectors)):
        return np.ascontiguousarray(vectors[:, :dim])
    cut = np.empty((len(vectors), dim), dtype=np.float32)
    for start in range(0, len(vectors), _CHUNK):
        rows = np.array(vectors[start : start + _CHUNK, :dim])
        cut[start : start + _CHUNK] = truncate_normalize(torch.from_numpy(rows), dim).numpy()
    return cut


def is_unit(vectors: Vectors) -> bool:
    """Whether all rows have length 1 within 1e-5."""
    return bool((np.abs(_squared_norms(vectors) - 1) < 2 * _UNIT).all())


def _squared_norms(vectors: Vectors) -> Any:
    return np.einsum("nd,nd->n", vectors, vectors)
