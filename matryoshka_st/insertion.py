"""Where a rotation goes in a model: before its final ``Normalize``, for all texts or for queries and documents alone.

What a few dims can hold depends on what will be asked of them: those that tell the wishes of customers apart are not
those that find a paper. sentence-transformers is told which is asked, since retrieval calls ``encode_query`` and
``encode_document``, so a ``Router`` can lead these to a rotation of their own. Rotations are orthogonal: at the full
width both ways give the same cosines.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from jaxtyping import Float
from sentence_transformers.base.modules import Router
from sentence_transformers.sentence_transformer.modules import Dense, Normalize
from torch import Tensor, nn

from matryoshka_st.card import renew_card
from matryoshka_st.errors import UserError

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

_RETRIEVAL = "retrieval"
_OTHERS = "others"


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
        model.append(_dense(rotation, model))
    if trailing is not None:
        model.append(trailing)
    renew_card(model)


def insert_retrieval_rotation(model: SentenceTransformer, rotation: Float[Tensor, "width width"]) -> None:
    """Build a rotation into the model, in place, that queries and documents alone take, and renew its card.

    Where ``encode`` gives ``x``, as before, ``encode_query`` and ``encode_document`` give ``x @ rotation``.

    Raises:
        UserError: If the model has a ``Router`` already.
    """
    require_one_way(model)
    *_, (name, last) = model.named_children()
    delattr(model, name)
    again = [last] if isinstance(last, Normalize) else []
    routes: dict[str, list[Any]] = {_OTHERS: [last], _RETRIEVAL: [last, _dense(rotation, model), *again]}
    tasks: dict[tuple[str | None, str | tuple[str, ...] | None], str] = {
        ("query", None): _RETRIEVAL,
        ("document", None): _RETRIEVAL,
    }
    model.append(Router(routes, default_route=_OTHERS, route_mappings=tasks))
    renew_card(model)


def require_one_way(model: SentenceTransformer) -> None:
    """Refuse a model that embeds queries and documents otherwise than other texts.

    Raises:
        UserError: If the model has a ``Router``.
    """
    if has_routes(model):
        raise UserError(
            "The model has a Router, so some texts are embedded otherwise than others already; build a rotation for "
            "retrieval into a model without one, such as the one that this was made from."
        )


def has_routes(model: SentenceTransformer) -> bool:
    """Whether some texts take another way through the model than others."""
    return any(isinstance(module, Router) for module in model)


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


def _dense(rotation: Float[Tensor, "width kept"], model: SentenceTransformer) -> Dense:
    width, kept = rotation.shape
    weight = rotation.T.contiguous()
    dense = Dense(width, kept, bias=False, activation_function=nn.Identity(), init_weight=weight)
    return dense.to(device=model.device, dtype=model.dtype)
