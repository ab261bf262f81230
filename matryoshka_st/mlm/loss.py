"""Cross-entropy of every prefix, decoded by the same columns of one word embedding.

Matryoshka Representation Learning (arXiv 2205.13147), section 3: with the weight tying of a masked language model the
classifier of prefix ``m`` is the first ``m`` columns of the input embedding, so MRL becomes its efficient variant
MRL-E. ``logits = states[:, :m] @ embedding[:, :m].T + bias``, one softmax per prefix.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

# logits in memory at a time: 32 MB in float32
LOGITS_PER_CHUNK = 2**23


def nested_cross_entropy(
    prefixes: Sequence[Float[Tensor, "tokens _dim"]],
    embedding: Float[Tensor, "words width"],
    bias: Float[Tensor, " words"],
    labels: Int[Tensor, " tokens"],
    weights: Sequence[float],
    *,
    logits_per_chunk: int = LOGITS_PER_CHUNK,
) -> Float[Tensor, ""]:
    """The weighted sum over prefixes of the cross-entropy summed over tokens, in nats.

    One pass makes the loss and its gradients, prefix by prefix and a chunk of tokens at a time, so that no more logits
    are in memory than one chunk's, and none wait for backward. Under autocast the products are in its dtype, softmax
    and sums in float32.

    Args:
        prefixes: What each prefix knows of the tokens; the width of each is its dim.
        embedding: The tied word embedding.
        bias: One number per word.
        labels: The words to predict.
        weights: One per prefix.
        logits_per_chunk: Bounds the memory; the result does not depend on it.
    """
    loss: Tensor = _NestedCrossEntropy.apply(embedding, bias, labels, tuple(weights), logits_per_chunk, *prefixes)
    return loss


@torch.no_grad()
def token_scores(
    prefixes: Sequence[Float[Tensor, "tokens _dim"]],
    embedding: Float[Tensor, "words width"],
    bias: Float[Tensor, " words"],
    labels: Int[Tensor, " tokens"],
) -> tuple[Float[Tensor, "tokens dims"], Bool[Tensor, "tokens dims"]]:
    """The cross-entropy of each token at each prefix, in nats, and whether the likeliest word is the right one."""
    losses, hits = [], []
    for prefix in prefixes:
        columns = embedding[:, : prefix.shape[-1]]
        for rows in _chunks(len(labels), len(embedding), LOGITS_PER_CHUNK):
            log_p = _log_softmax(F.linear(prefix[rows], columns, bias))
            losses.append(F.nll_loss(log_p, labels[rows], reduction="none"))
            hits.append(log_p.argmax(dim=-1) == labels[rows])
    shape = (len(prefixes), len(labels))
    return torch.cat(losses).view(shape).T, torch.cat(hits).view(shape).T


class _NestedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        embedding: Tensor,
        bias: Tensor,
        labels: Tensor,
        weights: tuple[float, ...],
        logits_per_chunk: int,
        *prefixes: Tensor,
    ) -> Tensor:
        device = embedding.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else embedding.dtype
        with torch.autocast(device, enabled=False):
            decoder, offset = embedding.to(dtype), bias.to(dtype)
            grad_embedding, grad_bias = torch.zeros_like(embedding), torch.zeros_like(bias)
            grads = [torch.empty_like(prefix) for prefix in prefixes]
            loss = torch.zeros((), dtype=torch.promote_types(dtype, torch.float32), device=embedding.device)
            for prefix, grad, weight in zip(prefixes, grads, weights, strict=True):
                dim = prefix.shape[-1]
                columns = decoder[:, :dim]
                for rows in _chunks(len(labels), len(embedding), logits_per_chunk):
                    states, targets = prefix[rows].to(dtype), labels[rows, None]
                    log_p = _log_softmax(F.linear(states, columns, offset))
                    loss -= weight * log_p.gather(1, targets).sum()
                    residual = log_p.exp_().scatter_add_(1, targets, -torch.ones_like(log_p[:, :1])).mul_(weight)
                    grad_bias += residual.sum(dim=0)
                    residual = residual.to(dtype)
                    grad[rows] = (residual @ columns).to(grad.dtype)
                    grad_embedding[:, :dim] += residual.T @ states
        ctx.save_for_backward(grad_embedding, grad_bias, *grads)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        grad_embedding, grad_bias, *grads = (grad * grad_output for grad in ctx.saved_tensors)
        return grad_embedding, grad_bias, None, None, None, *grads


def _chunks(tokens: int, words: int, logits_per_chunk: int) -> Iterator[slice]:
    step = max(1, logits_per_chunk // words)
    return (slice(start, start + step) for start in range(0, max(tokens, 1), step))


def _log_softmax(logits: Tensor) -> Tensor:
    return torch.log_softmax(logits, dim=-1, dtype=torch.promote_types(logits.dtype, torch.float32))
