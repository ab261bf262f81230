"""Ids of vectors: whole numbers or texts, each once, in an array that can be saved without pickle."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from matryoshka_st.errors import UserError

Ids = NDArray[Any]
"""int64 or text, shape ``[n]``."""

GivenIds = Sequence[int] | Sequence[str] | NDArray[Any]


def check_ids(ids: GivenIds | None, count: int) -> Ids:
    """Ids as an array.

    Args:
        ids: One per vector; default: 0 to count - 1.
        count: Number of vectors.

    Raises:
        UserError: If they are neither whole numbers nor texts, their number is another, or one stands there twice.
    """
    if ids is None:
        return np.arange(count)
    checked = _as_array(ids)
    if len(checked) != count:
        raise UserError(f"There are {len(checked)} ids for {count} vectors; give one id per vector.")
    values, counts = np.unique(checked, return_counts=True)
    if len(values) < len(checked):
        raise UserError(f"Id {values[counts > 1][0].item()!r} is given more than once; ids have to differ.")
    return checked


def new_ids(ids: GivenIds | None, count: int, known: Ids) -> Ids:
    """Ids for vectors to be added.

    Args:
        ids: One per vector; default: the whole numbers from the largest one known on.
        count: Number of vectors.
        known: Ids that are there.

    Raises:
        UserError: As :func:`check_ids`, and if one is known already or of another kind than those.
    """
    numbers = known.dtype.kind == "i"
    if ids is None:
        if not numbers:
            raise UserError("The ids of this index are texts; give one for each vector to add.")
        start = int(known.max()) + 1 if len(known) else 0
        return np.arange(start, start + count)
    checked = check_ids(ids, count)
    if len(checked) and len(known):
        _check_kind(checked, known)
    present = np.isin(checked, known)
    if present.any():
        raise UserError(f"Id {checked[present][0].item()!r} is in the index already; delete it first.")
    return checked


def rows_of(ids: GivenIds, known: Ids) -> NDArray[np.int64]:
    """Positions of ids.

    Raises:
        UserError: If one is not known.
    """
    wanted = _as_array(ids)
    if not len(wanted):
        return np.empty(0, dtype=np.int64)
    _check_kind(wanted, known)
    absent = ~np.isin(wanted, known)
    if absent.any():
        raise UserError(f"Id {wanted[absent][0].item()!r} is not in the index.")
    return np.flatnonzero(np.isin(known, wanted))


def _as_array(ids: GivenIds) -> Ids:
    if isinstance(ids, str):
        raise UserError(f"ids is {ids!r}; give a list of ids.")
    array = np.asarray(ids) if len(ids) else np.empty(0, dtype=np.int64)
    mixed = array.dtype.kind == "U" and not all(isinstance(value, str) for value in ids)
    if array.ndim != 1 or array.dtype.kind not in "iuU" or mixed:
        raise UserError("ids are neither all whole numbers nor all texts; give a flat list of one of the two.")
    if array.dtype.kind == "u" and array.max(initial=0) > np.iinfo(np.int64).max:
        raise UserError(
            f"Id {array.max()} is above 2^63 - 1, the largest whole number an id can be; give ids as texts."
        )
    return array if array.dtype.kind == "U" else array.astype(np.int64)


def _check_kind(ids: Ids, known: Ids) -> None:
    if len(known) and (ids.dtype.kind == "i") != (known.dtype.kind == "i"):
        kind = "whole numbers" if known.dtype.kind == "i" else "texts"
        raise UserError(f"Id {ids[0].item()!r} is of another kind than those of the index, which are {kind}.")
