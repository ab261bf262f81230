"""Nested InfoNCE on any device: one pass over the width for all prefixes, tile by tile, in plain torch.

Legend: B local rows, N columns, D width, K prefixes d_1 < ... < d_K, blocks b_k = [d_{k-1}, d_k), T softmax groups,
R x C a tile.

Raw scores nest: ``S_k = S_{k-1} + X_{b_k} Y_{b_k}^T``, and the cosine at prefix k is ``S_k`` over the outer product of
the prefix norms. The forward pass walks each tile once through the blocks and keeps a running log-sum-exp per row and
prefix. The backward pass recomputes the tile; the gradient of block j uses the suffix sum over k >= j of the scaled
``softmax - target``, so it costs one width too, and the derivative of the norms is one scalar per vector and prefix.
Logits are taken relative to the row's positive, so that saturated rows keep their digits.
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
    logits,
    matrices,
    parts,
    positive_scores,
    positives_in,
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
        positive = problem.scale * positive_scores(scores)
        rows = _row_losses(scores, positive)
        ctx.save_for_backward(queries, documents, rows, positive, *(matrix.inverse for matrix in scores.matrices))
        ctx.problem, ctx.masks = problem, masks
        kept = (2 if problem.distill else 1) * len(problem.dims)
        ctx.shape = tile_shape(queries.device, queries.element_size(), kept + 2)
        losses = [(rows[:-1] if problem.distill else rows).mean(0)]
        if problem.distill:
            losses.append(_divergences(scores, rows[-1] + positive, ctx.shape))
        return torch.stack(losses).mean(dim=2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        queries, documents, rows, positive, *inverses = ctx.saved_tensors
        with torch.autocast(queries.device.type, enabled=False):
            scores = Scores(ctx.problem, matrices(queries, documents, ctx.problem, inverses), ctx.masks)
            gradients = _gradient(queries, ctx.problem), _gradient(documents, ctx.problem)
            slope = upstream * (ctx.problem.scale / ctx.problem.layout.batch)
            if ctx.problem.similarity == "cosine" and ctx.problem.dims[0] == 1:
                slope[:, 0] = (
                    0  # the cosine of one coordinate is a sign: this is its gradient, not what rounding leaves
                )
            _add_score_gradients(scores, gradients, rows, positive, slope, ctx.shape)
            for matrix, gradient in zip(scores.matrices, gradients, strict=True):
                _add_norm_gradients(matrix, gradient, ctx.problem)
        return gradients[0].x, gradients[1].x, None, None


def _gradient(x: Tensor, problem: Problem) -> Gradient:
    to_x = torch.zeros_like(x, memory_format=torch.contiguous_format)
    return Gradient(to_x, x.new_zeros(len(problem.dims), x.shape[0]))


def _row_losses(scores: Scores, positive: Tensor) -> Tensor:
    """T x K x B: each row's loss, ``log(1 + sum of exp(logit - positive))`` over all other columns.

    With self-distillation there is one more, over query_to_doc alone. ``positive`` is K x B, the logits of the
    positives.
    """
    problem = scores.problem
    groups = 1 + max(direction.group for direction in problem.directions)
    sums = positive.new_full((groups + problem.distill, *positive.shape), -torch.inf)
    reference = positive
    room = (
        math.log(torch.finfo(positive.dtype).max) - 24
    )  # exp neither vanishes nor overflows, summed over e^24 columns
    largest = problem.scale + problem.hardness_strength
    bounded = problem.similarity == "cosine" and largest + problem.scale <= 2 * room
    if bounded:
        reference = positive.clamp(min=largest - room)
    shape = tile_shape(positive.device, positive.element_size(), 2)
    memory = _tile_memory(2, shape, scores)
    for part in parts(scores, shape):
        total, out = _cut(memory, part.tile)
        less = reference[:, part.tile.rows].neg().unsqueeze(2).unbind()
        tile_sums = positive.new_empty(len(problem.dims), part.tile.shape[0])
        for k, tile_sum in enumerate(tile_sums.unbind()):
            accumulate(total, k, part)
            logits(total, k, part, out=out, plus=less[k])
            for diagonal, _ in positives_in(part.tile):
                out.diagonal(diagonal).fill_(-torch.inf)
            if bounded:
                torch.sum(out.exp_(), dim=1, out=tile_sum)
            else:
                torch.logsumexp(out, dim=1, out=tile_sum)
        if bounded:
            tile_sums.log_()
        alone = [groups] if problem.distill and is_query_to_doc(part.tile) else []
        for target in [part.tile.direction.group, *alone]:
            running = sums[target, :, part.tile.rows]
            running.copy_(torch.logaddexp(running, tile_sums))
    return torch.logaddexp(sums.add_(reference - positive), sums.new_zeros(()))


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
        logits(total, count - 1, part, out=teacher, plus=-lse[-1, part.tile.rows, None]).exp_()
        for k, student in enumerate(students):
            expected[k, part.tile.rows] += student.mul_(teacher).sum(1)
    return (expected[-1] - expected) - (lse[-1] - lse)


def _add_score_gradients(
    scores: Scores,
    gradients: tuple[Gradient, Gradient],
    rows: Tensor,
    positive: Tensor,
    slope: Tensor,
    shape: tuple[int, int],
) -> None:
    """Add what the rows' losses (and the divergences) contribute, tile by tile."""
    problem = scores.problem
    count, groups = len(problem.dims), len(rows) - problem.distill
    lse, targets = rows + positive, torch.expm1(-rows)
    inverses = [_local_inverses(matrix, positive) for matrix in scores.matrices]
    added = [inverse.log() - lse for inverse in inverses]
    residuals = [targets * inverse for inverse in inverses]
    memory = _tile_memory((2 if problem.distill else 1) * count + 2, shape, scores)
    for part in parts(scores, shape):
        direction, where = part.tile.direction, part.tile.rows
        own = residuals[direction.rows][direction.group]
        plus = added[direction.rows][:, :, where].unsqueeze(3)
        scratch, *tiles = _cut(memory, part.tile)
        if problem.distill and is_query_to_doc(part.tile):
            slopes = slope / slope.new_tensor([[groups], [1]])
            teacher = -lse[-1, -1, where, None], inverses[direction.rows][:, where, None] * slopes[1, :, None, None]
            kept = _distilled_residuals(part, plus[[direction.group, -1]], own, slopes, teacher, tiles)
            slopes = torch.ones_like(slope[0])
        else:
            slopes = slope[0] / groups
            kept = _residuals(part, plus[direction.group], own, tiles)
        _add_tile_gradients(part, gradients, kept, slopes, scratch)


def _local_inverses(matrix: Matrix, like: Tensor) -> Tensor:
    """K x B inverse norms of the local rows; ones for dot products."""
    if matrix.inverse is None:
        return torch.ones_like(like)
    return matrix.inverse[:, matrix.start : matrix.start + like.shape[1]]


def _residuals(part: Part, plus: Tensor, own: Tensor, memory: list[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
    """For each prefix: raw scores, and softmax less target, over the row's norm; R x C both.

    Args:
        part: The tile.
        plus: K x R x 1, what makes logits of these: minus the log-sum-exp and the logarithm of the norm.
        own: K x B, the entries of the positives.
        memory: K + 1 tiles.
    """
    total = memory[0]
    for k, (add, residual) in enumerate(zip(plus.unbind(), memory[1:], strict=False)):
        accumulate(total, k, part)
        yield total, _residual(total, k, part, add, own[k], residual)


def _distilled_residuals(
    part: Part, plus: Tensor, own: Tensor, slope: Tensor, teacher: tuple[Tensor, Tensor], memory: list[Tensor]
) -> Iterator[tuple[Tensor, Tensor]]:
    """The same for both terms together: ``slope[0] * (softmax - target) + slope[1] * (softmax_k - softmax_K)``.

    ``plus`` holds that of the direction's group and that of query_to_doc alone; ``teacher`` that of the last prefix
    (R x 1) without the norm, and its factors at every prefix (K x R x 1).
    """
    count = slope.shape[1]
    raw, residuals, alone = memory[:count], memory[count:-1], memory[-1]
    for k, residual in enumerate(residuals):
        accumulate(raw[k], k, part, before=raw[k - 1])
        logits(raw[k], k, part, out=alone, plus=plus[1, k]).exp_()
        _residual(raw[k], k, part, plus[0, k], own[k], residual).mul_(slope[0, k]).addcmul_(alone, slope[1, k])
    logits(raw[-1], count - 1, part, out=alone, plus=teacher[0]).exp_()
    for k, residual in enumerate(residuals):
        yield raw[k], residual.addcmul_(alone, teacher[1][k], value=-1)


def _residual(total: Tensor, k: int, part: Part, plus: Tensor, own: Tensor, out: Tensor) -> Tensor:
    logits(total, k, part, out=out, plus=plus).exp_()
    for diagonal, rows in positives_in(part.tile):
        out.diagonal(diagonal).copy_(own[rows])
    return out


def _add_tile_gradients(
    part: Part,
    gradients: tuple[Gradient, Gradient],
    residuals: Iterator[tuple[Tensor, Tensor]],
    slope: Tensor,
    scratch: Tensor,
) -> None:
    """Add the gradient of what has ``slope[k] * residual * row norm`` as its derivative by prefix k's similarities."""
    direction, rows, columns = part.tile.direction, part.tile.x_rows, part.tile.columns
    to_x, to_y = gradients[direction.rows], gradients[direction.columns]
    right = slope[:, None] if part.column_factors is None else slope[:, None] * torch.stack(part.column_factors)
    row_sums, column_sums = (slope.new_empty(len(slope), size) for size in part.tile.shape)
    kept = []
    for (total, residual), factors, row_sum, column_sum in zip(residuals, right, row_sums, column_sums, strict=True):
        if part.column_factors is not None:
            torch.mul(total, residual, out=scratch)
            torch.mv(scratch, factors, out=row_sum)
            torch.sum(scratch, dim=0, out=column_sum)
        kept.append(residual)
    if part.column_factors is not None:
        to_x.norms[:, rows] += row_sums
        to_y.norms[:, columns] += column_sums * right
    x_blocks, y_blocks = split(to_x.x[rows], part.problem), split(to_y.x[columns], part.problem)
    suffix = torch.mul(kept[-1], right[-1], out=kept[-1])
    transposed = suffix.T
    for k in reversed(range(len(kept))):
        if k < len(kept) - 1:
            suffix.addcmul_(kept[k], right[k])
        x_blocks[k].addmm_(suffix, part.columns[k].T)
        y_blocks[k].addmm_(transposed, part.rows[k])


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
