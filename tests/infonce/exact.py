"""The nested loss and its gradients with 40 decimal digits, written out from the definition; small cases only."""

from __future__ import annotations

from itertools import chain

import mpmath
import torch
from torch import Tensor

Vector = list[mpmath.mpf]


def exact_value_and_gradients(
    columns: list[Tensor],
    dims: list[int],
    weights: list[float],
    scale: float,
    directions: tuple[str, ...],
    partition_mode: str,
) -> list[Tensor]:
    """The weighted sum over the dims and its gradient by every column (B x D each), rounded to float64 at the end."""
    with mpmath.workdps(40):
        vectors = [[[mpmath.mpf(v) for v in row] for row in column.tolist()] for column in columns]
        gradients = [[[mpmath.mpf(0)] * len(row) for row in column] for column in vectors]
        loss = mpmath.fsum(
            _prefix_loss(vectors, gradients, dim, weight, scale, directions, partition_mode)
            for dim, weight in zip(dims, weights, strict=True)
        )
        return [
            torch.tensor(float(loss), dtype=torch.float64),
            *(torch.tensor([[float(v) for v in row] for row in g], dtype=torch.float64) for g in gradients),
        ]


def _prefix_loss(vectors, gradients, dim, weight, scale, directions, partition_mode) -> mpmath.mpf:
    batch = len(vectors[0])
    loss = mpmath.mpf(0)
    for row in range(batch):
        logits = {name: _pairs(name, row, batch, len(vectors)) for name in directions}
        groups = list(logits.values()) if partition_mode == "per_direction" else [list(chain(*logits.values()))]
        for pairs in groups:
            cosines = [_cosine(vectors[a][i][:dim], vectors[b][j][:dim]) for (a, i), (b, j) in pairs]
            log_z = mpmath.log(mpmath.fsum(mpmath.exp(scale * cosine) for cosine in cosines))
            share = mpmath.mpf(weight) / batch / len(groups)
            positive = pairs.index(((0, row), (1, row)))
            loss += share * (log_z - scale * cosines[positive])
            for at, ((a, i), (b, j)) in enumerate(pairs):
                slope = share * scale * (mpmath.exp(scale * cosines[at] - log_z) - (at == positive))
                _add_cosine_gradient(gradients[a][i], vectors[a][i][:dim], vectors[b][j][:dim], slope)
                _add_cosine_gradient(gradients[b][j], vectors[b][j][:dim], vectors[a][i][:dim], slope)
    return loss


def _pairs(direction: str, row: int, batch: int, columns: int) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """What a row is scored against, as ((column, row), (column, row)); column 0 is the queries, 1 the positives."""
    documents = [(c, j) for c in range(1, columns) for j in range(batch)]
    queries = [(0, j) for j in range(batch)]
    return {
        "query_to_doc": [((0, row), d) for d in documents],
        "query_to_query": [((0, row), q) for q in queries if q[1] != row],
        "doc_to_query": [(q, (1, row)) for q in queries],
        "doc_to_doc": [((1, row), d) for d in documents if d[1] != row],
    }[direction]


def _cosine(x: Vector, y: Vector) -> mpmath.mpf:
    return mpmath.fdot(x, y) / mpmath.sqrt(mpmath.fdot(x, x) * mpmath.fdot(y, y))


def _add_cosine_gradient(target: Vector, x: Vector, y: Vector, slope: mpmath.mpf) -> None:
    """Add ``slope * d cosine / d x``, which is y / |x||y| - cosine x / |x|^2."""
    squares = mpmath.fdot(x, x)
    across, along = slope / mpmath.sqrt(squares * mpmath.fdot(y, y)), slope * _cosine(x, y) / squares
    for n, (a, b) in enumerate(zip(x, y, strict=True)):
        target[n] += across * b - along * a
