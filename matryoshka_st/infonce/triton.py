"""Nested InfoNCE on CUDA: the tiled engine's maths as Triton kernels.

Legend: B local rows, W samples, N documents, D width, K prefixes, T softmax groups.

Forward, one kernel walks each tile of a score matrix once through the width and writes a log-sum-exp per row and
prefix; those of all tiles and directions are added up afterwards. The backward pass is in
:mod:`matryoshka_st.infonce.triton_gradients`. Every sum is made in float32 and in a fixed order, so results do not
change from run to run.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import triton
from torch import Tensor
from torch.autograd.function import once_differentiable

from matryoshka_st.infonce import triton_kernels as kernels
from matryoshka_st.infonce.problem import Beside, Direction, Problem
from matryoshka_st.infonce.triton_gradients import gradients
from matryoshka_st.infonce.triton_operands import (
    BLOCKS,
    INTERPRETED,
    Masks,
    Operand,
    Plan,
    grid_of,
    is_query_to_doc,
    masks_of,
    operands_of,
    options_of,
    padded_widths,
    plan_of,
    sides_of,
    task_of,
    whole,
)
from matryoshka_st.infonce.triton_tiles import Span

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
        with torch.cuda.device_of(queries), torch.autocast(queries.device.type, enabled=False):
            return *gradients(queries, documents, lse, upstream, ctx.plan, ctx.masks), None, None


def _log_sum_exps(operands: tuple[Operand, Operand], plan: Plan, masks: Masks) -> Tensor:
    """T x K x B: the log of each softmax denominator; with self-distillation one more, of query_to_doc alone."""
    problem = plan.problem
    groups = 1 + max(direction.group for direction in problem.directions)
    shape = groups + problem.distill, len(plan.widths), problem.layout.batch
    lse = torch.full(shape, -torch.inf, dtype=torch.float32, device=operands[0].x.device)
    for direction in problem.directions:
        alone = problem.distill and is_query_to_doc(direction)
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
    height = whole(plan.scratch // (4 * tiles * len(plan.widths)), plan.blocks.rows)
    for start in range(0, batch, height):
        span = Span(start, min(start + height, batch), 0, count)
        out = rows.x.new_empty(tiles, len(plan.widths), span.end_row - start, dtype=torch.float32)
        kernels.log_sum_exps[grid_of(span, plan, width)](
            out,
            teacher_lse,
            rows,
            columns,
            span,
            task_of(plan, masks),
            TEACHER=teacher_lse is not None,
            **options_of(direction, plan, width),
        )
        yield slice(start, span.end_row), out


def _positive_scores(operands: tuple[Operand, Operand], plan: Plan) -> Tensor:
    """K x B: the similarity of each local query with its positive."""
    batch, widths = plan.problem.layout.batch, padded_widths(plan)
    x, y = (operand.x[operand.start : operand.start + batch] for operand in operands)
    blocks = zip(x.split(widths, dim=1), y.split(widths, dim=1), strict=True)
    scores = torch.stack([(left.float() * right).sum(1) for left, right in blocks]).cumsum(0)
    for operand in operands:
        if operand.inverse is not None:
            scores *= operand.inverse[:, operand.start : operand.start + batch]
    return scores
