"""The nested InfoNCE numerics: pure functions on tensors, no model in sight."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from importlib import import_module
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from matryoshka_st.errors import UserError
from matryoshka_st.infonce import tiled
from matryoshka_st.infonce.problem import (
    DOCUMENTS,
    QUERIES,
    Beside,
    Direction,
    HardnessMode,
    Layout,
    Margin,
    Problem,
    Similarity,
)
from matryoshka_st.nesting import MatryoshkaDims

DirectionName = Literal["query_to_doc", "query_to_query", "doc_to_query", "doc_to_doc"]
PartitionMode = Literal["joint", "per_direction"]
Engine = Literal["auto", "tiled", "triton"]

_DIRECTIONS: dict[str, tuple[int, int, bool]] = {
    "query_to_doc": (QUERIES, DOCUMENTS, False),
    "query_to_query": (QUERIES, QUERIES, True),
    "doc_to_query": (DOCUMENTS, QUERIES, False),
    "doc_to_doc": (DOCUMENTS, DOCUMENTS, True),
}
_HARDNESS_MODES = (None, "in_batch_negatives", "hard_negatives", "all_negatives")


def nested_infonce(
    queries: Float[Tensor, "batch width"],
    documents: Float[Tensor, "documents width"],
    *,
    matryoshka_dims: Sequence[int],
    matryoshka_weights: Sequence[float] | None = None,
    scale: float = 20.0,
    directions: Sequence[DirectionName] = ("query_to_doc",),
    partition_mode: PartitionMode = "joint",
    similarity: Similarity = "cosine",
    hardness_mode: HardnessMode | None = None,
    hardness_strength: float = 0.0,
    margin: Margin | None = None,
    beside: Beside | None = None,
    layout: Layout | None = None,
    engine: Engine = "auto",
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
        scale: 1 / temperature, multiplies the similarities.
        directions: Which scores enter the softmax; ``query_to_doc`` always does.
        partition_mode: One softmax over all directions, or one per direction, averaged.
        similarity: ``cosine``, or ``dot`` of the truncated vectors as they are.
        hardness_mode: Which negatives' logits gain ``hardness_strength * similarity``, detached: those of other
            samples (``in_batch_negatives``), the row's own (``hard_negatives``), or both (``all_negatives``).
        hardness_strength: 0 or more.
        margin: Leave out columns that score too near the positive, by the embeddings themselves or a guide's.
        beside: Ids of equal texts and the guide's embeddings, for the masks.
        layout: Which samples the rows are, where ``documents`` are gathered from several processes
            (:mod:`matryoshka_st.infonce.problem`); default: all of them.
        engine: ``tiled`` runs anywhere, ``triton`` on CUDA; ``auto`` takes triton on CUDA where it can.

    Returns:
        ``weight * loss`` for each dim, **ascending by dim**; their sum is the training loss.

    Raises:
        UserError: If dims, weights, shapes or options are not valid, or the engine is not available.
    """
    nesting = MatryoshkaDims.of(matryoshka_dims, matryoshka_weights, width=queries.shape[1])
    problem = nested_problem(
        nesting.dims,
        scale=scale,
        directions=directions,
        partition_mode=partition_mode,
        similarity=similarity,
        hardness_mode=hardness_mode,
        hardness_strength=hardness_strength,
        margin=margin,
        layout=layout or Layout(queries.shape[0], queries.shape[0]),
    )
    losses = nested_terms(queries, documents, problem, beside, engine)[0]
    return losses * losses.new_tensor(nesting.weights)


def nested_problem(
    dims: tuple[int, ...],
    layout: Layout,
    *,
    directions: Sequence[str] = ("query_to_doc",),
    partition_mode: str = "joint",
    **options: Any,
) -> Problem:
    """Check the options and put them together.

    Args:
        dims: Ascending, as in :class:`~matryoshka_st.nesting.MatryoshkaDims`.
        layout: Rows and columns.
        directions: Names as in ``MultipleNegativesRankingLoss``.
        partition_mode: ``joint`` or ``per_direction``.
        **options: The other fields of :class:`~matryoshka_st.infonce.problem.Problem`.

    Raises:
        UserError: Naming the first option that is not valid.
    """
    problem = Problem(dims, layout, softmax_groups(directions, partition_mode), **options)
    check_scale(problem.scale)
    if problem.similarity not in ("cosine", "dot"):
        raise UserError(f"similarity is {problem.similarity!r}; use 'cosine' or 'dot'.")
    if problem.hardness_mode not in _HARDNESS_MODES:
        raise UserError(f"hardness_mode is {problem.hardness_mode!r}; use one of {_HARDNESS_MODES}.")
    if not 0 <= problem.hardness_strength < math.inf:
        raise UserError(f"hardness_strength is {problem.hardness_strength}; it is a finite number of 0 or more.")
    if problem.margin is not None:
        _check_margin(problem.margin)
    if not problem.hardness_strength:
        return replace(problem, hardness_mode=None)
    return problem if problem.hardness_mode else replace(problem, hardness_strength=0.0)


def nested_terms(
    queries: Float[Tensor, "queries width"],
    documents: Float[Tensor, "documents width"],
    problem: Problem,
    beside: Beside | None = None,
    engine: Engine = "auto",
) -> Float[Tensor, "terms prefixes"]:
    """Unweighted losses of a checked problem: InfoNCE and, if it distills, the divergence from the full width.

    Raises:
        UserError: If shapes do not fit the problem or the engine is not available.
    """
    beside = beside or Beside()
    _check_shapes(queries, documents, problem, beside)
    dtype = torch.promote_types(torch.promote_types(queries.dtype, documents.dtype), torch.float32)
    triton = _triton_engine(queries, problem, engine)
    with torch.autocast(queries.device.type, enabled=False):
        if triton is not None:
            losses: Tensor = triton.nested_losses(queries, documents, problem, beside)
            return losses
        return tiled.nested_losses(queries.to(dtype), documents.to(dtype), problem, beside)


def check_scale(scale: float) -> None:
    """Refuse a scale that is not a finite positive number.

    Raises:
        UserError: Naming the value.
    """
    if not 0 < scale < float("inf"):
        raise UserError(f"scale is {scale}; it is 1 / temperature, a finite number above 0 (20 is usual).")


def softmax_groups(directions: Sequence[str], partition_mode: str) -> tuple[Direction, ...]:
    """Translate sentence-transformers' ``directions`` and ``partition_mode`` into softmax groups, query_to_doc first.

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
    names = [name for name in _DIRECTIONS if name in directions]
    return tuple(
        Direction(*_DIRECTIONS[name], group=i if partition_mode == "per_direction" else 0)
        for i, name in enumerate(names)
    )


def _triton_engine(queries: Tensor, problem: Problem, engine: str) -> Any | None:
    """The Triton module, or None for the tiled engine."""
    if engine not in ("auto", "tiled", "triton"):
        raise UserError(f"engine is {engine!r}; use 'auto', 'tiled' or 'triton'.")
    if engine == "tiled" or (engine == "auto" and queries.device.type != "cuda"):
        return None
    try:
        module = import_module("matryoshka_st.infonce.triton")
        why_not: str | None = module.why_not(queries, problem)
    except ImportError as error:
        why_not = f"it cannot be imported ({error}; try pip install 'matryoshka-st[triton]')"
    if why_not is None:
        return module
    if engine == "auto":
        return None
    raise UserError(f"engine='triton' is not available: {why_not}; use engine='tiled', which runs anywhere.")


def _check_margin(margin: Margin) -> None:
    if margin.strategy not in ("absolute", "relative"):
        raise UserError(f"The margin's strategy is {margin.strategy!r}; use 'absolute' or 'relative'.")
    if not math.isfinite(margin.value):
        raise UserError(f"The margin is {margin.value}; it is a finite number.")


def _check_shapes(queries: Tensor, documents: Tensor, problem: Problem, beside: Beside) -> None:
    layout = problem.layout
    whole = layout.world_batch > 0 and documents.shape[0] and documents.shape[0] % layout.world_batch == 0
    if queries.shape[1] != documents.shape[1] or not whole:
        raise UserError(
            f"documents has shape {tuple(documents.shape)} for queries of shape {tuple(queries.shape)}; "
            "give the same width and a whole number of documents per query."
        )
    if not 0 <= layout.offset <= layout.offset + layout.batch <= layout.world_batch or not layout.batch:
        raise UserError(f"{layout} does not hold its rows; batch is 1 or more and offset + batch at most world_batch.")
    columns = any(direction.columns == QUERIES for direction in problem.directions)
    allowed = {layout.world_batch} if columns else {layout.batch, layout.world_batch}
    if queries.shape[0] not in allowed:
        raise UserError(f"There are {queries.shape[0]} queries; {layout} with these directions needs {min(allowed)}.")
    _check_beside(beside, queries.shape[0], documents.shape[0], layout.world_batch)


def _check_beside(beside: Beside, queries: int, documents: int, samples: int) -> None:
    counts = (samples, documents, queries, documents)
    for name, tensor, count in zip(Beside._fields, beside, counts, strict=True):
        if tensor is not None and len(tensor) != count:
            raise UserError(f"{name} has {len(tensor)} rows; give {count}, one for each.")
    for left, right in (("query_ids", "document_ids"), ("query_guide", "document_guide")):
        if (getattr(beside, left) is None) != (getattr(beside, right) is None):
            raise UserError(f"Give {left} and {right}, or neither.")
