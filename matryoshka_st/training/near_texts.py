"""What the objective ``neighbours`` trains on: all texts of the pairs, and where the model puts them at first."""

from __future__ import annotations

from dataclasses import fields

import torch
import torch.nn.functional as F
from datasets import Dataset, DatasetDict
from jaxtyping import Float
from sentence_transformers import SentenceTransformer
from torch import Tensor

from matryoshka_st.errors import UserError
from matryoshka_st.training.arguments import MatryoshkaArguments, MatryoshkaTrainingArguments, Recipe

_BATCH = 256
SERVED = {
    "objective",
    "matryoshka_dims",
    "matryoshka_weights",
    "scale",
    "teacher_scale",
    "group_size",
    "group_among",
    "length_groups",
    "engine",
}
"""Loss settings that the objective ``neighbours`` heeds, or that change nothing but how others are computed."""


def near_texts(
    model: SentenceTransformer, train: Dataset | DatasetDict, *, bf16: bool, progress: bool
) -> tuple[Dataset, Float[Tensor, "n width"]]:
    """The distinct texts of all columns, each with its number as label, and their unit vectors in that order.

    Args:
        model: The model before training; rotated or not makes no difference to who is near.
        train: Pairs, with or without negatives.
        bf16: Embed in bfloat16, as training will.
        progress: Show a progress bar.
    """
    sets = train.values() if isinstance(train, DatasetDict) else [train]
    texts = list(dict.fromkeys(text for rows in sets for name in rows.column_names for text in rows[name]))
    with torch.autocast(model.device.type, torch.bfloat16, enabled=bf16):
        targets = model.encode(texts, batch_size=_BATCH, show_progress_bar=progress, convert_to_tensor=True)
    return Dataset.from_dict({"text": texts, "label": range(len(texts))}), F.normalize(targets.float(), dim=1)


def refuse_unserved(recipe: Recipe) -> None:
    """Refuse settings of contrastive training, which the objective ``neighbours`` would not heed.

    Raises:
        UserError: Naming the first of them.
    """
    names = [setting.name for setting in fields(MatryoshkaArguments) if setting.name not in SERVED]
    plain = MatryoshkaArguments()
    settings = [(name, getattr(recipe.matryoshka, name), getattr(plain, name)) for name in names]
    usual_sampler = MatryoshkaTrainingArguments.batch_sampler
    settings.append(("batch_sampler", recipe.trainer.batch_sampler.value, usual_sampler.value))
    for name, given, usual in settings:
        if given != usual:
            raise UserError(
                f"{name} is {given!r}, which objective 'neighbours' does not use; leave it out, or "
                "train with it afterwards (objective 'contrastive')."
            )
