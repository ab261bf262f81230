"""Weights averaged with those that training started from, to keep what the model knew (WiSE-FT, arXiv 2109.01903)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from matryoshka_st.errors import UserError


def start_weights(model: nn.Module, share: float) -> dict[str, Tensor]:
    """A copy of the weights on the CPU, to be given to :func:`average_with`; none if their share is 0.

    Raises:
        UserError: If the share is not in [0, 1).
    """
    if not 0 <= share < 1:
        raise UserError(f"start_share is {share}; give a share of 0 or more and below 1.")
    if not share:
        return {}
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in model.state_dict().items()}


@torch.no_grad()
def average_with(model: nn.Module, start: dict[str, Tensor], share: float) -> None:
    """Replace every weight ``w`` of the model by ``(1 - share) * w + share * start`` in place.

    Args:
        model: The trained model, with the names and shapes of ``start``.
        start: What :func:`start_weights` returned; empty: nothing is done.
        share: In [0, 1).
    """
    if not start:
        return
    done = set[int]()
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and tensor.data_ptr() not in done:  # tied weights have several names
            done.add(tensor.data_ptr())
            tensor.lerp_(start[name].to(tensor), share)
