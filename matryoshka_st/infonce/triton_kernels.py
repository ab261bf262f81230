"""Triton kernels of the nested InfoNCE loss: one program per tile of a score matrix, or of a gradient.

Legend: R x C the tile of a program, K prefixes, S coordinates per step, b_k the block of prefix k.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl

from matryoshka_st.infonce.triton_tiles import (
    Side,
    Span,
    Task,
    accumulate,
    addresses,
    logit_factor,
    masked_columns,
    place,
    row_log_sum_exp,
    scaled,
)


class Strides(NamedTuple):
    """Elements from matrix to matrix, row to row and column to column."""

    matrix: int
    row: int
    column: int


@triton.jit
def log_sum_exps(
    out: tl.tensor,
    lse: tl.tensor,
    rows: Side,
    columns: Side,
    span: Span,
    task: Task,
    OWN: tl.constexpr,
    HARDNESS: tl.constexpr,
    TEACHER: tl.constexpr,
    PRECISION: tl.constexpr,
    STEP: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
) -> None:
    """Per tile, prefix and row, the log-sum-exp of the logits; with TEACHER their mean under the full softmax.

    Args:
        out: Column tiles x K x rows of the span, float32.
        lse: The log-sum-exp of each row at the full width; read with TEACHER only.
        rows: Rows of the score matrix.
        columns: Its columns.
        span: Which of them.
        task: What the logits are made of.
        OWN: Columns of the row's own sample are masked.
        HARDNESS: Bit 1, columns of other samples gain ``strength``; bit 2, the row's own hard negatives do.
        TEACHER: See above.
        PRECISION: Of float32 products.
        STEP: S.
        ROWS: R.
        COLUMNS: C.
    """
    _, across, row, column = place(span, ROWS, COLUMNS)
    i, j = tl.minimum(row, span.end_row - 1), tl.minimum(column, span.end_column - 1)
    x, y = addresses(rows.x, rows.stride, i, columns.x, columns.stride, j, STEP)
    masked = masked_columns(rows, columns, span, task, i, j, column, OWN, PRECISION, STEP)
    factor = logit_factor(task, i, j, HARDNESS)
    nothing = tl.zeros((ROWS, COLUMNS), tl.float32)
    teacher = nothing
    if TEACHER:
        whole = accumulate(nothing, x, y, 0, tl.load(task.ends + task.prefixes), PRECISION, STEP)
        logits = scaled(whole, rows, columns, i, j, task.prefixes - 1) * factor
        teacher = tl.exp(tl.where(masked, -float("inf"), logits) - tl.load(lse + i)[:, None])
    total = nothing
    for k in range(task.prefixes):
        # not carried from turn to turn: Triton 3.6 and 3.7 take the first value of a carried bound for all turns
        low, high = tl.load(task.ends + k), tl.load(task.ends + k + 1)
        total = accumulate(total, x, y, low, high, PRECISION, STEP)
        logits = scaled(total, rows, columns, i, j, k) * factor
        if TEACHER:
            part = tl.sum(teacher * logits, 1)
        else:
            part = row_log_sum_exp(tl.where(masked, -float("inf"), logits))
        height = span.end_row - span.row
        tl.store(out + (across * task.prefixes + k) * height + row - span.row, part, row < span.end_row)


@triton.jit
def residuals(
    out: tl.tensor,
    row_norms: tl.tensor,
    column_norms: tl.tensor,
    lse: tl.tensor,
    alone: tl.tensor,
    lse_stride: int,
    slopes: tl.tensor,
    out_rows: int,
    out_columns: int,
    rows: Side,
    columns: Side,
    span: Span,
    task: Task,
    OWN: tl.constexpr,
    HARDNESS: tl.constexpr,
    TEACHER: tl.constexpr,
    PRECISION: tl.constexpr,
    STEP: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
) -> None:
    """Per tile: d loss / d raw scores of each block, and the sums of d loss / d similarity * similarity.

    Args:
        out: K x out_rows x out_columns: entry k is the sum of prefixes k and up; zero past the span in a tile.
        row_norms: Column tiles x K x out_rows sums along rows; written for cosines only.
        column_norms: Row tiles x K x out_columns sums along columns, likewise.
        lse: K x rows log-sum-exps of this softmax.
        alone: The same of query_to_doc alone; read with TEACHER only.
        lse_stride: From prefix to prefix, of both.
        slopes: 3 x K, the weights of the softmax, of the positive, and of the divergence from the full softmax.
        out_rows: Capacity of ``out``, whole tiles.
        out_columns: Likewise.
        rows: Rows of the score matrix.
        columns: Its columns.
        span: Which of them.
        task: What the logits are made of.
        OWN: Columns of the row's own sample are masked.
        HARDNESS: As in :func:`log_sum_exps`.
        TEACHER: Add the divergence.
        PRECISION: Of float32 products.
        STEP: S.
        ROWS: R.
        COLUMNS: C.
    """
    down, across, row, column = place(span, ROWS, COLUMNS)
    i, j = tl.minimum(row, span.end_row - 1), tl.minimum(column, span.end_column - 1)
    x, y = addresses(rows.x, rows.stride, i, columns.x, columns.stride, j, STEP)
    masked = (
        masked_columns(rows, columns, span, task, i, j, column, OWN, PRECISION, STEP) | (row >= span.end_row)[:, None]
    )
    factor = logit_factor(task, i, j, HARDNESS)
    positive = (i + task.offset)[:, None] == j[None, :]
    local_row, local_column = row - span.row, column - span.column
    tile = out + local_row[:, None] * out_columns + local_column[None, :]
    nothing = tl.zeros((ROWS, COLUMNS), tl.float32)
    teacher = nothing
    if TEACHER:
        whole = accumulate(nothing, x, y, 0, tl.load(task.ends + task.prefixes), PRECISION, STEP)
        logits = scaled(whole, rows, columns, i, j, task.prefixes - 1) * factor
        less = tl.load(alone + (task.prefixes - 1) * lse_stride + i)[:, None]
        teacher = tl.exp(tl.where(masked, -float("inf"), logits) - less)
    total = nothing
    for k in range(task.prefixes):
        # not carried from turn to turn: Triton 3.6 and 3.7 take the first value of a carried bound for all turns
        low, high = tl.load(task.ends + k), tl.load(task.ends + k + 1)
        total = accumulate(total, x, y, low, high, PRECISION, STEP)
        similarity = scaled(total, rows, columns, i, j, k)
        logits = tl.where(masked, -float("inf"), similarity * factor)
        slope = tl.exp(logits - tl.load(lse + k * lse_stride + i)[:, None]) * tl.load(slopes + k)
        slope -= tl.where(positive & ~masked, tl.load(slopes + task.prefixes + k), 0.0)
        if TEACHER:
            student = tl.exp(logits - tl.load(alone + k * lse_stride + i)[:, None])
            slope += (student - teacher) * tl.load(slopes + 2 * task.prefixes + k)
        if rows.inverse is not None:
            product = slope * similarity
            tl.store(row_norms + (across * task.prefixes + k) * out_rows + local_row, tl.sum(product, 1))
            tl.store(column_norms + (down * task.prefixes + k) * out_columns + local_column, tl.sum(product, 0))
        residual = scaled(slope, rows, columns, i, j, k)
        tl.store(tile + k * out_rows * out_columns, residual.to(out.dtype.element_ty))
    tl.debug_barrier()  # what follows may be read by other threads than wrote it
    suffix = nothing
    for step in range(task.prefixes):
        entry = tile + (task.prefixes - 1 - step) * out_rows * out_columns
        suffix += tl.load(entry)
        tl.debug_barrier()
        tl.store(entry, suffix.to(out.dtype.element_ty))


@triton.jit
def block_products(
    out: tl.tensor,
    out_stride: int,
    matrix: tl.tensor,
    matrix_strides: Strides,
    y: tl.tensor,
    y_stride: int,
    prefix_of_step: tl.tensor,
    count: int,
    inner: int,
    OPERANDS: tl.constexpr,
    PRECISION: tl.constexpr,
    STEP: tl.constexpr,
    ROWS: tl.constexpr,
    INNER: tl.constexpr,
) -> None:
    """Add ``matrix[k] @ y[:, b_k]`` to ``out[:, b_k]`` for all blocks, in float32; one program per rows and step.

    Args:
        out: Rows x width, float32.
        out_stride: Its row stride.
        matrix: K matrices, zero from ``inner`` on up to a whole number of INNER.
        matrix_strides: Of ``matrix``.
        y: Inner x width.
        y_stride: Its row stride.
        prefix_of_step: Which k each step of the width belongs to.
        count: Rows.
        inner: Rows of ``y``.
        OPERANDS: Type in which to multiply.
        PRECISION: Of float32 products.
        STEP: Coordinates per program.
        ROWS: Rows per program.
        INNER: Rows of ``y`` per product.
    """
    width = tl.program_id(0) * STEP + tl.arange(0, STEP)
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    along = tl.arange(0, INNER)
    k = tl.load(prefix_of_step + tl.program_id(0))
    matrix += k * matrix_strides.matrix
    left = matrix + tl.minimum(row, count - 1)[:, None] * matrix_strides.row + along[None, :] * matrix_strides.column
    total = tl.zeros((ROWS, STEP), tl.float32)
    for start in range(0, inner, INNER):
        at = tl.minimum(start + along, inner - 1).to(tl.int64)
        right = tl.load(y + at[:, None] * y_stride + width[None, :]).to(OPERANDS)
        total = tl.dot(
            tl.load(left + start * matrix_strides.column).to(OPERANDS), right, total, input_precision=PRECISION
        )
    entry = out + row.to(tl.int64)[:, None] * out_stride + width[None, :]
    inside = (row < count)[:, None]
    tl.store(entry, tl.load(entry, inside) + total, inside)
