"""Who is near whom among some texts, and how far a prefix is from saying the same: pure functions of embeddings."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from matryoshka_st.nesting import truncate_normalize


def mean_direction(embeddings: Float[Tensor, "n width"]) -> Float[Tensor, " width"]:
    """What all texts have in common: the direction of the mean of the unit vectors, of unit length."""
    return F.normalize(F.normalize(embeddings.float(), dim=-1).mean(dim=0), dim=0)


def without_direction(
    embeddings: Float[Tensor, "n width"], direction: Float[Tensor, " width"]
) -> Float[Tensor, "n width"]:
    """Unit vectors, float32, orthogonal to a direction of unit length.

    >>> without_direction(torch.tensor([[3.0, 4.0]]), torch.tensor([0.0, 1.0]))
    tensor([[1., 0.]])
    """
    unit = F.normalize(embeddings.float(), dim=-1)
    return F.normalize(unit - torch.outer(unit @ direction, direction), dim=-1)


def without_mean(embeddings: Float[Tensor, "n width"]) -> Float[Tensor, "n width"]:
    """Unit vectors, float32, of the embeddings without the direction of their mean: it is orthogonal to all of them.

    >>> without_mean(torch.tensor([[1.0, 3.0], [-1.0, 3.0]]))
    tensor([[ 1.,  0.],
            [-1.,  0.]])
    """
    return without_direction(embeddings, mean_direction(embeddings))


def neighbour_log_softmax(x: Float[Tensor, "n dim"], scale: float) -> Float[Tensor, "n others"]:
    """Log-softmax of each row's scaled dot products with the other rows, in their order; its own is left out."""
    scores = scale * x @ x.T
    others = scores.flatten()[:-1].view(len(x) - 1, len(x) + 1)[:, 1:].reshape(len(x), len(x) - 1)
    return torch.log_softmax(others, dim=1)


def neighbour_divergence(
    unit: Float[Tensor, "n width"], rotated: Float[Tensor, "n rotated"], dims: Sequence[int], *, scale: float
) -> Float[Tensor, ""]:
    """``KL(full width || prefix)`` of each row's softmax over the other rows, averaged over rows, summed over dims.

    Args:
        unit: Unit vectors: what the neighbours should be.
        rotated: The same texts, of any length; their prefixes are scored.
        dims: The prefixes.
        scale: 1 / temperature.

    >>> x = torch.eye(3)
    >>> neighbour_divergence(x, x, [3], scale=20.0).item()
    0.0
    """
    wanted = neighbour_log_softmax(unit, scale)
    return torch.stack([divergence(wanted, truncate_normalize(rotated, dim), scale) for dim in dims]).sum()


def divergence(wanted: Float[Tensor, "n others"], unit: Float[Tensor, "n dim"], scale: float) -> Float[Tensor, ""]:
    """``KL(wanted || neighbours of the unit vectors)``, averaged over rows; ``wanted`` are log-probabilities."""
    return F.kl_div(neighbour_log_softmax(unit, scale), wanted, reduction="batchmean", log_target=True)
