"""Nested InfoNCE on CUDA: the tiled engine's maths as Triton kernels.

Legend: B local rows, N columns, D width, K prefixes, P width once each block b_k is padded to whole steps, T softmax
groups, R x C a region of a score matrix.

Forward, one kernel walks each tile of a score matrix once through the width and writes a log-sum-exp per row and
prefix; those of all tiles and directions are added up afterwards. Backward, region by region, one kernel recomputes the
scores and leaves, for each block, the sum of the residuals of all prefixes that contain it, rounded to the type of the
inputs; another multiplies these K matrices by the blocks of the columns and, transposed, of the rows. Every sum is made
in float32 and in a fixed order, so results do not change from run to run. float16 residuals would underflow: they stay
in float32 and are multiplied as TF32, which holds every float16 coordinate.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from matryoshka_st.infonce import triton_kernels as kernels
from matryoshka_st.infonce.problem import DOCUMENTS, QUERIES, Beside, Direction, Problem
from matryoshka_st.infonce.triton_operands import (
    BLOCKS,
    INTERPRETED,
    Masks,
    Operand,
    Plan,
    masks_of,
    operands_of,
    plan_of,
    sides_of,
    task_of,
)

_SCRATCH = 2**27  # bytes of residuals, or of log-sum-exps of single tiles
_HARDNESS = {None: 0, "in_batch_negatives": 1, "hard_negatives": 2, "all_negatives": 3}
_OLDEST = (8, 0)


def why_not(queries: Tensor, problem: Problem) -> str | None:
    """Why this engine cannot run a problem on embeddings like these, or None if it can."""
    if queries.dtype not in BLOCKS:
        return f"the embeddings are {queries.dtype} and its kernels take float32, float16 and bfloat16"
    if INTERPRETED:
        return None
    if queries.device.type != "cuda":
        return f"the embeddings are on {queries.device.type} and its kernels run on CUDA"
    capability = torch.cuda.get_device_capability(queries.device)
    if capability < _OLDEST:
        return f"the GPU has compute capability {capability} and its kernels need {_OLDEST}"
    return None


def nested_losses(queries: Tensor, documents: Tensor, problem: Problem, beside: Beside | None = None) -> Tensor:
    """The losses of every prefix; see :mod:`matryoshka_st.infonce.problem` for the layout.

    Args:
        queries: B x D or W x D, float32, float16 or bfloat16.
        documents: N x D; if their types differ, both are taken to float32.
        problem: Everything but the tensors.
        beside: Ids and guide embeddings for the masks.

    Returns:
        1 x K losses in float32; 2 x K with self-distillation.
    """
    if queries.dtype != documents.dtype:
        queries, documents = queries.float(), documents.float()
    last = problem.dims[-1]
    with torch.cuda.device_of(queries):
        plan = plan_of(queries, documents, problem)
        masks = masks_of(queries, documents, plan, beside or Beside())
        losses: Tensor = _NestedLosses.apply(queries[:, :last], documents[:, :last], plan, masks)
    return losses


class _NestedLosses(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, queries: Tensor, documents: Tensor, plan: Plan, masks: Masks) -> Tensor:
        problem = plan.problem
        operands = operands_of(queries, documents, plan)
        lse = _log_sum_exps(operands, plan, masks)
        ctx.save_for_backward(queries, documents, lse)
        ctx.plan, ctx.masks = plan, masks
        groups = lse[:-1] if problem.distill else lse
        losses = [groups.mean(0) - problem.scale * _positive_scores(operands, plan)]
        if problem.distill:
            alone = lse[-1]
            parts = _parts(problem.directions[0], operands, plan, masks, alone[-1])
            means = torch.cat([part.sum(0) for _, part in parts], dim=1)
            losses.append((means[-1] - means) - (alone[-1] - alone))
        return torch.stack(losses).mean(dim=2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        queries, documents, lse = ctx.saved_tensors
        plan: Plan = ctx.plan
        with torch.cuda.device_of(queries), torch.autocast(queries.device.type, enabled=False):
            operands = operands_of(queries, documents, plan)
            sums = tuple(torch.zeros_like(operand.x, dtype=torch.float32) for operand in operands)
            norms = tuple(upstream.new_zeros(len(plan.widths), len(operand.x)) for operand in operands)
            for direction, slopes in zip(plan.problem.directions, _slopes(plan, upstream), strict=True):
                _add_gradients(direction, operands, plan, ctx.masks, lse, slopes, sums, norms)
            gradients = [
                _gradient(x, operand, through_scores, through_norms, plan)
                for x, operand, through_scores, through_norms in zip(
                    (queries, documents), operands, sums, norms, strict=True
                )
            ]
        return gradients[0], gradients[1], None, None


def _log_sum_exps(operands: tuple[Operand, Operand], plan: Plan, masks: Masks) -> Tensor:
    """T x K x B: the log of each softmax denominator; with self-distillation one more, of query_to_doc alone."""
    problem = plan.problem
    groups = 1 + max(direction.group for direction in problem.directions)
    shape = groups + problem.distill, len(plan.widths), problem.layout.batch
    lse = torch.full(shape, -torch.inf, dtype=torch.float32, device=operands[0].x.device)
    for direction in problem.directions:
        alone = problem.distill and _is_query_to_doc(direction)
        for rows, parts in _parts(direction, operands, plan, masks):
            part = parts.logsumexp(0)
            for group in (direction.group, groups) if alone else (direction.group,):
                lse[group, :, rows] = torch.logaddexp(lse[group, :, rows], part)
    return lse


def _parts(
    direction: Direction,
    operands: tuple[Operand, Operand],
    plan: Plan,
    masks: Masks,
    teacher_lse: Tensor | None = None,
) -> Iterator[tuple[slice, Tensor]]:
    """For chunks of rows, column tiles x K x rows log-sum-exps; given a teacher's, mean logits under its softmax."""
    rows, columns = sides_of(direction, operands, plan, masks)
    batch, count = plan.problem.layout.batch, len(columns.x)
    width = plan.blocks.columns if teacher_lse is None and masks.guides is None else plan.blocks.narrow
    tiles = triton.cdiv(count, width)
    height = _whole(_SCRATCH // (4 * tiles * len(plan.widths)), plan.blocks.rows)
    for start in range(0, batch, height):
        span = kernels.Span(start, min(start + height, batch), 0, count)
        out = rows.x.new_empty(tiles, len(plan.widths), span.end_row - start, dtype=torch.float32)
        kernels.log_sum_exps[_grid(span, plan, width)](
            out,
            teacher_lse,
            rows,
            columns,
            span,
            task_of(plan, masks),
            TEACHER=teacher_lse is not None,
            **_options(direction, plan, width),
        )
        yield slice(start, span.end_row), out


def _positive_scores(operands: tuple[Operand, Operand], plan: Plan) -> Tensor:
    """K x B: the similarity of each local query with its positive."""
    batch, steps = plan.problem.layout.batch, plan.blocks.step
    x, y = (operand.x[operand.start : operand.start + batch] for operand in operands)
    padded = [-(-width // steps) * steps for width in plan.widths]
    blocks = zip(x.split(padded, dim=1), y.split(padded, dim=1), strict=True)
    scores = torch.stack([(left.float() * right).sum(1) for left, right in blocks]).cumsum(0)
    for operand in operands:
        if operand.inverse is not None:
            scores *= operand.inverse[:, operand.start : operand.start + batch]
    return scores


def _slopes(plan: Plan, upstream: Tensor) -> Iterator[Tensor]:
    """For each direction, 3 x K: the weights of its softmax, of its positive and of the divergence."""
    problem = plan.problem
    groups = 1 + max(direction.group for direction in problem.directions)
    softmax = upstream[0] * (problem.scale / problem.layout.batch / groups)
    seen: set[int] = set()
    for direction in problem.directions:
        positive = torch.zeros_like(softmax) if direction.group in seen else softmax
        distills = problem.distill and _is_query_to_doc(direction)
        divergence = upstream[1] * (problem.scale / problem.layout.batch) if distills else torch.zeros_like(softmax)
        seen.add(direction.group)
        yield torch.stack([softmax, positive, divergence])


def _add_gradients(
    direction: Direction,
    operands: tuple[Operand, Operand],
    plan: Plan,
    masks: Masks,
    lse: Tensor,
    slopes: Tensor,
    sums: tuple[Tensor, Tensor],
    norms: tuple[Tensor, Tensor],
) -> None:
    """Add, region by region, what a direction's logits contribute through the scores (``sums``) and the norms."""
    blocks, count = plan.blocks, len(plan.widths)
    rows, columns = sides_of(direction, operands, plan, masks)
    start = operands[direction.rows].start
    residuals, row_norms, column_norms = _scratch(rows.x, len(columns.x), plan)
    capacity = residuals.shape[1:]
    for span in _regions(len(rows.x), len(columns.x), capacity):
        kernels.residuals[_grid(span, plan, blocks.narrow)](
            residuals,
            row_norms,
            column_norms,
            lse[direction.group],
            lse[-1],
            lse.stride(1),
            slopes,
            *capacity,
            rows,
            columns,
            span,
            task_of(plan, masks),
            TEACHER=plan.problem.distill and _is_query_to_doc(direction),
            **_options(direction, plan, blocks.narrow),
        )
        height, width = span.end_row - span.row, span.end_column - span.column
        x_rows = slice(start + span.row, start + span.end_row)
        y_rows = slice(span.column, span.end_column)
        to_x, to_y = sums[direction.rows][x_rows], sums[direction.columns][y_rows]
        area = capacity[0] * capacity[1]
        _add_products(to_x, residuals, kernels.Strides(area, capacity[1], 1), columns.x[y_rows], plan)
        _add_products(to_y, residuals, kernels.Strides(area, 1, capacity[1]), rows.x[span.row : span.end_row], plan)
        if plan.problem.similarity == "cosine":
            down, across = triton.cdiv(height, blocks.rows), triton.cdiv(width, blocks.narrow)
            norms[direction.rows][:, x_rows] += row_norms[:across, :, :height].sum(0)
            norms[direction.columns][:, y_rows] += column_norms[:down, :, :width].sum(0)


def _scratch(x: Tensor, columns: int, plan: Plan) -> tuple[Tensor, Tensor, Tensor]:
    """Room for a region: K x R x C residuals, and the norms' sums per tile; R and C are whole tiles."""
    blocks, count = plan.blocks, len(plan.widths)
    dtype = plan.dtype if plan.dtype == torch.bfloat16 else torch.float32
    elements = _SCRATCH // (count * dtype.itemsize)
    height = min(_whole(math.isqrt(elements), blocks.rows), triton.cdiv(len(x), blocks.rows) * blocks.rows)
    width = min(_whole(elements // height, blocks.narrow), triton.cdiv(columns, blocks.narrow) * blocks.narrow)
    return (
        x.new_empty(count, height, width, dtype=dtype),
        x.new_empty(width // blocks.narrow, count, height, dtype=torch.float32),
        x.new_empty(height // blocks.rows, count, width, dtype=torch.float32),
    )


def _regions(rows: int, columns: int, capacity: tuple[int, ...]) -> Iterator[kernels.Span]:
    for row in range(0, rows, capacity[0]):
        for column in range(0, columns, capacity[1]):
            yield kernels.Span(row, min(row + capacity[0], rows), column, min(column + capacity[1], columns))


def _add_products(out: Tensor, residuals: Tensor, strides: kernels.Strides, y: Tensor, plan: Plan) -> None:
    blocks = plan.blocks
    inner = min(blocks.rows, blocks.narrow, BLOCKS[plan.dtype].step)
    exact = plan.dtype == torch.bfloat16 and not INTERPRETED
    kernels.block_products[(len(plan.prefix_of_step), triton.cdiv(len(out), blocks.rows))](
        out,
        out.stride(0),
        residuals,
        strides,
        y,
        y.stride(0),
        plan.prefix_of_step,
        len(out),
        len(y),
        OPERANDS=tl.bfloat16 if exact else tl.float32,
        PRECISION="tf32" if plan.dtype == torch.float16 else plan.precision,
        STEP=blocks.step,
        ROWS=blocks.rows,
        INNER=inner,
        num_warps=blocks.num_warps,
        num_stages=blocks.num_stages,
    )


def _gradient(x: Tensor, operand: Operand, through_scores: Tensor, through_norms: Tensor, plan: Plan) -> Tensor:
    """Unpad the gradient, with the derivative of the norms: minus the suffix sum of ``norms / |x|^2`` times x."""
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    factors = None
    if operand.inverse is not None:
        factors = (through_norms * operand.inverse**2).flip(0).cumsum(0).flip(0)
    low = at = 0
    for k, width in enumerate(plan.widths):
        block = through_scores[:, at : at + width]
        if factors is not None:
            block.addcmul_(x[:, low : low + width].float(), factors[k, :, None], value=-1)
        out[:, low : low + width] = block
        low, at = low + width, at + -(-width // plan.blocks.step) * plan.blocks.step
    return out


def _options(direction: Direction, plan: Plan, columns: int) -> dict[str, Any]:
    """The compile-time options that both kernels of score tiles take."""
    blocks = plan.blocks
    return {
        "OWN": direction.own,
        "HARDNESS": _HARDNESS[plan.problem.hardness_mode] if _is_query_to_doc(direction) else 0,
        "PRECISION": plan.precision,
        "STEP": blocks.step,
        "ROWS": blocks.rows,
        "COLUMNS": columns,
        "num_warps": blocks.num_warps,
        "num_stages": blocks.num_stages,
    }


def _grid(span: kernels.Span, plan: Plan, columns: int) -> tuple[int]:
    down = triton.cdiv(span.end_row - span.row, plan.blocks.rows)
    return (down * triton.cdiv(span.end_column - span.column, columns),)


def _is_query_to_doc(direction: Direction) -> bool:
    return direction[:2] == (QUERIES, DOCUMENTS)


def _whole(count: int, unit: int) -> int:
    """The largest multiple of ``unit`` that is not above ``count``; one unit at least."""
    return max(count // unit, 1) * unit
