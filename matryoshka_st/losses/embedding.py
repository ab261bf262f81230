"""From text columns to loss terms: embed all columns, in one go or with cached gradients, and compute from those."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.losses.gradcache import CachedLossMixin, has_static_embedding_input
from sentence_transformers.base.losses.merged_forward import embed_columns
from sentence_transformers.sentence_transformer.losses.adaptive_layer import ForwardDecorator
from torch import Tensor, nn

from matryoshka_st.errors import UserError
from matryoshka_st.losses.terms import LossTerms

TermsOf = Callable[[list[Tensor]], LossTerms]


def plain_terms(
    model: nn.Module, features: Sequence[dict[str, Any]], terms_of: TermsOf, length_groups: int = 1
) -> LossTerms:
    """Embed each column and compute the terms of the embeddings.

    Args:
        model: A sentence-transformers model, or what DDP or compile made of it.
        features: One tokenized batch per column.
        terms_of: The loss of the columns' embeddings, B x D each.
        length_groups: Forward passes per column, each of texts of like length, so that less is padded.

    Raises:
        UserError: If there are groups inside an ``AdaptiveLayerLoss``.
    """
    nothing = _no_rows(model, features)
    if nothing is not None:
        return terms_of(nothing)
    if length_groups == 1:
        return terms_of(embed_columns(model, features))
    if isinstance(_unwrapped(model).forward, ForwardDecorator):
        raise UserError(
            "AdaptiveLayerLoss cannot hold a loss with length_groups, because it counts one forward pass per column; "
            "leave out length_groups."
        )
    return terms_of([embed_by_length(model, column, length_groups) for column in features])


def embed_by_length(model: nn.Module, features: dict[str, Any], groups: int) -> Tensor:
    """Embed a column in ``groups`` forward passes, the shortest texts first, and put the rows back in order.

    The number of passes depends on the number of rows alone, so that all processes make equally many.

    Args:
        model: A sentence-transformers model, or what DDP or compile made of it.
        features: A tokenized batch of B rows; without an ``attention_mask`` (packed or static) it is one pass.
        groups: 1 or more.

    Returns:
        Embeddings, B x D.
    """
    mask = features.get("attention_mask")
    if mask is None or mask.ndim != 2:
        embeddings: Tensor = model(features)["sentence_embedding"]
        return embeddings
    order = mask.sum(1).argsort(stable=True)
    rows = [group for group in order.tensor_split(groups) if len(group)]
    parts = [model(_rows_of(features, mask, group))["sentence_embedding"] for group in rows]
    return torch.cat(parts)[order.argsort()]


def cached_terms(
    model: nn.Module,
    features: Sequence[dict[str, Any]],
    terms_of: TermsOf,
    mini_batch_size: int,
    mini_batch_num_tokens: int | None = None,
) -> LossTerms:
    """The same with the activations of one mini-batch at a time in memory (GradCache: arXiv 2101.06983).

    Columns are embedded without a graph, ``terms_of`` is computed and differentiated once on all of them, and the
    backward pass embeds each mini-batch again, with the dropout masks of the first time.

    Returns:
        Terms whose **sum** is differentiable; scale them together, not one by one.

    Raises:
        UserError: Inside an ``AdaptiveLayerLoss``.
    """
    if isinstance(_unwrapped(model).forward, ForwardDecorator):
        raise UserError(
            "AdaptiveLayerLoss cannot hold a loss that caches gradients, because it takes its hooks off the model "
            "before the cached batches are embedded again; wrap the loss without mini-batches instead."
        )
    nothing = _no_rows(model, features)
    if nothing is not None:
        return terms_of(nothing)
    step = _Step(model, terms_of, mini_batch_size, mini_batch_num_tokens)
    total = step.forward_cached(features)
    (first, value), *rest = step.terms.items()
    return LossTerms({first: value + (total - total.detach()), **dict(rest)})


def at_least_float(x: Tensor) -> Tensor:
    """The tensor in float32, or in its own type where that is wider."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def full_width(model: SentenceTransformer) -> int | None:
    """The model's embedding width, if it knows it.

    Raises:
        UserError: If the model hides its width behind a ``truncate_dim``.
    """
    if model.truncate_dim is not None:
        raise UserError(
            f"The model has truncate_dim={model.truncate_dim}, which hides the width to train; "
            "load it without truncate_dim."
        )
    width: int | None = model.get_embedding_dimension()
    return width


def check_columns(embeddings: Sequence[Tensor], dim: int, least: int) -> None:
    """Refuse too few columns, columns of different length, or embeddings that were cut.

    Raises:
        UserError: Naming what was found.
    """
    if len(embeddings) < least:
        raise UserError(f"The loss got {len(embeddings)} text column; give anchor, positive and any negatives.")
    rows = [len(column) for column in embeddings]
    if len(set(rows)) > 1:
        raise UserError(f"The columns have {rows} rows; give one text of each column per row.")
    if rows[0] and embeddings[0].shape[1] < dim:
        raise UserError(
            f"The embeddings are {embeddings[0].shape[1]} wide and matryoshka_dims reaches {dim}; this loss does what "
            "MatryoshkaLoss does, so do not wrap it in one."
        )


def require_rows(embeddings: Sequence[Tensor]) -> None:
    """Refuse an empty batch.

    Raises:
        UserError: If there is no row.
    """
    if not len(embeddings[0]):
        raise UserError("The batch is empty; give one row or more.")


def check_mini_batches(
    model: nn.Module, mini_batch_size: int | None, mini_batch_num_tokens: int | None = None
) -> None:
    """Refuse sizes below 1, and models whose inputs cannot be cut.

    Raises:
        UserError: Naming the value or the model.
    """
    for name, value in (("mini_batch_size", mini_batch_size), ("mini_batch_num_tokens", mini_batch_num_tokens)):
        if value is not None and value < 1:
            raise UserError(f"{name} is {value}; give 1 or more.")
    if has_static_embedding_input(model):
        raise UserError(
            "The inputs of a StaticEmbedding cannot be cut into mini-batches; leave out mini_batch_size, since such "
            "a model keeps next to nothing for the backward pass anyway."
        )


def check_length_groups(length_groups: int, *, cached: bool = False) -> None:
    """Refuse a number below 1, and groups beside mini-batches.

    Raises:
        UserError: Naming the value.
    """
    if length_groups < 1:
        raise UserError(f"length_groups is {length_groups}; give 1 or more.")
    if cached and length_groups > 1:
        raise UserError(
            f"length_groups is {length_groups} beside mini-batches, which are forward passes of their own; "
            "leave out one of the two."
        )


class _Step(CachedLossMixin):
    """One forward and backward pass of GradCache; what it holds belongs to one batch."""

    def __init__(
        self, model: nn.Module, terms_of: TermsOf, mini_batch_size: int, mini_batch_num_tokens: int | None
    ) -> None:
        self.model = model
        self.terms_of = terms_of
        self.mini_batch_size = mini_batch_size
        self.mini_batch_num_tokens = mini_batch_num_tokens
        self.terms = LossTerms()

    def calculate_loss(
        self, reps: list[list[Tensor]], labels: Tensor | None = None, *, with_backward: bool = False
    ) -> Tensor:
        terms = self.terms_of([torch.cat(batches) for batches in reps])
        total = terms.total()
        if with_backward:
            total.backward()
        self.terms = LossTerms({name: value.detach() for name, value in terms.items()})
        return total.detach()


def _no_rows(model: nn.Module, features: Sequence[dict[str, Any]]) -> list[Tensor] | None:
    """If a column is empty, which few models can embed, an empty embedding for each."""
    if all(column["input_ids"].numel() for column in features if "input_ids" in column):
        return None
    return [torch.empty(0, 0, device=next(model.parameters()).device) for _ in features]


def _rows_of(features: dict[str, Any], mask: Tensor, rows: Tensor) -> dict[str, Any]:
    """Some rows of a padded batch, without most of the columns that are padding in all of them.

    A multiple of 8 is kept, so that few different shapes occur: kernels are made per shape.
    """
    used = mask[rows].any(0).nonzero()
    width = 8 * (int(used[-1]) // 8 + 1) if len(used) else 1

    def cut(value: Any) -> Any:
        if not isinstance(value, Tensor) or value.ndim == 0 or len(value) != len(mask):
            return value
        value = value[rows]
        return value[:, :width] if value.shape[1:2] == mask.shape[1:2] else value

    return {key: cut(value) for key, value in features.items()}


def _unwrapped(model: Any) -> Any:
    for name in ("_orig_mod", "module"):
        if isinstance(getattr(model, name, None), nn.Module):
            return _unwrapped(getattr(model, name))
    return model
