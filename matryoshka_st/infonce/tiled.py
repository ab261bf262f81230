"""Nested InfoNCE on any device: one pass over the width for all prefixes, tile by tile, in plain torch.

Legend: B queries, N documents, D width, K prefixes d_1 < ... < d_K = D, blocks b_k = [d_{k-1}, d_k), T softmax groups.

Raw scores nest: ``S_k = S_{k-1} + X_{b_k} Y_{b_k}^T``, and the cosine at prefix k is ``S_k`` over the outer product of
the prefix norms. The forward pass walks each tile once through the blocks and keeps a running log-sum-exp per row and
prefix. The backward pass recomputes the tile; the gradient of block j uses the suffix sum over k >= j of the scaled
softmax, so it costs one width too, and the derivative of the norms is one scalar per vector and prefix.
No score matrix outlives its tile.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

TILE_ROWS = 256
TILE_COLUMNS = 2048
_NO_NORM = 1e-12  # the eps of torch.nn.functional.normalize


class Direction(NamedTuple):
    """Rows of one matrix scored against all rows of another, inside one softmax group.

    ``rows`` and ``columns`` say which tensor: 0 = queries, 1 = documents (as rows: only the B positives).
    ``own`` excludes the columns that belong to the row's own sample: column index modulo B equals the row index.
    """

    rows: int
    columns: int
    own: bool
    group: int


class Side(NamedTuple):
    """A matrix, its K x N inverse prefix norms (0 for a zero prefix), and a view of each of its blocks."""

    x: Tensor
    inverse: Tensor
    blocks: tuple[Tensor, ...]


class Gradient(NamedTuple):
    """What a side accumulates: the gradient through the scores, its blocks as views, and K x N norm factors.

    ``norms[k, i]`` is the sum of ``d loss / d logit * logit`` over the logits of prefix k that vector i takes part in;
    the derivative through its norm is ``-norms[k, i] / |x|^2 * x``.
    """

    x: Tensor
    blocks: tuple[Tensor, ...]
    norms: Tensor


class Tile(NamedTuple):
    """A rectangle of one direction's score matrix."""

    direction: Direction
    rows: slice
    columns: slice


def nested_losses(
    queries: Tensor, documents: Tensor, dims: Sequence[int], scale: float, directions: Sequence[Direction]
) -> Tensor:
    """InfoNCE of every prefix, averaged over queries and groups.

    Args:
        queries: B x D, float32 or float64.
        documents: N x D, N a multiple of B; document ``i + c * B`` belongs to query i, the first B are the positives.
        dims: Ascending prefixes; coordinates past the last are not read.
        scale: 1 / temperature.
        directions: What each softmax group is made of; every group holds at least one column per row.

    Returns:
        K losses.
    """
    last = dims[-1]
    losses: Tensor = _NestedLosses.apply(queries[:, :last], documents[:, :last], tuple(dims), scale, tuple(directions))
    return losses


class _NestedLosses(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        queries: Tensor,
        documents: Tensor,
        dims: tuple[int, ...],
        scale: float,
        directions: tuple[Direction, ...],
    ) -> Tensor:
        sides = (_side(queries, dims), _side(documents, dims))
        lse = _log_sum_exps(sides, scale, directions)
        positives = _positive_logits(sides, scale)
        ctx.save_for_backward(queries, documents, lse)
        ctx.dims, ctx.scale, ctx.directions = dims, scale, directions
        return (lse.mean(dim=0) - positives).mean(dim=1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        queries, documents, lse = ctx.saved_tensors
        with torch.autocast(queries.device.type, enabled=False):
            sides = (_side(queries, ctx.dims), _side(documents, ctx.dims))
            gradients = (_gradient(sides[0]), _gradient(sides[1]))
            per_row = upstream / queries.shape[0]
            _add_positive_gradients(sides, gradients, -per_row, ctx.scale)
            per_row = per_row / lse.shape[0]
            for tile in _tiles(sides, ctx.directions):
                _add_tile_gradients(tile, sides, gradients, lse, per_row, ctx.scale)
            for side, gradient in zip(sides, gradients, strict=True):
                _add_norm_gradients(side, gradient)
        return gradients[0].x, gradients[1].x, None, None, None


def _side(x: Tensor, dims: tuple[int, ...]) -> Side:
    widths = [high - low for low, high in zip((0, *dims), dims, strict=False)]
    blocks = x.split(widths, dim=1)
    norms = torch.stack([block.square().sum(1) for block in blocks]).cumsum(0).sqrt()
    return Side(x, torch.where(norms > _NO_NORM, 1 / norms, torch.zeros_like(norms)), blocks)


def _gradient(side: Side) -> Gradient:
    x = torch.zeros_like(side.x)
    return Gradient(x, x.split([block.shape[1] for block in side.blocks], dim=1), torch.zeros_like(side.inverse))


def _tiles(sides: tuple[Side, Side], directions: Sequence[Direction]) -> Iterator[Tile]:
    for direction in directions:
        for rows in _ranges(sides[0].x.shape[0], TILE_ROWS):
            for columns in _ranges(sides[direction.columns].x.shape[0], TILE_COLUMNS):
                yield Tile(direction, rows, columns)


def _ranges(count: int, step: int) -> list[slice]:
    return [slice(start, min(start + step, count)) for start in range(0, count, step)]


def _logits(tile: Tile, sides: tuple[Side, Side], scale: float) -> Iterator[Tensor]:
    """The tile's scaled cosines at each prefix, ascending; excluded ones are -inf. The caller may overwrite them."""
    x, y = sides[tile.direction.rows], sides[tile.direction.columns]
    own = _own(tile, sides[0].x.shape[0], x.x.device) if tile.direction.own else None
    scores: Tensor | None = None
    for k, (x_block, y_block) in enumerate(zip(x.blocks, y.blocks, strict=True)):
        left, right = x_block[tile.rows], y_block[tile.columns].T
        scores = left @ right if scores is None else scores.addmm_(left, right)
        logits = scores * (scale * x.inverse[k, tile.rows])[:, None]
        logits *= y.inverse[k, tile.columns]
        yield logits if own is None else logits.masked_fill_(own, -torch.inf)


def _own(tile: Tile, batch: int, device: torch.device) -> Tensor:
    rows = torch.arange(tile.rows.start, tile.rows.stop, device=device)
    columns = torch.arange(tile.columns.start, tile.columns.stop, device=device)
    return rows[:, None] == columns % batch


def _log_sum_exps(sides: tuple[Side, Side], scale: float, directions: Sequence[Direction]) -> Tensor:
    """T x K x B: the log of each softmax denominator, accumulated over tiles."""
    inverse = sides[0].inverse
    groups = 1 + max(direction.group for direction in directions)
    lse = inverse.new_full((groups, *inverse.shape), -torch.inf)
    for tile in _tiles(sides, directions):
        for k, logits in enumerate(_logits(tile, sides, scale)):
            running = lse[tile.direction.group, k, tile.rows]
            torch.logaddexp(running, torch.logsumexp(logits, dim=1), out=running)
    return lse


def _positive_logits(sides: tuple[Side, Side], scale: float) -> Tensor:
    """K x B: the scaled cosine of each query with its positive."""
    queries, documents = sides
    batch = queries.x.shape[0]
    products = [(q * d[:batch]).sum(1) for q, d in zip(queries.blocks, documents.blocks, strict=True)]
    return torch.stack(products).cumsum(0) * queries.inverse * documents.inverse[:, :batch] * scale


def _add_positive_gradients(
    sides: tuple[Side, Side], gradients: tuple[Gradient, Gradient], per_row: Tensor, scale: float
) -> None:
    """Add ``per_row[k] * d positive_logit[k, i]`` for every query i."""
    queries, documents = sides
    batch = queries.x.shape[0]
    weighted = per_row[:, None] * _positive_logits(sides, scale)
    gradients[0].norms.add_(weighted)
    gradients[1].norms[:, :batch].add_(weighted)
    factors = _suffix_sums(per_row[:, None] * scale * queries.inverse * documents.inverse[:, :batch])
    for k, factor in enumerate(factors.unsqueeze(2)):
        gradients[0].blocks[k].addcmul_(documents.blocks[k][:batch], factor)
        gradients[1].blocks[k][:batch].addcmul_(queries.blocks[k], factor)


def _add_tile_gradients(
    tile: Tile,
    sides: tuple[Side, Side],
    gradients: tuple[Gradient, Gradient],
    lse: Tensor,
    per_row: Tensor,
    scale: float,
) -> None:
    """Add ``per_row[k] * d lse[group, k, i]`` for the rows and columns of one tile."""
    direction, rows, columns = tile
    x, y = sides[direction.rows], sides[direction.columns]
    to_x, to_y = gradients[direction.rows], gradients[direction.columns]
    residuals = []
    for k, logits in enumerate(_logits(tile, sides, scale)):
        softmax = torch.exp(logits - lse[direction.group, k, rows, None]).mul_(per_row[k])
        if direction.own:
            logits.nan_to_num_(nan=torch.nan, neginf=0.0)
        weighted = logits.mul_(softmax)
        to_x.norms[k, rows] += weighted.sum(1)
        to_y.norms[k, columns] += weighted.sum(0)
        softmax *= (scale * x.inverse[k, rows])[:, None]
        residuals.append(softmax.mul_(y.inverse[k, columns]))
    suffix: Tensor | None = None
    for k in reversed(range(len(residuals))):
        suffix = residuals[k] if suffix is None else suffix.add_(residuals[k])
        to_x.blocks[k][rows].addmm_(suffix, y.blocks[k][columns])
        to_y.blocks[k][columns].addmm_(suffix.T, x.blocks[k][rows])


def _add_norm_gradients(side: Side, gradient: Gradient) -> None:
    factors = _suffix_sums(gradient.norms * side.inverse**2).unsqueeze(2)
    for block, to_block, factor in zip(side.blocks, gradient.blocks, factors, strict=True):
        to_block.addcmul_(block, factor, value=-1)


def _suffix_sums(x: Tensor) -> Tensor:
    """``out[j] = sum over k >= j of x[k]``."""
    return x.flip(0).cumsum(0).flip(0)
