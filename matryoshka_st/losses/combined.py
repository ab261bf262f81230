"""Several losses of one batch, each with a name and a weight, from one pass through the model."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterable, Mapping
from typing import Any

from sentence_transformers import SentenceTransformer
from sentence_transformers.base.losses.gradcache import uses_gradient_cache
from torch import Tensor, nn

from matryoshka_st.errors import UserError
from matryoshka_st.losses.contrastive import MatryoshkaContrastiveLoss
from matryoshka_st.losses.embedding import cached_terms, check_length_groups, check_mini_batches, plain_terms
from matryoshka_st.losses.terms import LossTerms


class CombinedLoss(nn.Module):
    """A weighted sum of sentence-transformers losses, every term logged by name.

    The model embeds the batch once for all losses that compute from embeddings
    (``compute_loss_from_embeddings(embeddings, labels)``: ours, and most of sentence-transformers'); a loss without
    that runs its own forward pass.

    Args:
        model: The model that all of them train.
        losses: Any losses by name; all see the same columns and labels.
        weights: Weights by name. Default: 1 each.
        mini_batch_size: Cache gradients (GradCache) with so many texts per forward pass. Default: no cache.
        mini_batch_num_tokens: With a cache, pack mini-batches to this many tokens instead.
        length_groups: Without a cache, embed each column in so many forward passes, texts of like length together.

    References:
        - GradCache: https://arxiv.org/abs/2101.06983

    Inputs:
        Whatever all of the losses take.

    Relations:
        - Terms are named ``<name>/<term>`` where a loss returns a dict (``contrastive/loss_dim_64``), else ``<name>``.

    Example:
        ::

            loss = CombinedLoss(
                model,
                {"contrastive": MatryoshkaContrastiveLoss(model, dims), "spread": SpreadOutLoss(model, dims)},
                weights={"spread": 0.1},
            )

    Raises:
        UserError: If there is no loss, a weight is not valid, or a loss caches gradients by itself.
    """

    def __init__(
        self,
        model: SentenceTransformer,
        losses: Mapping[str, nn.Module],
        weights: Mapping[str, float] | None = None,
        *,
        mini_batch_size: int | None = None,
        mini_batch_num_tokens: int | None = None,
        length_groups: int = 1,
    ) -> None:
        super().__init__()
        weights = weights or {}
        _check(losses, weights)
        if mini_batch_num_tokens is not None and mini_batch_size is None:
            mini_batch_size = 32
        self.uses_gradient_cache = mini_batch_size is not None
        check_length_groups(length_groups, cached=self.uses_gradient_cache)
        if mini_batch_size is not None:
            check_mini_batches(model, mini_batch_size, mini_batch_num_tokens)
            alone = [name for name, loss in losses.items() if not _takes_embeddings(loss)]
            if alone:
                raise UserError(f"The loss {alone[0]!r} does not compute from embeddings; leave out mini_batch_size.")
        self.model = model
        self.losses = nn.ModuleDict(losses)
        self.weights = {name: float(weights.get(name, 1.0)) for name in losses}
        self.mini_batch_size = mini_batch_size
        self.mini_batch_num_tokens = mini_batch_num_tokens
        self.length_groups = length_groups

    def forward(self, sentence_features: Iterable[dict[str, Tensor]], labels: Tensor | None = None) -> LossTerms:
        """Embed the columns once and return all terms, weighted."""
        features = list(sentence_features)
        losses = self._by_name()
        apart = {name: loss for name, loss in losses.items() if not _takes_embeddings(loss)}
        terms = LossTerms()
        for name, loss in apart.items():
            terms.update(self._named(name, loss([dict(column) for column in features], labels)))
        if len(apart) == len(losses):
            return terms
        beside = {
            name: {"beside": loss.look_beside(features)}
            for name, loss in losses.items()
            if isinstance(loss, MatryoshkaContrastiveLoss)
        }

        def terms_of(embeddings: list[Tensor]) -> LossTerms:
            found = LossTerms()
            for name, loss in losses.items():
                if name not in apart:
                    value = loss.compute_loss_from_embeddings(embeddings, labels, **beside.get(name, {}))
                    found.update(self._named(name, value))
            return found

        if self.mini_batch_size is None:
            return terms + plain_terms(self.model, features, terms_of, self.length_groups)
        return cached_terms(self.model, features, terms_of, self.mini_batch_size, self.mini_batch_num_tokens)

    def _by_name(self) -> dict[str, Any]:
        return dict(self.losses.items())

    def _named(self, name: str, value: Tensor | Mapping[str, Tensor]) -> LossTerms:
        if isinstance(value, Mapping):
            return LossTerms({f"{name}/{term}": self.weights[name] * x for term, x in value.items()})
        return LossTerms({name: self.weights[name] * value})

    def get_config_dict(self) -> dict[str, Any]:
        """The arguments, as JSON-able values, for the model card."""
        return {
            "losses": {name: described(loss) for name, loss in self._by_name().items()},
            "weights": self.weights,
            "mini_batch_size": self.mini_batch_size,
            "mini_batch_num_tokens": self.mini_batch_num_tokens,
            "length_groups": self.length_groups,
        }

    @property
    def citation(self) -> str:
        """BibTeX of what the losses implement."""
        return "".join(getattr(loss, "citation", "") for loss in self.losses.values())


def _takes_embeddings(loss: nn.Module) -> bool:
    compute = getattr(loss, "compute_loss_from_embeddings", None)
    return compute is not None and "labels" in inspect.signature(compute).parameters


def described(loss: Any) -> dict[str, Any]:
    """A loss's class and arguments, for the model card."""
    config = loss.get_config_dict() if hasattr(loss, "get_config_dict") else {}
    return {"class": type(loss).__name__, **config}


def _check(losses: Mapping[str, nn.Module], weights: Mapping[str, float]) -> None:
    if not losses:
        raise UserError("CombinedLoss got no losses; give at least one by name.")
    unknown = sorted(weights.keys() - losses.keys())
    if unknown:
        raise UserError(f"weights names {unknown[0]!r}, which is no loss; the losses are {', '.join(losses)}.")
    for name, weight in weights.items():
        if not 0 <= weight < math.inf:
            raise UserError(f"The weight of {name!r} is {weight}; it is a finite number of 0 or more.")
    for name, loss in losses.items():
        if uses_gradient_cache(loss):
            raise UserError(
                f"The loss {name!r} caches gradients by itself; give mini_batch_size to CombinedLoss, and the loss "
                "without a cache."
            )
