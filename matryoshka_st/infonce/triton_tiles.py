"""What all Triton kernels of score tiles share: where a tile lies, its scores prefix by prefix, its masks.

Legend: R x C a tile, K prefixes, W samples, S coordinates per step. Operands come with each block padded to whole
steps, so no load is masked along the width. Rows and columns past the end are read as the last one, and masked where
they would count: ``row`` and ``column`` may be past the end, ``i`` and ``j`` are what is read.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl


class Side(NamedTuple):
    """The rows, or the columns, of a score matrix; row i of each tensor is row (column) i of the matrix.

    ``inverse`` are K x rows inverse prefix norms, None for dot products; ``keys`` rows x 2, equal ones being known
    matches; ``guide`` and ``guide_inverse`` the guide's vectors and inverse norms. A stride is that of the first axis.
    """

    x: Any
    stride: int
    inverse: Any = None
    inverse_stride: int = 0
    keys: Any = None
    guide: Any = None
    guide_stride: int = 0
    guide_inverse: Any = None
    guide_steps: int = 0


class Span(NamedTuple):
    """The part of a score matrix that a launch covers."""

    row: int
    end_row: int
    column: int
    end_column: int


class Task(NamedTuple):
    """What the logits are made of: 0 and the prefixes' ends in steps (K + 1), W, row 0's sample, guide's bounds."""

    ends: Any
    prefixes: int
    world: int
    offset: int
    scale: float
    strength: float
    bounds: Any


@triton.jit
def place(span: Span, ROWS: tl.constexpr, COLUMNS: tl.constexpr) -> tl.tensor:
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
def addresses(
    x: tl.tensor, x_stride: int, i: tl.tensor, y: tl.tensor, y_stride: int, j: tl.tensor, STEP: tl.constexpr
) -> tuple[tl.tensor, tl.tensor]:
    """Of the first step of rows i of x (R x S) and of rows j of y, transposed (S x C)."""
    along = tl.arange(0, STEP)
    left = x + i.to(tl.int64)[:, None] * x_stride + along[None, :]
    right = y + j.to(tl.int64)[None, :] * y_stride + along[:, None]
    return left, right


@triton.jit
def accumulate(
    total: tl.tensor, x: tl.tensor, y: tl.tensor, low: int, high: int, PRECISION: tl.constexpr, STEP: tl.constexpr
) -> tl.tensor:
    """Add the product of steps ``low`` to ``high``."""
    for step in range(low, high):
        left, right = tl.load(x + step * STEP), tl.load(y + step * STEP)
        total = tl.dot(left, right, total, input_precision=PRECISION)
    return total


@triton.jit
def scaled(total: tl.tensor, rows: Side, columns: Side, i: tl.tensor, j: tl.tensor, k: int) -> tl.tensor:
    """Multiply by both inverse norms of prefix k, if there are any."""
    if rows.inverse is not None:
        total = total * tl.load(rows.inverse + k * rows.inverse_stride + i)[:, None]
        total = total * tl.load(columns.inverse + k * columns.inverse_stride + j)[None, :]
    return total


@triton.jit
def logit_factor(task: Task, i: tl.tensor, j: tl.tensor, HARDNESS: tl.constexpr) -> tl.tensor:
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
def masked_columns(
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
        x, y = addresses(rows.guide, rows.guide_stride, i, columns.guide, columns.guide_stride, j, STEP)
        nothing = tl.zeros((i.shape[0], j.shape[0]), tl.float32)
        scores = accumulate(nothing, x, y, 0, rows.guide_steps, PRECISION, STEP)
        scores = scores * tl.load(rows.guide_inverse + i)[:, None] * tl.load(columns.guide_inverse + j)[None, :]
        masked = masked | ((scores > tl.load(task.bounds + i)[:, None]) & other)
    return masked


@triton.jit
def row_log_sum_exp(logits: tl.tensor) -> tl.tensor:
    """Along rows; -inf where all entries are."""
    most = tl.max(logits, 1)
    most = tl.where(most == -float("inf"), 0.0, most)
    sums = tl.sum(tl.exp(logits - most[:, None]), 1)
    return tl.where(sums == 0, -float("inf"), most + tl.log(tl.where(sums == 0, 1.0, sums)))
