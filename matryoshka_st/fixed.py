"""A model of one fixed width: its prefix as the whole embedding, made of standard sentence-transformers modules.

The baseline of the MRL paper (arXiv 2205.13147, section 4): independently trained fixed-size models (FF).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from sentence_transformers.sentence_transformer.modules import Dense

from matryoshka_st.insertion import insert_rotation
from matryoshka_st.models import embedding_width
from matryoshka_st.nesting import MatryoshkaDims

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer


def keep_prefix(model: SentenceTransformer, dim: int) -> SentenceTransformer:
    """Make the first ``dim`` coordinates the model's whole embedding, in place.

    A linear ``Dense`` before the final ``Normalize``, such as a rotation, is cut to as many rows; where there is none,
    a ``Dense`` that selects them is built in, with weights that are not trained.

    Args:
        model: A model at its full width.
        dim: The width to keep.

    Returns:
        The same model, whose vectors are those of ``truncate_normalize(x, dim)`` where it normalizes.

    Raises:
        UserError: If the model is not that wide.
    """
    width = embedding_width(model)
    (dim,) = MatryoshkaDims.of([dim], width=width).dims
    if dim == width:
        return model
    trained = {id(module) for module in model}
    insert_rotation(model, torch.eye(width, device=model.device)[:, :dim])
    for module in model:
        if isinstance(module, Dense) and id(module) not in trained:
            module.requires_grad_(False)
    return model
