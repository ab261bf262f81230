"""The loss that a recipe asks for."""

from __future__ import annotations

from typing import Any

from sentence_transformers import SentenceTransformer
from torch import Tensor, nn

from matryoshka_st.losses import (
    CachedMatryoshkaContrastiveLoss,
    CombinedLoss,
    MatryoshkaContrastiveLoss,
    NeighbourDistillLoss,
    SpreadOutLoss,
    TaughtLoss,
    TeacherDistillLoss,
)
from matryoshka_st.models import limit_length, load_model
from matryoshka_st.training.arguments import MatryoshkaArguments, Recipe

_DEFAULT_MINI_BATCH_SIZE = 32


def build_loss(
    recipe: Recipe, model: SentenceTransformer, dims: tuple[int, ...], targets: Tensor | None = None
) -> nn.Module:
    """The loss of the recipe around the model.

    Args:
        recipe: The run.
        model: The model to train.
        dims: Used where the recipe names no ``matryoshka_dims``.
        targets: Embeddings of the training texts, for the objective ``neighbours``.

    Raises:
        UserError: If the loss refuses its options.
    """
    loss = recipe.matryoshka
    chosen = loss.matryoshka_dims or dims
    if targets is not None:
        return NeighbourDistillLoss(
            model,
            targets,
            chosen,
            loss.matryoshka_weights,
            scale=loss.scale,
            teacher_scale=loss.teacher_scale,
            length_groups=loss.length_groups,
        )
    options = _options(recipe)
    sizes = _mini_batches(loss)
    terms: dict[str, nn.Module] = {}
    if loss.spread_out_weight:
        terms["spread_out"] = SpreadOutLoss(model, chosen, loss.matryoshka_weights)
    if loss.teacher_weight:
        terms["teacher"] = TeacherDistillLoss(model, chosen, loss.matryoshka_weights, scale=loss.scale)
    if terms:
        contrastive = MatryoshkaContrastiveLoss(model, chosen, loss.matryoshka_weights, **options)
        weights = {"spread_out": loss.spread_out_weight, "teacher": loss.teacher_weight}
        combined = CombinedLoss(
            model,
            {"contrastive": contrastive, **terms},
            {name: weights[name] for name in terms},
            length_groups=loss.length_groups,
            **sizes,
        )
        return TaughtLoss(model, _teacher(recipe), combined) if loss.teacher_weight else combined
    if sizes:
        return CachedMatryoshkaContrastiveLoss(model, chosen, loss.matryoshka_weights, **sizes, **options)
    return MatryoshkaContrastiveLoss(model, chosen, loss.matryoshka_weights, **options)


def _teacher(recipe: Recipe) -> SentenceTransformer:
    chosen = recipe.model
    source = recipe.matryoshka.teacher or chosen.model_name_or_path
    teacher = load_model(
        source,
        device=str(recipe.trainer.device),
        revision=chosen.model_revision if source == chosen.model_name_or_path else None,
        trust_remote_code=chosen.trust_remote_code,
    )
    if chosen.max_seq_length is not None:
        limit_length(teacher, chosen.max_seq_length)
    return teacher


def _options(recipe: Recipe) -> dict[str, Any]:
    loss = recipe.matryoshka
    guide = None
    if loss.guide is not None:
        guide = load_model(
            loss.guide, device=str(recipe.trainer.device), trust_remote_code=recipe.model.trust_remote_code
        )
    names = (
        "scale", "directions", "partition_mode", "hardness_mode", "hardness_strength", "gather_across_devices",
        "n_dims_per_step", "matryoshka_weights_end", "exclude_duplicates", "margin", "margin_strategy",
        "distill_weight", "length_groups", "engine",
    )  # fmt: skip
    return {**{name: getattr(loss, name) for name in names}, "guide": guide}


def _mini_batches(loss: MatryoshkaArguments) -> dict[str, Any]:
    if loss.mini_batch_size is None and loss.mini_batch_num_tokens is None:
        return {}
    size = _DEFAULT_MINI_BATCH_SIZE if loss.mini_batch_size is None else loss.mini_batch_size
    return {"mini_batch_size": size, "mini_batch_num_tokens": loss.mini_batch_num_tokens}
