"""Make an embedding model cuttable without training: rotate its space so that the first coordinates carry most.

The basis comes from the model's own embeddings (:mod:`matryoshka_st.basis`). It is orthogonal, so cosines at full
width stay what they were. In the saved model it is a plain sentence-transformers ``Dense`` module.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from jaxtyping import Int
from torch import Tensor

from matryoshka_st.basis import fit_rotation, learn_rotation
from matryoshka_st.errors import UserError
from matryoshka_st.export import check_target, declare_dims, declared_dims, save_model
from matryoshka_st.insertion import insert_retrieval_rotation, insert_rotation, require_one_way
from matryoshka_st.models import embedding_width, load_model
from matryoshka_st.nesting import default_dims

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

logger = logging.getLogger(__name__)

Fit = Callable[[Tensor], Tensor]
"""Embeddings, one row per text, to the rotation that is built in."""


def rotate_model(
    model: SentenceTransformer,
    texts: Sequence[str],
    *,
    fit: Fit = fit_rotation,
    retrieval: bool = False,
    batch_size: int = 64,
    progress: bool = False,
) -> SentenceTransformer:
    """Fit a rotation on the model's embeddings of some texts and build it into the model, in place.

    It becomes a ``Dense`` module (no bias, no activation) before a final ``Normalize``, or at the end of a model
    without one. A linear ``Dense`` that already stands there, such as an earlier rotation, takes it up instead.
    For retrieval it goes behind all that, into a ``Router`` (:mod:`matryoshka_st.insertion`).

    Args:
        model: A model at its full width. Its default prompt applies, as in ``encode``.
        texts: Texts like the ones to be embedded later; repeated ones count once. A few thousand are enough.
        fit: :func:`fit_rotation`, or :func:`~matryoshka_st.basis.learn_rotation` with its dims.
        retrieval: For ``encode_query`` and ``encode_document`` alone, which then give other prefixes than ``encode``.
        batch_size: Texts encoded at a time.
        progress: Show a progress bar while encoding.

    Returns:
        The same model: cosines at full width unchanged up to the rounding of its weights (1e-5 in float32), prefixes
        better.

    Raises:
        UserError: If there are no texts, the model is truncated, its embeddings are not finite, or a model to be
            rotated for retrieval has a ``Router`` already.
    """
    distinct = _distinct(texts)
    if retrieval:
        require_one_way(model)
    if model.truncate_dim is not None:
        raise UserError(
            f"The model is cut to truncate_dim={model.truncate_dim}; load it without truncate_dim to rotate it."
        )
    embeddings = model.encode(distinct, batch_size=batch_size, show_progress_bar=progress, convert_to_tensor=True)
    insert = insert_retrieval_rotation if retrieval else insert_rotation
    insert(model, fit(embeddings))
    return model


def rotate(
    model_name: str,
    texts: Sequence[str],
    output: Path,
    *,
    dims: Sequence[int] | None = None,
    steps: int = 0,
    pairs: Sequence[Int[Tensor, "_ 2"]] = (),
    contrast: float = 1.0,
    like: Sequence[str] = (),
    retrieval: bool = False,
    batch_size: int = 64,
    progress: bool = False,
) -> Path:
    """Load a model, rotate it and save it with its dims declared: the whole of ``matryoshka-st rotate``.

    Args:
        model_name: A hub id, a local folder, or ``bundled``.
        texts: Texts to fit the rotation on.
        output: The folder to write; a model that is already there is replaced once the new one is complete.
        dims: The dims to declare; default: those that the model declares, or the usual ladder for its width.
        steps: Steps to learn the rotation for these dims; 0: singular vectors alone.
        pairs: Which of the texts, all distinct, belong together (:func:`~matryoshka_st.basis.learn_rotation`).
        contrast: Their weight.
        like: Examples of what will be embedded: texts near them count more (likewise).
        retrieval: For queries and documents alone.
        batch_size: Texts encoded at a time.
        progress: Show a progress bar while encoding.

    Returns:
        The output folder.

    Raises:
        UserError: If the model, the texts, the dims or the output folder will not do.
    """
    check_target(output)
    model = load_model(model_name)
    declared = declare_dims(model, dims or declared_dims(model) or default_dims(embedding_width(model)))
    known, examples = with_examples(texts, like)
    fit = partial(learn_rotation, dims=declared, steps=steps, pairs=pairs, contrast=contrast, like=examples)
    rotated = rotate_model(model, known, fit=fit, retrieval=retrieval, batch_size=batch_size, progress=progress)
    return save_model(rotated, output, dims=declared)


def with_examples(texts: Sequence[str], examples: Sequence[str]) -> tuple[list[str], list[int]]:
    """The distinct texts and after them the examples that are not among them; where the examples stand.

    >>> with_examples(["a", "b", "a"], ["c", "b"])
    (['a', 'b', 'c'], [2, 1])
    """
    known = list(dict.fromkeys([*_distinct(texts), *examples]))
    place = {text: number for number, text in enumerate(known)}
    return known, [place[example] for example in examples]


def _distinct(texts: Sequence[str]) -> list[str]:
    if isinstance(texts, str) or not texts:
        raise UserError(f"texts is {texts!r}; give a list of texts, at least as many as the model's width.")
    return list(dict.fromkeys(texts))
