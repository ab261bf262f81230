"""The nested InfoNCE numerics: pure functions on tensors, no model in sight."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from matryoshka_st.errors import UserError
from matryoshka_st.infonce import tiled
from matryoshka_st.nesting import MatryoshkaDims

DirectionName = Literal["query_to_doc", "query_to_query", "doc_to_query", "doc_to_doc"]
PartitionMode = Literal["joint", "per_direction"]
QUERIES, DOCUMENTS = 0, 1

_DIRECTIONS: dict[str, tuple[int, int, bool]] = {
    "query_to_doc": (QUERIES, DOCUMENTS, False),
    "query_to_query": (QUERIES, QUERIES, True),
    "doc_to_query": (DOCUMENTS, QUERIES, False),
    "doc_to_doc": (DOCUMENTS, DOCUMENTS, True),
}


def nested_infonce(
    queries: Float[Tensor, "batch width"],
    documents: Float[Tensor, "documents width"],
    *,
    matryoshka_dims: Sequence[int],
    matryoshka_weights: Sequence[float] | None = None,
    scale: float = 20.0,
    directions: Sequence[DirectionName] = ("query_to_doc",),
    partition_mode: PartitionMode = "joint",
) -> Float[Tensor, " prefixes"]:
    """Weighted InfoNCE of every prefix of the embeddings, in one pass over the width.

    The same values and gradients as evaluating sentence-transformers' ``MultipleNegativesRankingLoss`` on
    ``truncate_normalize(x, d)`` for each dim (MRL: arXiv 2205.13147, equation 1; InfoNCE: arXiv 1807.03748,
    equation 4).
    Half-precision inputs are accumulated in float32. Once differentiable.

    Args:
        queries: Any norm; they are normalised per prefix.
        documents: ``(1 + negatives) * batch`` rows; row ``i + c * batch`` belongs to query i, the first ``batch``
            rows are the positives.
        matryoshka_dims: Numbers of leading coordinates, in any order.
        matryoshka_weights: One weight per dim, in the same order; default 1 each.
        scale: 1 / temperature, multiplies the cosines.
        directions: Which scores enter the softmax; ``query_to_doc`` always does.
        partition_mode: One softmax over all directions, or one per direction, averaged.

    Returns:
        ``weight * loss`` for each dim, **ascending by dim**; their sum is the training loss.

    Raises:
        UserError: If dims, weights, shapes, scale or directions are not valid.
    """
    if queries.shape[1] != documents.shape[1] or not queries.shape[0] or documents.shape[0] % queries.shape[0]:
        raise UserError(
            f"documents has shape {tuple(documents.shape)} for queries of shape {tuple(queries.shape)}; "
            "give the same width and a whole number of documents per query."
        )
    nesting = MatryoshkaDims.of(matryoshka_dims, matryoshka_weights, width=queries.shape[1])
    check_scale(scale)
    groups = softmax_groups(directions, partition_mode)
    dtype = torch.promote_types(torch.promote_types(queries.dtype, documents.dtype), torch.float32)
    with torch.autocast(queries.device.type, enabled=False):
        losses = tiled.nested_losses(queries.to(dtype), documents.to(dtype), nesting.dims, scale, groups)
    return losses * losses.new_tensor(nesting.weights)


def check_scale(scale: float) -> None:
    """Refuse a scale that is not a finite positive number.

    Raises:
        UserError: Naming the value.
    """
    if not 0 < scale < float("inf"):
        raise UserError(f"scale is {scale}; it is 1 / temperature, a finite number above 0 (20 is usual).")


def softmax_groups(directions: Sequence[str], partition_mode: str) -> list[tiled.Direction]:
    """Translate sentence-transformers' ``directions`` and ``partition_mode`` into softmax groups.

    Raises:
        UserError: If a name is unknown or repeated, ``query_to_doc`` is missing, or the combination has no positive
            in some softmax.

    >>> [d.group for d in softmax_groups(["query_to_doc", "doc_to_query"], "per_direction")]
    [0, 1]
    """
    unknown = [name for name in directions if name not in _DIRECTIONS]
    if unknown or len(set(directions)) != len(directions) or "query_to_doc" not in directions:
        raise UserError(
            f"directions is {tuple(directions)}; name 'query_to_doc' and, once each, any of "
            f"{', '.join(name for name in _DIRECTIONS if name != 'query_to_doc')}."
        )
    if partition_mode not in ("joint", "per_direction"):
        raise UserError(f"partition_mode is {partition_mode!r}; use 'joint' or 'per_direction'.")
    same_type = [name for name in directions if _DIRECTIONS[name][2]]
    if partition_mode == "per_direction" and same_type:
        raise UserError(
            f"partition_mode='per_direction' cannot hold {same_type[0]!r}, whose softmax has no positive; "
            "use partition_mode='joint' or drop that direction."
        )
    return [
        tiled.Direction(*_DIRECTIONS[name], group=i if partition_mode == "per_direction" else 0)
        for i, name in enumerate(directions)
    ]
