"""What is done to full-width vectors before they are cut: a model's own step, or a baseline's change of basis.

Baselines of the MRL paper (arXiv 2205.13147, section 4.2 and appendix F): the same untrained vectors in another basis
(SVD: uncentred, PCA: centred), or random coordinates of them.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from matryoshka_st.basis import fit_rotation
from matryoshka_st.errors import UserError, did_you_mean

BASELINES = ("pca", "svd", "random")


@dataclass(frozen=True)
class Step:
    """A named function of full-width vectors (n x D to n x D). The name files the results."""

    name: str
    function: Callable[[Tensor], Tensor]

    def __call__(self, vectors: Tensor) -> Tensor:
        """Apply it."""
        return self.function(vectors)


def layer_norm(vectors: Float[Tensor, "n width"]) -> Float[Tensor, "n width"]:
    """Layer norm over the full width, without weights, as nomic-embed-text-v1.5 asks for before a cut."""
    return F.layer_norm(vectors, vectors.shape[-1:])


def named_step(name: str) -> Step:
    """The step ``layer_norm``, or ``package.module:function`` of the user's own.

    Raises:
        UserError: If there is no such function.
    """
    if name == "layer_norm":
        return Step(name, layer_norm)
    module, colon, function = name.partition(":")
    try:
        if not colon:
            raise ImportError(f"no colon in {name!r}")
        found = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise UserError(
            f"There is no step {name!r} before the cut ({error}); use layer_norm or package.module:function, "
            "a function from full-width vectors to full-width vectors."
        ) from error
    return Step(name, found)


def baseline(kind: str, vectors: Float[Tensor, "n width"], label: str, *, seed: int = 0) -> Step:
    """Fit a baseline on the full-width vectors of training texts.

    Args:
        kind: ``svd``, ``pca``, or ``random`` (coordinates in an order drawn with the seed).
        vectors: What to fit on; only the width matters to ``random``.
        label: Names what was fitted on, so that two fits never share a result.
        seed: For ``random``.

    Raises:
        UserError: If the kind is unknown.
    """
    if kind == "random":
        order = torch.randperm(vectors.shape[1], generator=torch.Generator().manual_seed(seed))
        return Step(f"random-{seed}", lambda x: x[:, order.to(x.device)])
    if kind not in BASELINES:
        raise UserError(f"There is no baseline {kind!r}{did_you_mean(kind, BASELINES)}; use {', '.join(BASELINES)}.")
    if kind == "svd":
        basis = fit_rotation(vectors)
        return Step(f"svd-{label}", lambda x: x @ basis.to(x.device))
    mean, axes = _principal_axes(vectors)
    return Step(f"pca-{label}", lambda x: (F.normalize(x, dim=1) - mean.to(x.device)) @ axes.to(x.device))


def _principal_axes(vectors: Tensor) -> tuple[Tensor, Tensor]:
    """The mean of the unit vectors, and the eigenvectors of their covariance, largest first."""
    unit = F.normalize(vectors.double(), dim=1)
    mean = unit.mean(dim=0)
    axes: Tensor = torch.linalg.eigh((unit - mean).T @ (unit - mean)).eigenvectors.flip(-1)
    return mean.float(), axes.float()
