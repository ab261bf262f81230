"""Nested InfoNCE on any device: one pass over the width for all prefixes, tile by tile, in plain torch.

Legend: B local rows, N columns, D width, K prefixes d_1 < ... < d_K, blocks b_k = [d_{k-1}, d_k), T softmax groups,
R x C a tile.

Raw scores nest: ``S_k = S_{k-1} + X_{b_k} Y_{b_k}^T``, and the cosine at prefix k is ``S_k`` over the outer product of
the prefix norms. The forward pass walks each tile once through the blocks and keeps a running log-sum-exp per row and
prefix. The backward pass recomputes the tile; the gradient of block j uses the suffix sum over k >= j of the scaled
softmax, so it costs one width too, and the derivative of the norms is one scalar per vector and prefix.
No score matrix outlives its tile: memory is O((B + N)(D + K)) and a few tiles per prefix.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from matryoshka_st.infonce.exclusions import Exclusions, exclusions
from matryoshka_st.infonce.problem import DOCUMENTS, QUERIES, Beside, Problem
from matryoshka_st.infonce.scores import (
    Matrix,
    Scores,
    accumulate,
    block_widths,
    local_slices,
    logits,
    matrices,
    positive_scores,
)
from matryoshka_st.infonce.tiles import Tile, tile_shape


class Gradient(NamedTuple):
    """What a matrix accumulates: the gradient through the scores, its blocks as views, and K x N norm factors.

    ``norms[k, i]`` is the sum of ``d loss / d similarity * similarity`` of prefix k over what vector i takes part in;
    the derivative through its norm is ``-norms[k, i] / |x|^2 * x``.
    """

    x: Tensor
    blocks: tuple[Tensor, ...]
    norms: Tensor


def nested_losses(queries: Tensor, documents: Tensor, problem: Problem, beside: Beside | None = None) -> Tensor:
    """The losses of every prefix; see :mod:`matryoshka_st.infonce.problem` for the layout.

    Args:
        queries: B x D or W x D, float32 or float64.
        documents: N x D.
        problem: Everything but the tensors.
        beside: Ids and guide embeddings for the masks.

    Returns:
        1 x K losses; 2 x K with self-distillation.
    """
    last = problem.dims[-1]
    masks = exclusions(queries, documents, problem, beside or Beside())
    losses: Tensor = _NestedLosses.apply(queries[:, :last], documents[:, :last], problem, masks)
    return losses


class _NestedLosses(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, queries: Tensor, documents: Tensor, problem: Problem, masks: Exclusions | None) -> Tensor:
        scores = Scores(problem, matrices(queries, documents, problem), masks)
        lse = _log_sum_exps(scores)
        ctx.save_for_backward(queries, documents, lse, *(matrix.inverse for matrix in scores.matrices))
        ctx.problem, ctx.masks = problem, masks
        kept = (2 if problem.distill else 1) * len(problem.dims)
        ctx.shape = tile_shape(queries.device, queries.element_size(), kept + 2)
        groups = lse[:-1] if problem.distill else lse
        losses = [groups.mean(0) - problem.scale * positive_scores(scores)]
        if problem.distill:
            losses.append(_divergences(scores, lse[-1], ctx.shape))
        return torch.stack(losses).mean(dim=2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        queries, documents, lse, *inverses = ctx.saved_tensors
        with torch.autocast(queries.device.type, enabled=False):
            scores = Scores(ctx.problem, matrices(queries, documents, ctx.problem, inverses), ctx.masks)
            gradients = _gradient(queries, ctx.problem), _gradient(documents, ctx.problem)
            slope = upstream * (ctx.problem.scale / ctx.problem.layout.batch)
            _add_positive_gradients(scores, gradients, -slope[0])
            _add_softmax_gradients(scores, gradients, lse, slope, ctx.shape)
            for matrix, gradient in zip(scores.matrices, gradients, strict=True):
                _add_norm_gradients(matrix, gradient)
        return gradients[0].x, gradients[1].x, None, None


def _gradient(x: Tensor, problem: Problem) -> Gradient:
    to_x = torch.zeros_like(x, memory_format=torch.contiguous_format)
    return Gradient(to_x, to_x.split(block_widths(problem), dim=1), x.new_zeros(len(problem.dims), x.shape[0]))


def _log_sum_exps(scores: Scores) -> Tensor:
    """T x K x B: the log of each softmax denominator; with self-distillation one more, of query_to_doc alone."""
    problem, like = scores.problem, scores.matrices[0].blocks[0]
    groups = 1 + max(direction.group for direction in problem.directions)
    lse = like.new_full((groups + problem.distill, len(problem.dims), problem.layout.batch), -torch.inf)
    bounded = problem.similarity == "cosine" and _fits_exp(problem.scale + problem.hardness_strength, like.dtype)
    shape = tile_shape(like.device, like.element_size(), 2)
    memory = like.new_empty(2, shape[0] * shape[1])
    for tile in scores.tiles(shape):
        total, out = _cut(memory, tile)
        excluded = scores.excluded(tile)
        alone = problem.distill and _is_query_to_doc(tile)
        targets = [tile.direction.group, groups] if alone else [tile.direction.group]
        for k in range(len(problem.dims)):
            accumulate(total, k, tile, scores)
            logits(total, k, tile, scores, out=out, excluded=excluded)
            part = out.exp_().sum(1).log_() if bounded else torch.logsumexp(out, dim=1)
            for target in targets:
                running = lse[target, k, tile.rows]
                torch.logaddexp(running, part, out=running)
    return lse


def _fits_exp(largest: float, dtype: torch.dtype) -> bool:
    """Whether ``exp`` of logits of this size neither vanishes nor overflows, even summed over e^24 columns."""
    return largest <= math.log(torch.finfo(dtype).max) - 24


def _is_query_to_doc(tile: Tile) -> bool:
    return tile.direction[:2] == (QUERIES, DOCUMENTS)


def _cut(memory: Tensor, tile: Tile) -> Tensor:
    """The start of each row of ``memory``, in the tile's shape."""
    height, width = tile.shape
    return memory[:, : height * width].view(-1, height, width)


def _divergences(scores: Scores, lse: Tensor, shape: tuple[int, int]) -> Tensor:
    """K x B: ``KL(softmax_K || softmax_k)`` over the query_to_doc logits, whose log-sum-exps are ``lse`` (K x B)."""
    problem, like = scores.problem, scores.matrices[0].blocks[0]
    count = len(problem.dims)
    expected = torch.zeros_like(lse)
    memory = like.new_empty(count + 2, shape[0] * shape[1])
    for tile in scores.tiles(shape, problem.directions[:1]):
        total, teacher, *students = _cut(memory, tile)
        for k, student in enumerate(students):
            accumulate(total, k, tile, scores)
            logits(total, k, tile, scores, out=student, excluded=None)
        excluded = scores.excluded(tile)
        logits(total, count - 1, tile, scores, out=teacher, excluded=excluded, less=lse[-1, tile.rows]).exp_()
        for k, student in enumerate(students):
            expected[k, tile.rows] += student.mul_(teacher).sum(1)
    return (expected[-1] - expected) - (lse[-1] - lse)


def _add_positive_gradients(scores: Scores, gradients: tuple[Gradient, Gradient], slope: Tensor) -> None:
    """Add ``slope[k] * d similarity[k, i]`` of every local query i and its positive."""
    queries, documents = scores.matrices
    rows, positives = local_slices(scores)
    factors = slope[:, None].expand(-1, scores.problem.layout.batch)
    if queries.inverse is not None and documents.inverse is not None:
        weighted = factors * positive_scores(scores)
        gradients[0].norms[:, rows] += weighted
        gradients[1].norms[:, positives] += weighted
        factors = factors * queries.inverse[:, rows] * documents.inverse[:, positives]
    for k, factor in enumerate(_suffix_sums(factors).unsqueeze(2)):
        gradients[0].blocks[k][rows].addcmul_(documents.blocks[k][positives], factor)
        gradients[1].blocks[k][positives].addcmul_(queries.blocks[k][rows], factor)


def _add_softmax_gradients(
    scores: Scores, gradients: tuple[Gradient, Gradient], lse: Tensor, slope: Tensor, shape: tuple[int, int]
) -> None:
    """Add what the log-sum-exps (and the divergences) contribute, tile by tile."""
    problem = scores.problem
    count = len(problem.dims)
    groups = len(lse) - problem.distill
    memory = lse.new_empty((2 if problem.distill else 1) * count + 2, shape[0] * shape[1])
    for tile in scores.tiles(shape):
        scratch, *tiles = _cut(memory, tile)
        if problem.distill and _is_query_to_doc(tile):
            residuals = _distilled_residuals(tile, scores, lse, slope / slope.new_tensor([[groups], [1]]), tiles)
        else:
            residuals = _residuals(tile, scores, lse[tile.direction.group], slope[0] / groups, tiles)
        _add_tile_gradients(tile, scores, gradients, residuals, scratch)


def _residuals(
    tile: Tile, scores: Scores, lse: Tensor, slope: Tensor, memory: list[Tensor]
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """For each prefix: raw scores and softmax (R x C both), and the slope by which to multiply the softmax."""
    total, softmaxes = memory[0], memory[1 : len(scores.problem.dims) + 1]
    excluded = scores.excluded(tile)
    for k, softmax in enumerate(softmaxes):
        accumulate(total, k, tile, scores)
        logits(total, k, tile, scores, out=softmax, excluded=excluded, less=lse[k, tile.rows]).exp_()
        yield total, softmax, slope[k]


def _distilled_residuals(
    tile: Tile, scores: Scores, lse: Tensor, slope: Tensor, memory: list[Tensor]
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """The same for both terms together: ``slope[0] * softmax + slope[1] * (softmax_k - softmax_K)``."""
    count = len(scores.problem.dims)
    raw, residuals, alone = memory[:count], memory[count:-1], memory[-1]
    excluded = scores.excluded(tile)
    for k, residual in enumerate(residuals):
        accumulate(raw[k], k, tile, scores, before=raw[k - 1])
        logits(raw[k], k, tile, scores, out=alone, excluded=excluded, less=lse[-1, k, tile.rows]).exp_()
        less = lse[tile.direction.group, k, tile.rows]
        logits(raw[k], k, tile, scores, out=residual, excluded=excluded, less=less).exp_()
        residual.mul_(slope[0, k]).addcmul_(alone, slope[1, k])
    teacher = alone
    for k, residual in enumerate(residuals):
        yield raw[k], residual.addcmul_(teacher, slope[1, k], value=-1), slope.new_ones(())


def _add_tile_gradients(
    tile: Tile,
    scores: Scores,
    gradients: tuple[Gradient, Gradient],
    residuals: Iterator[tuple[Tensor, Tensor, Tensor]],
    scratch: Tensor,
) -> None:
    """Add the gradient of what has these residuals (``d loss / d similarity``) to the tile's rows and columns."""
    rows, columns = tile.x_rows, tile.columns
    x, y = scores.sides(tile)
    to_x, to_y = gradients[tile.direction.rows], gradients[tile.direction.columns]
    kept = []
    for k, (total, residual, slope) in enumerate(residuals):
        if x.inverse is None or y.inverse is None:
            residual.mul_(slope)
        else:
            left, right = slope * x.inverse[k, rows], y.inverse[k, columns]
            torch.mul(total, residual, out=scratch)
            to_x.norms[k, rows] += (scratch @ right).mul_(left)
            to_y.norms[k, columns] += (left @ scratch).mul_(right)
            residual.mul_(left[:, None]).mul_(right)
        kept.append(residual)
    suffix: Tensor | None = None
    for k in reversed(range(len(kept))):
        suffix = kept[k] if suffix is None else suffix.add_(kept[k])
        to_x.blocks[k][rows].addmm_(suffix, y.blocks[k][columns])
        to_y.blocks[k][columns].addmm_(suffix.T, x.blocks[k][rows])


def _add_norm_gradients(matrix: Matrix, gradient: Gradient) -> None:
    if matrix.inverse is None:
        return
    factors = _suffix_sums(gradient.norms * matrix.inverse**2).unsqueeze(2)
    for block, to_block, factor in zip(matrix.blocks, gradient.blocks, factors, strict=True):
        to_block.addcmul_(block, factor, value=-1)


def _suffix_sums(x: Tensor) -> Tensor:
    """``out[j] = sum over k >= j of x[k]``."""
    return x.flip(0).cumsum(0).flip(0)
