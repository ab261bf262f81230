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
from matryoshka_st.infonce.problem import Beside, Problem
from matryoshka_st.infonce.scores import (
    Matrix,
    Part,
    Scores,
    accumulate,
    is_query_to_doc,
    local_slices,
    logits,
    matrices,
    parts,
    positive_scores,
    split,
)
from matryoshka_st.infonce.tiles import Tile, tile_shape


class Gradient(NamedTuple):
    """What a matrix accumulates: the gradient through the scores, and K x N norm factors.

    ``norms[k, i]`` is the sum of ``d loss / d similarity * similarity`` of prefix k over what vector i takes part in;
    the derivative through its norm is ``-norms[k, i] / |x|^2 * x``.
    """

    x: Tensor
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
            if ctx.problem.similarity == "cosine" and ctx.problem.dims[0] == 1:
                slope[:, 0] = (
                    0  # the cosine of one coordinate is a sign: its gradient is zero, not what rounding leaves
                )
            _add_positive_gradients(scores, gradients, -slope[0])
            _add_softmax_gradients(scores, gradients, lse, slope, ctx.shape)
            for matrix, gradient in zip(scores.matrices, gradients, strict=True):
                _add_norm_gradients(matrix, gradient, ctx.problem)
        return gradients[0].x, gradients[1].x, None, None


def _gradient(x: Tensor, problem: Problem) -> Gradient:
    to_x = torch.zeros_like(x, memory_format=torch.contiguous_format)
    return Gradient(to_x, x.new_zeros(len(problem.dims), x.shape[0]))


def _log_sum_exps(scores: Scores) -> Tensor:
    """T x K x B: the log of each softmax denominator; with self-distillation one more, of query_to_doc alone."""
    problem, like = scores.problem, scores.matrices[0].x
    groups = 1 + max(direction.group for direction in problem.directions)
    lse = like.new_full((groups + problem.distill, len(problem.dims), problem.layout.batch), -torch.inf)
    bounded = problem.similarity == "cosine" and _fits_exp(problem.scale + problem.hardness_strength, like.dtype)
    shape = tile_shape(like.device, like.element_size(), 2)
    memory = _tile_memory(2, shape, scores)
    for part in parts(scores, shape):
        total, out = _cut(memory, part.tile)
        targets = [part.tile.direction.group]
        if problem.distill and is_query_to_doc(part.tile):
            targets.append(groups)
        for k in range(len(problem.dims)):
            accumulate(total, k, part)
            logits(total, k, part, out=out)
            sums = out.exp_().sum(1).log_() if bounded else torch.logsumexp(out, dim=1)
            for target in targets:
                running = lse[target, k, part.tile.rows]
                torch.logaddexp(running, sums, out=running)
    return lse


def _fits_exp(largest: float, dtype: torch.dtype) -> bool:
    """Whether ``exp`` of logits of this size neither vanishes nor overflows, even summed over e^24 columns."""
    return largest <= math.log(torch.finfo(dtype).max) - 24


def _tile_memory(count: int, shape: tuple[int, int], scores: Scores) -> Tensor:
    """Room for ``count`` tiles, each a row; no larger than the score matrix."""
    most = max(len(matrix.x) for matrix in scores.matrices)
    size = min(shape[0], scores.problem.layout.batch) * min(shape[1], most)
    return scores.matrices[0].x.new_empty(count, size)


def _cut(memory: Tensor, tile: Tile) -> tuple[Tensor, ...]:
    """The start of each row of ``memory``, in the tile's shape."""
    height, width = tile.shape
    return memory[:, : height * width].view(-1, height, width).unbind()


def _divergences(scores: Scores, lse: Tensor, shape: tuple[int, int]) -> Tensor:
    """K x B: ``KL(softmax_K || softmax_k)`` over the query_to_doc logits, whose log-sum-exps are ``lse`` (K x B)."""
    problem = scores.problem
    count = len(problem.dims)
    expected = torch.zeros_like(lse)
    memory = _tile_memory(count + 2, shape, scores)
    for part in parts(scores, shape, problem.directions[:1]):
        total, teacher, *students = _cut(memory, part.tile)
        for k, student in enumerate(students):
            accumulate(total, k, part)
            logits(total, k, part, out=student, masked=False)
        logits(total, count - 1, part, out=teacher, less=lse[-1, part.tile.rows, None]).exp_()
        for k, student in enumerate(students):
            expected[k, part.tile.rows] += student.mul_(teacher).sum(1)
    return (expected[-1] - expected) - (lse[-1] - lse)


def _add_positive_gradients(scores: Scores, gradients: tuple[Gradient, Gradient], slope: Tensor) -> None:
    """Add ``slope[k] * d similarity[k, i]`` of every local query i and its positive."""
    problem, (queries, documents) = scores.problem, scores.matrices
    left, right = local_slices(scores)
    factors = slope[:, None].expand(-1, problem.layout.batch)
    if queries.inverse is not None and documents.inverse is not None:
        weighted = factors * positive_scores(scores)
        gradients[0].norms[:, left] += weighted
        gradients[1].norms[:, right] += weighted
        factors = factors * queries.inverse[:, left] * documents.inverse[:, right]
    factors = _suffix_sums(factors).unsqueeze(2)
    _add_scaled(gradients[0].x[left], documents.x[right], factors, problem)
    _add_scaled(gradients[1].x[right], queries.x[left], factors, problem)


def _add_softmax_gradients(
    scores: Scores, gradients: tuple[Gradient, Gradient], lse: Tensor, slope: Tensor, shape: tuple[int, int]
) -> None:
    """Add what the log-sum-exps (and the divergences) contribute, tile by tile."""
    problem = scores.problem
    count = len(problem.dims)
    groups = len(lse) - problem.distill
    memory = _tile_memory((2 if problem.distill else 1) * count + 2, shape, scores)
    for part in parts(scores, shape):
        scratch, *tiles = _cut(memory, part.tile)
        less = lse[:, :, part.tile.rows, None]
        if problem.distill and is_query_to_doc(part.tile):
            slopes = slope / slope.new_tensor([[groups], [1]])
            kept = _distilled_residuals(part, less, slopes, tiles)
            slopes = torch.ones_like(slope[0])
        else:
            slopes = slope[0] / groups
            kept = _residuals(part, less[part.tile.direction.group], tiles)
        _add_tile_gradients(part, scores, gradients, kept, slopes, scratch)


def _residuals(part: Part, lse: Tensor, memory: list[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
    """For each prefix: raw scores and softmax, R x C both. ``lse`` is K x R x 1."""
    total = memory[0]
    for k, (softmax, less) in enumerate(zip(memory[1:], lse.unbind(), strict=False)):
        accumulate(total, k, part)
        yield total, logits(total, k, part, out=softmax, less=less).exp_()


def _distilled_residuals(
    part: Part, lse: Tensor, slope: Tensor, memory: list[Tensor]
) -> Iterator[tuple[Tensor, Tensor]]:
    """The same for both terms together: ``slope[0] * softmax + slope[1] * (softmax_k - softmax_K)``."""
    count = slope.shape[1]
    raw, residuals, alone = memory[:count], memory[count:-1], memory[-1]
    for k, residual in enumerate(residuals):
        accumulate(raw[k], k, part, before=raw[k - 1])
        logits(raw[k], k, part, out=alone, less=lse[-1, k]).exp_()
        logits(raw[k], k, part, out=residual, less=lse[part.tile.direction.group, k]).exp_()
        residual.mul_(slope[0, k]).addcmul_(alone, slope[1, k])
    teacher = alone
    for k, residual in enumerate(residuals):
        yield raw[k], residual.addcmul_(teacher, slope[1, k], value=-1)


def _add_tile_gradients(
    part: Part,
    scores: Scores,
    gradients: tuple[Gradient, Gradient],
    residuals: Iterator[tuple[Tensor, Tensor]],
    slope: Tensor,
    scratch: Tensor,
) -> None:
    """Add the gradient of what has ``slope[k] * residual`` as its derivative by the similarities of prefix k."""
    direction, rows, columns = part.tile.direction, part.tile.x_rows, part.tile.columns
    to_x, to_y = gradients[direction.rows], gradients[direction.columns]
    inverse = scores.matrices[direction.rows].inverse
    left = (slope[:, None] if inverse is None else slope[:, None] * inverse[:, rows]).unbind()
    row_norms, column_norms = to_x.norms[:, rows].unbind(), to_y.norms[:, columns].unbind()
    kept = []
    for k, (total, residual) in enumerate(residuals):
        if part.column_factors is None:
            residual.mul_(left[k])
        else:
            right = part.column_factors[k]
            torch.mul(total, residual, out=scratch)
            row_norms[k].addcmul_(scratch @ right, left[k])
            column_norms[k].addcmul_(left[k] @ scratch, right)
            residual.mul_(left[k][:, None]).mul_(right)
        kept.append(residual)
    x_blocks, y_blocks = split(to_x.x[rows], part.problem), split(to_y.x[columns], part.problem)
    suffix: Tensor | None = None
    for k in reversed(range(len(kept))):
        suffix = kept[k] if suffix is None else suffix.add_(kept[k])
        x_blocks[k].addmm_(suffix, part.columns[k].T)
        y_blocks[k].addmm_(suffix.T, part.rows[k])


def _add_norm_gradients(matrix: Matrix, gradient: Gradient, problem: Problem) -> None:
    if matrix.inverse is not None:
        factors = _suffix_sums(gradient.norms * matrix.inverse**2).neg_().unsqueeze(2)
        _add_scaled(gradient.x, matrix.x, factors, problem)


def _add_scaled(target: Tensor, x: Tensor, factors: Tensor, problem: Problem) -> None:
    """Add to each block of ``target`` (n x D) that of ``x`` times its factors (K x n x 1)."""
    for to_block, block, factor in zip(split(target, problem), split(x, problem), factors, strict=True):
        to_block.addcmul_(block, factor)


def _suffix_sums(x: Tensor) -> Tensor:
    """``out[j] = sum over k >= j of x[k]``."""
    return x.flip(0).cumsum(0).flip(0)
