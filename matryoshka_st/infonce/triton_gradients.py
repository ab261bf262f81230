"""The backward pass of the Triton engine, region by region of the score matrices.

Legend: B local rows, K prefixes, b_k the block of prefix k, P width once each block is padded to whole steps, R x C a
region.

One kernel recomputes the scores and leaves, for each block, the sum of the residuals of all prefixes that contain it;
another multiplies these K matrices by the blocks of the columns and, transposed, of the rows. The scratch they share
has a fixed size, whatever the batch.

Residuals of bfloat16 embeddings are rounded to bfloat16, so that their products are too: gradients carry a relative
error of about 2^-8, and that of a prefix of one coordinate, 0 by cancellation, is left with noise. float16 residuals
would underflow: they stay in float32 and are multiplied as TF32, which holds every float16 coordinate.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from matryoshka_st.infonce import triton_kernels as kernels
from matryoshka_st.infonce.problem import Direction
from matryoshka_st.infonce.triton_operands import (
    BLOCKS,
    INTERPRETED,
    Masks,
    Operand,
    Plan,
    grid_of,
    is_query_to_doc,
    operands_of,
    options_of,
    padded_widths,
    sides_of,
    task_of,
    whole,
)
from matryoshka_st.infonce.triton_tiles import Span


class Gradient(NamedTuple):
    """What a matrix accumulates in float32: rows x P through the scores, and K x rows sums for the norms.

    ``norms[k, i]`` is the sum of ``d loss / d similarity * similarity`` of prefix k over what vector i takes part in;
    the derivative through its norm is ``-norms[k, i] / |x|^2 * x``.
    """

    x: Tensor
    norms: Tensor


def gradients(
    queries: Tensor, documents: Tensor, lse: Tensor, upstream: Tensor, plan: Plan, masks: Masks
) -> tuple[Tensor, Tensor]:
    """Of queries and documents, given the log-sum-exps of the forward pass and the gradient of the losses."""
    operands = operands_of(queries, documents, plan)
    count = len(plan.widths)
    sums = (
        Gradient(torch.zeros_like(operands[0].x, dtype=torch.float32), upstream.new_zeros(count, len(queries))),
        Gradient(torch.zeros_like(operands[1].x, dtype=torch.float32), upstream.new_zeros(count, len(documents))),
    )
    for direction, slopes in zip(plan.problem.directions, _slopes(plan, upstream), strict=True):
        _add_gradients(direction, operands, plan, masks, lse, slopes, sums)
    return _gradient(queries, operands[0], sums[0], plan), _gradient(documents, operands[1], sums[1], plan)


def _slopes(plan: Plan, upstream: Tensor) -> Iterator[Tensor]:
    """For each direction, 3 x K: the weights of its softmax, of its positive and of the divergence."""
    problem = plan.problem
    groups = 1 + max(direction.group for direction in problem.directions)
    softmax = upstream[0] * (problem.scale / problem.layout.batch / groups)
    seen: set[int] = set()
    for direction in problem.directions:
        positive = torch.zeros_like(softmax) if direction.group in seen else softmax
        distills = problem.distill and is_query_to_doc(direction)
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
    sums: tuple[Gradient, Gradient],
) -> None:
    """Add, region by region, what a direction's logits contribute."""
    blocks = plan.blocks
    rows, columns = sides_of(direction, operands, plan, masks)
    start = operands[direction.rows].start
    residuals, row_norms, column_norms = _scratch(rows.x, len(columns.x), plan)
    capacity = residuals.shape[1:]
    for span in _regions(len(rows.x), len(columns.x), capacity):
        kernels.residuals[grid_of(span, plan, blocks.narrow)](
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
            TEACHER=plan.problem.distill and is_query_to_doc(direction),
            **options_of(direction, plan, blocks.narrow),
        )
        x_rows = slice(start + span.row, start + span.end_row)
        y_rows = slice(span.column, span.end_column)
        to_x, to_y = sums[direction.rows], sums[direction.columns]
        area = capacity[0] * capacity[1]
        forth, back = kernels.Strides(area, capacity[1], 1), kernels.Strides(area, 1, capacity[1])
        _add_products(to_x.x[x_rows], residuals, forth, columns.x[y_rows], plan)
        _add_products(to_y.x[y_rows], residuals, back, rows.x[span.row : span.end_row], plan)
        if plan.problem.similarity == "cosine":
            height, width = span.end_row - span.row, span.end_column - span.column
            down, across = triton.cdiv(height, blocks.rows), triton.cdiv(width, blocks.narrow)
            to_x.norms[:, x_rows] += row_norms[:across, :, :height].sum(0)
            to_y.norms[:, y_rows] += column_norms[:down, :, :width].sum(0)


def _scratch(x: Tensor, columns: int, plan: Plan) -> tuple[Tensor, Tensor, Tensor]:
    """Room for a region: K x R x C residuals, and the norms' sums per tile; R and C are whole tiles."""
    blocks, count = plan.blocks, len(plan.widths)
    dtype = plan.dtype if plan.dtype == torch.bfloat16 else torch.float32
    elements = plan.scratch // (count * dtype.itemsize)
    height = min(whole(math.isqrt(elements), blocks.rows), triton.cdiv(len(x), blocks.rows) * blocks.rows)
    width = min(whole(elements // height, blocks.narrow), triton.cdiv(columns, blocks.narrow) * blocks.narrow)
    return (
        x.new_empty(count, height, width, dtype=dtype),
        x.new_empty(width // blocks.narrow, count, height, dtype=torch.float32),
        x.new_empty(height // blocks.rows, count, width, dtype=torch.float32),
    )


def _regions(rows: int, columns: int, capacity: tuple[int, ...]) -> Iterator[Span]:
    for row in range(0, rows, capacity[0]):
        for column in range(0, columns, capacity[1]):
            yield Span(row, min(row + capacity[0], rows), column, min(column + capacity[1], columns))


def _add_products(out: Tensor, residuals: Tensor, strides: kernels.Strides, y: Tensor, plan: Plan) -> None:
    blocks = plan.blocks
    inner = min(blocks.rows, blocks.narrow, BLOCKS[plan.dtype].step)
    rounded = plan.dtype == torch.bfloat16 and not INTERPRETED
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
        OPERANDS=tl.bfloat16 if rounded else tl.float32,
        PRECISION="tf32" if plan.dtype == torch.float16 else plan.precision,
        STEP=blocks.step,
        ROWS=blocks.rows,
        INNER=inner,
        num_warps=blocks.num_warps,
        num_stages=blocks.num_stages,
    )


def _gradient(x: Tensor, operand: Operand, sums: Gradient, plan: Plan) -> Tensor:
    """Unpad the gradient and add the derivative through the norms."""
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    factors = None
    if operand.inverse is not None:
        factors = (sums.norms * operand.inverse**2).flip(0).cumsum(0).flip(0)
    blocks = zip(
        x.split(plan.widths, dim=1),
        out.split(plan.widths, dim=1),
        sums.x.split(padded_widths(plan), dim=1),
        strict=True,
    )
    for k, (block, to_block, padded) in enumerate(blocks):
        total = padded[:, : block.shape[1]]
        if factors is not None:
            total.addcmul_(block.float(), factors[k, :, None], value=-1)
        to_block.copy_(total)
    return out
