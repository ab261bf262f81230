"""Embeddings of all processes: one gather forward and one reduce-scatter backward, whatever is computed from them.

Legend: C columns, B rows of this process, W processes, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from matryoshka_st.errors import UserError
from matryoshka_st.infonce.problem import Layout


def world() -> tuple[int, int]:
    """This process's rank and the number of processes; 0 and 1 where there is no process group."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


class JoinedBatch(NamedTuple):
    """What this process contrasts: its own queries or everybody's, everybody's documents; ``layout`` tells which."""

    queries: Tensor
    documents: Tensor
    layout: Layout


def joined_batch(embeddings: Sequence[Tensor], *, queries_too: bool) -> JoinedBatch:
    """Gather all documents of all processes, and the queries if asked, in one collective (and one back).

    A comparison of the batches' sizes, a few bytes, goes before it.

    Args:
        embeddings: This process's queries, positives and each column of negatives, B x D each.
        queries_too: Whether all processes' queries are needed as columns.

    Raises:
        UserError: On every process, if the batches differ in size or one is empty.
    """
    rows, (rank, size) = len(embeddings[0]), world()
    require_equal_batches(len(embeddings), rows, embeddings[0].device)
    everyones = gather(torch.stack(list(embeddings if queries_too else embeddings[1:])))
    layout = Layout(rows, size * rows, rank * rows)
    if queries_too:
        return JoinedBatch(everyones[0], everyones[1:].flatten(0, 1), layout)
    return JoinedBatch(embeddings[0], everyones.flatten(0, 1), layout)


def require_equal_batches(columns: int, rows: int, device: torch.device) -> None:
    """Let all processes compare their batches before anything is gathered, so that all of them fail or none hangs.

    Raises:
        UserError: On every process, if any has another number of columns or rows, or none.
    """
    rank, size = world()
    sizes = torch.empty(size, 2, dtype=torch.int64, device=device)
    _all_gather(sizes, torch.tensor([[columns, rows]], device=device))
    told = [tuple(pair) for pair in sizes.tolist()]
    if len(set(told)) > 1 or told[rank][1] == 0:
        batches = ", ".join(f"{c} columns of {r}" for c, r in told)
        raise UserError(
            f"gather_across_devices needs batches of one size, and the processes have {batches} rows; "
            "set dataloader_drop_last=True and train on the same columns everywhere."
        )


def gather(columns: Tensor) -> Tensor:
    """Every process's rows of each column, C x B x ... to C x WB x ..., ordered by rank.

    Differentiable: each process receives the sum of all processes' gradients of its rows. Where every process takes
    the mean over its own rows and the processes' gradients are averaged, as under ``DistributedDataParallel``, that is
    the gradient of the mean over all rows; no factor is missing.
    """
    gathered: Tensor = _Gather.apply(columns)
    return gathered


def broadcast(tensor: Tensor) -> Tensor:
    """The first process's values."""
    if world()[1] > 1:
        dist.broadcast(tensor, src=0)
    return tensor


def average_gradient(parameters: Sequence[Tensor]) -> list[Tensor]:
    """The same values, whose gradients are averaged over the processes: for weights that no wrapper looks after.

    One collective backward, on the gradients joined.
    """
    joined: Tensor = _Average.apply(torch.cat([parameter.flatten() for parameter in parameters]))
    parts = joined.split([parameter.numel() for parameter in parameters])
    return [part.view_as(parameter) for part, parameter in zip(parts, parameters, strict=True)]


class _Average(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, joined: Tensor) -> Tensor:
        return joined.view_as(joined)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> Tensor:
        average = upstream.contiguous() / world()[1]
        dist.all_reduce(average)
        return average


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, columns: Tensor) -> Tensor:
        size = world()[1]
        count, rows, *rest = columns.shape
        gathered = columns.new_empty(size * count, rows, *rest)
        _all_gather(gathered, columns.contiguous())
        by_column: Tensor = gathered.unflatten(0, (size, count)).transpose(0, 1).flatten(1, 2)
        return by_column

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> Tensor:
        size = world()[1]
        by_rank: Tensor = upstream.unflatten(1, (size, -1)).transpose(0, 1)
        by_rank = by_rank.to(torch.promote_types(upstream.dtype, torch.float32)).flatten(0, 1).contiguous()  # to sum
        own = by_rank.new_empty(by_rank.shape[0] // size, *by_rank.shape[1:])
        _reduce_scatter(own, by_rank)
        return own.to(upstream.dtype)


def _all_gather(into: Tensor, tensor: Tensor) -> None:
    call = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
    call(into, tensor)


def _reduce_scatter(into: Tensor, tensor: Tensor) -> None:
    call = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor
    call(into, tensor)
