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

from jaxtyping import Float, Int
from sentence_transformers.sentence_transformer.modules import Dense, Normalize
from torch import Tensor, nn

from matryoshka_st.basis import fit_rotation, learn_rotation
from matryoshka_st.card import renew_card
from matryoshka_st.errors import UserError
from matryoshka_st.export import check_target, declare_dims, save_model
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
    batch_size: int = 64,
    progress: bool = False,
) -> SentenceTransformer:
    """Fit a rotation on the model's embeddings of some texts and build it into the model, in place.

    It becomes a ``Dense`` module (no bias, no activation) before a final ``Normalize``, or at the end of a model
    without one. A linear ``Dense`` that already stands there, such as an earlier rotation, takes it up instead.

    Args:
        model: A model at its full width. Its default prompt applies, as in ``encode``.
        texts: Texts like the ones to be embedded later; repeated ones count once. A few thousand are enough.
        fit: :func:`fit_rotation`, or :func:`~matryoshka_st.basis.learn_rotation` with its dims.
        batch_size: Texts encoded at a time.
        progress: Show a progress bar while encoding.

    Returns:
        The same model: cosines at full width unchanged up to the rounding of its weights (1e-5 in float32), prefixes
        better.

    Raises:
        UserError: If there are no texts, the model is truncated, or its embeddings are not finite.
    """
    distinct = _distinct(texts)
    if model.truncate_dim is not None:
        raise UserError(
            f"The model is cut to truncate_dim={model.truncate_dim}; load it without truncate_dim to rotate it."
        )
    embeddings = model.encode(distinct, batch_size=batch_size, show_progress_bar=progress, convert_to_tensor=True)
    insert_rotation(model, fit(embeddings))
    return model


def insert_rotation(model: SentenceTransformer, rotation: Float[Tensor, "width kept"]) -> None:
    """Build a rotation, or its first columns, into the model, in place.

    Embeddings ``x`` become ``x @ rotation``, and the model gets a new card.
    """
    *_, (last_name, last) = model.named_children()
    trailing = last if isinstance(last, Normalize) else None
    if trailing is not None:
        delattr(model, last_name)
    before = model[-1]
    if isinstance(before, Dense) and _is_linear(before):
        _apply_after(before, rotation)
    else:
        model.append(_dense(rotation).to(device=model.device, dtype=model.dtype))
    if trailing is not None:
        model.append(trailing)
    renew_card(model)


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
    batch_size: int = 64,
    progress: bool = False,
) -> Path:
    """Load a model, rotate it and save it with its dims declared: the whole of ``matryoshka-st rotate``.

    Args:
        model_name: A hub id, a local folder, or ``bundled``.
        texts: Texts to fit the rotation on.
        output: The folder to write; a model that is already there is replaced once the new one is complete.
        dims: The dims to declare; default: the usual ladder for the model's width.
        steps: Steps to learn the rotation for these dims; 0: singular vectors alone.
        pairs: Which of the texts, all distinct, belong together (:func:`~matryoshka_st.basis.learn_rotation`).
        contrast: Their weight.
        like: Examples of what will be embedded: texts near them count more (likewise).
        batch_size: Texts encoded at a time.
        progress: Show a progress bar while encoding.

    Returns:
        The output folder.

    Raises:
        UserError: If the model, the texts, the dims or the output folder will not do.
    """
    check_target(output)
    model = load_model(model_name)
    declared = declare_dims(model, dims or default_dims(embedding_width(model)))
    known, examples = with_examples(texts, like)
    fit = partial(learn_rotation, dims=declared, steps=steps, pairs=pairs, contrast=contrast, like=examples)
    rotated = rotate_model(model, known, fit=fit, batch_size=batch_size, progress=progress)
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


def _is_linear(dense: Dense) -> bool:
    return (
        not dense.bias
        and not dense.use_residual
        and isinstance(dense.activation_function, nn.Identity)
        and dense.module_output_name == "sentence_embedding"
    )


def _apply_after(dense: Dense, rotation: Float[Tensor, "width kept"]) -> None:
    weight = dense.linear.weight
    rotated = (rotation.T.double() @ weight.detach().double()).to(weight.dtype)
    dense.linear.weight = nn.Parameter(rotated, requires_grad=weight.requires_grad)
    dense.out_features = dense.linear.out_features = len(rotated)


def _dense(rotation: Float[Tensor, "width kept"]) -> Dense:
    width, kept = rotation.shape
    return Dense(width, kept, bias=False, activation_function=nn.Identity(), init_weight=rotation.T.contiguous())
