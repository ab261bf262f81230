"""Write a model as a plain sentence-transformers folder that declares its valid dims.

vLLM and SGLang accept a ``dimensions`` request only for the dims that ``config.json`` declares (``is_matryoshka``,
``matryoshka_dimensions``, and ``embedding_size`` where the width is not the transformer's ``hidden_size``);
sentence-transformers itself never writes these keys.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from matryoshka_st.card import drop_training_rows, prepare_card, write_dims_section
from matryoshka_st.errors import UserError
from matryoshka_st.files import check_parents, whole_folder
from matryoshka_st.insertion import has_routes
from matryoshka_st.models import embedding_width
from matryoshka_st.nesting import MatryoshkaDims

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

DIMS_KEY = "matryoshka_dimensions"


def declare_dims(model: SentenceTransformer, dims: Sequence[int]) -> tuple[int, ...]:
    """Note the valid dims in the transformer's config, from where ``save_pretrained`` writes them to ``config.json``.

    Args:
        model: A model whose first module is a transformer.
        dims: The valid dims, in any order; the full width is added if missing.

    Returns:
        The declared dims, ascending.

    Raises:
        UserError: If a dim is not valid, the model has no transformer config, or the config cannot tell the width.
    """
    width = embedding_width(model)
    checked = MatryoshkaDims.of(dims, width=width).dims
    declared = checked if width in checked else (*checked, width)
    config = _transformer_config(model)
    if width != getattr(config, "hidden_size", None):
        _set_embedding_size(config, width)
    config.is_matryoshka = True
    config.matryoshka_dimensions = list(declared)
    return declared


def declared_dims(model_or_folder: SentenceTransformer | str | Path) -> tuple[int, ...] | None:
    """The dims that a model, in memory or in a folder, declares as valid; ``None`` if it declares none.

    Raises:
        UserError: If the folder has no readable ``config.json``.
    """
    if isinstance(model_or_folder, str | Path):
        dims = read_config(Path(model_or_folder)).get(DIMS_KEY)
    else:
        dims = getattr(model_or_folder.config, DIMS_KEY, None)
    return tuple(dims) if dims else None


def read_config(folder: Path, name: str = "config.json") -> dict[str, Any]:
    """A JSON object from a model folder.

    Raises:
        UserError: If the file is missing or is not a JSON object.
    """
    try:
        content = json.loads((folder / name).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{folder / name} cannot be read ({error}); give the folder of a saved model.") from error
    if not isinstance(content, dict):
        raise UserError(f"{folder / name} holds no JSON object; give the folder of a saved model.")
    return content


def save_model(
    model: SentenceTransformer,
    folder: str | Path,
    *,
    dims: Sequence[int],
    scores: Mapping[int, float] | None = None,
    metric: str | None = None,
    card_samples: bool = False,
    beside: Callable[[Path], None] | None = None,
) -> Path:
    """Write the model: dims declared, safetensors weights, a card with a section on dims; whole or not at all.

    A model that was there before stays complete until the new one is
    (:func:`~matryoshka_st.files.whole_folder`).

    Args:
        model: A model at its full width. Its dims are declared, and unless ``card_samples`` its card data loses the
            training rows.
        folder: The folder to write: new, empty, or holding a model to be replaced.
        dims: The valid dims; the full width is added if missing.
        scores: The score at each dim, for the card; other dims than the declared ones are left out.
        metric: What the scores measure, for example ``nDCG@10 x100``.
        card_samples: Let the card show training rows, as sentence-transformers does.
        beside: Writes what else belongs to the model into the folder that it is given.

    Returns:
        The folder.

    Raises:
        UserError: If the model is truncated, adapted or not finite, a dim is not valid, or the folder holds something
            else.
    """
    target = Path(folder).resolve()
    check_target(target)
    _check_model(model)
    declared = declare_dims(model, dims)
    prepare_card(model)
    if not card_samples:
        drop_training_rows(model)
    with whole_folder(target) as partial:
        model.save_pretrained(str(partial), safe_serialization=True)
        name = model.model_card_data.model_id or target.name
        routes = has_routes(model)
        write_dims_section(partial, declared, name=name, scores=scores, metric=metric, routes=routes)
        if beside is not None:
            beside(partial)
    return Path(folder)


def check_target(folder: Path, model_file: str = "modules.json") -> None:
    """Refuse to write a model over something that is not one.

    Args:
        folder: Where the model is to be.
        model_file: The file by which a model of its kind is known.

    Raises:
        UserError: If nothing can be written at the path, or it is a file, or a folder that holds anything but a model.
    """
    check_parents(folder)
    if folder.is_dir():
        if any(folder.iterdir()) and not (folder / model_file).is_file():
            raise UserError(f"{folder} is not empty and holds no model to replace; give a new or an empty folder.")
    elif folder.exists():
        raise UserError(f"{folder} is not a folder; give a new or an empty folder.")


def _transformer_config(model: SentenceTransformer) -> Any:
    from sentence_transformers.sentence_transformer.modules import Transformer

    first = model[0]
    if not isinstance(first, Transformer):
        raise UserError(
            f"The model starts with {type(first).__name__}, which has no config.json to declare dims in; "
            "only models that start with a Transformer module can declare them."
        )
    return first.model.config


def _set_embedding_size(config: Any, width: int) -> None:
    if hasattr(type(config), "embedding_size"):
        raise UserError(
            f"The width {width} is not the hidden size of this {config.model_type} model, whose config.json already "
            "uses embedding_size for its own layers; choose a base model without that key."
        )
    config.embedding_size = width


def _check_model(model: SentenceTransformer) -> None:
    if model.truncate_dim is not None:
        raise UserError(
            f"The model is cut to truncate_dim={model.truncate_dim}, and saving that would hide its full width from "
            "every later load; set model.truncate_dim = None before saving."
        )
    if hasattr(model.transformers_model, "peft_config"):
        raise UserError("The model still carries a PEFT adapter; merge it into the weights before saving.")
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise UserError(f"The weights {name!r} are not finite; save an earlier checkpoint instead.")
