"""Triton kernels of the nested InfoNCE loss: one program per tile of a score matrix, or of a gradient.

Legend: R x C the tile of a program, K prefixes, W samples, S coordinates per step. Operands come with each block padded
to whole steps, so no load is masked along the width. Rows and columns past the end are read as the last one, and masked
where they would count.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl


class Side(NamedTuple):
    """The rows, or the columns, of a score matrix; row i of each tensor is row (column) i of the matrix.

    ``inverse`` are K x rows inverse prefix norms, None for dot products; ``keys`` rows x 2, equal ones being known
    matches; ``guide`` and ``guide_inverse`` the guide's vectors and inverse norms. A stride is that of the first axis.
    """

    x: tl.tensor
    stride: int
    inverse: tl.tensor | None = None
    inverse_stride: int = 0
    keys: tl.tensor | None = None
    guide: tl.tensor | None = None
    guide_stride: int = 0
    guide_inverse: tl.tensor | None = None
    guide_steps: int = 0


class Span(NamedTuple):
    """The part of a score matrix that a launch covers."""

    row: int
    end_row: int
    column: int
    end_column: int


class Task(NamedTuple):
    """What the logits are made of: ends of the prefixes in steps (K), W, the sample of row 0, bounds of the guide."""

    ends: tl.tensor
    prefixes: int
    world: int
    offset: int
    scale: float
    strength: float
    bounds: tl.tensor | None


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
    _, across, row, column = _place(span, ROWS, COLUMNS)
    i, j = tl.minimum(row, span.end_row - 1), tl.minimum(column, span.end_column - 1)
    x, y = _addresses(rows.x, rows.stride, i, columns.x, columns.stride, j, STEP)
    masked = _masked(rows, columns, span, task, i, j, column, OWN, PRECISION, STEP)
    factor = _factor(task, i, j, HARDNESS)
    nothing = tl.zeros((ROWS, COLUMNS), tl.float32)
    teacher = nothing
    if TEACHER:
        whole = _accumulate(nothing, x, y, 0, tl.load(task.ends + task.prefixes - 1), PRECISION, STEP)
        logits = _similarity(whole, rows, columns, i, j, task.prefixes - 1) * factor
        teacher = tl.exp(tl.where(masked, -float("inf"), logits) - tl.load(lse + i)[:, None])
    total = nothing
    low = 0
    for k in range(task.prefixes):
        high = tl.load(task.ends + k)
        total = _accumulate(total, x, y, low, high, PRECISION, STEP)
        low = high
        logits = _similarity(total, rows, columns, i, j, k) * factor
        if TEACHER:
            part = tl.sum(teacher * logits, 1)
        else:
            part = _log_sum_exp(tl.where(masked, -float("inf"), logits))
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
    down, across, row, column = _place(span, ROWS, COLUMNS)
    i, j = tl.minimum(row, span.end_row - 1), tl.minimum(column, span.end_column - 1)
    x, y = _addresses(rows.x, rows.stride, i, columns.x, columns.stride, j, STEP)
    masked = _masked(rows, columns, span, task, i, j, column, OWN, PRECISION, STEP) | (row >= span.end_row)[:, None]
    factor = _factor(task, i, j, HARDNESS)
    positive = (i + task.offset)[:, None] == j[None, :]
    local_row, local_column = row - span.row, column - span.column
    tile = out + local_row[:, None] * out_columns + local_column[None, :]
    nothing = tl.zeros((ROWS, COLUMNS), tl.float32)
    teacher = nothing
    if TEACHER:
        whole = _accumulate(nothing, x, y, 0, tl.load(task.ends + task.prefixes - 1), PRECISION, STEP)
        logits = _similarity(whole, rows, columns, i, j, task.prefixes - 1) * factor
        less = tl.load(alone + (task.prefixes - 1) * lse_stride + i)[:, None]
        teacher = tl.exp(tl.where(masked, -float("inf"), logits) - less)
    total = nothing
    low = 0
    for k in range(task.prefixes):
        high = tl.load(task.ends + k)
        total = _accumulate(total, x, y, low, high, PRECISION, STEP)
        low = high
        similarity = _similarity(total, rows, columns, i, j, k)
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
        residual = _similarity(slope, rows, columns, i, j, k)
        tl.store(tile + k * out_rows * out_columns, residual.to(out.dtype.element_ty))
    tl.debug_barrier()
    suffix = nothing
    for step in range(task.prefixes):
        entry = tile + (task.prefixes - 1 - step) * out_rows * out_columns
        suffix += tl.load(entry)
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
        total = tl.dot(tl.load(left + start * matrix_strides.column).to(OPERANDS), right, total, input_precision=PRECISION)
    entry = out + row.to(tl.int64)[:, None] * out_stride + width[None, :]
    inside = (row < count)[:, None]
    tl.store(entry, tl.load(entry, inside) + total, inside)


@triton.jit
def _place(span: Span, ROWS: tl.constexpr, COLUMNS: tl.constexpr) -> tl.tensor:
    """The program's tile (down, across) and its rows and columns; 8 tile rows share their columns in the L2 cache."""
    down = tl.cdiv(span.end_row - span.row, ROWS)
    across = tl.cdiv(span.end_column - span.column, COLUMNS)
    group = tl.program_id(0) // (8 * across)
    place = tl.program_id(0) % (8 * across)
    height = tl.minimum(down - group * 8, 8)
    tile_row, tile_column = group * 8 + place % height, place // height
    row = span.row + tile_row * ROWS + tl.arange(0, ROWS)
    column = span.column + tile_column * COLUMNS + tl.arange(0, COLUMNS)
    return tile_row, tile_column, row, column


@triton.jit
def _addresses(
    x: tl.tensor, x_stride: int, i: tl.tensor, y: tl.tensor, y_stride: int, j: tl.tensor, STEP: tl.constexpr
) -> tuple[tl.tensor, tl.tensor]:
    """Of the first step of rows i of x (R x S) and of rows j of y, transposed (S x C)."""
    along = tl.arange(0, STEP)
    left = x + i.to(tl.int64)[:, None] * x_stride + along[None, :]
    right = y + j.to(tl.int64)[None, :] * y_stride + along[:, None]
    return left, right


@triton.jit
def _accumulate(
    total: tl.tensor, x: tl.tensor, y: tl.tensor, low: int, high: int, PRECISION: tl.constexpr, STEP: tl.constexpr
) -> tl.tensor:
    """Add the product of steps ``low`` to ``high``."""
    for step in range(low, high):
        left, right = tl.load(x + step * STEP), tl.load(y + step * STEP)
        total = tl.dot(left, right, total, input_precision=PRECISION)
    return total


@triton.jit
def _similarity(total: tl.tensor, rows: Side, columns: Side, i: tl.tensor, j: tl.tensor, k: int) -> tl.tensor:
    """Multiply by both inverse norms of prefix k, if there are any."""
    if rows.inverse is not None:
        total = total * tl.load(rows.inverse + k * rows.inverse_stride + i)[:, None]
        total = total * tl.load(columns.inverse + k * columns.inverse_stride + j)[None, :]
    return total


@triton.jit
def _factor(task: Task, i: tl.tensor, j: tl.tensor, HARDNESS: tl.constexpr) -> tl.tensor:
    """What turns similarities into logits: R x C, or a number."""
    factor = task.scale
    if HARDNESS != 0:
        own = (i + task.offset)[:, None] == (j % task.world)[None, :]
        positive = (i + task.offset)[:, None] == j[None, :]
        if HARDNESS == 1:
            gains = ~own
        elif HARDNESS == 2:
            gains = own & ~positive
        else:
            gains = ~positive
        factor = task.scale + tl.where(gains, task.strength, 0.0)
    return factor


@triton.jit
def _masked(
    rows: Side,
    columns: Side,
    span: Span,
    task: Task,
    i: tl.tensor,
    j: tl.tensor,
    column: tl.tensor,
    OWN: tl.constexpr,
    PRECISION: tl.constexpr,
    STEP: tl.constexpr,
) -> tl.tensor:
    """True where a column is past the end or excluded: 1 x C or R x C."""
    masked = (column >= span.end_column)[None, :]
    other = (i + task.offset)[:, None] != j[None, :]
    if OWN:
        masked = masked | ((i + task.offset)[:, None] == (j % task.world)[None, :])
    if rows.keys is not None:
        same = tl.load(rows.keys + 2 * i)[:, None] == tl.load(columns.keys + 2 * j)[None, :]
        same = same | (tl.load(rows.keys + 2 * i + 1)[:, None] == tl.load(columns.keys + 2 * j + 1)[None, :])
        masked = masked | (same & other)
    if rows.guide is not None:
        x, y = _addresses(rows.guide, rows.guide_stride, i, columns.guide, columns.guide_stride, j, STEP)
        nothing = tl.zeros((i.shape[0], j.shape[0]), tl.float32)
        scores = _accumulate(nothing, x, y, 0, rows.guide_steps, PRECISION, STEP)
        scores = scores * tl.load(rows.guide_inverse + i)[:, None] * tl.load(columns.guide_inverse + j)[None, :]
        masked = masked | ((scores > tl.load(task.bounds + i)[:, None]) & other)
    return masked


@triton.jit
def _log_sum_exp(logits: tl.tensor) -> tl.tensor:
    """Along rows; -inf where all entries are."""
    most = tl.max(logits, 1)
    most = tl.where(most == -float("inf"), 0.0, most)
    sums = tl.sum(tl.exp(logits - most[:, None]), 1)
    return tl.where(sums == 0, -float("inf"), most + tl.log(tl.where(sums == 0, 1.0, sums)))
