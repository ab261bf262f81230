"""The tokenizer and the model of a run: a BERT to go on from, or a new one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoTokenizer, BertConfig

from matryoshka_st.errors import UserError
from matryoshka_st.export import DIMS_KEY
from matryoshka_st.mlm.arguments import MlmMatryoshkaArguments, MlmModelArguments
from matryoshka_st.mlm.model import MatryoshkaBertForMaskedLM
from matryoshka_st.models import resolve_model
from matryoshka_st.nesting import MatryoshkaDims, default_dims

NEW_WIDTH, NEW_LAYERS, NEW_DROPOUT = 256, 4, 0.1
DIMS_PER_HEAD = 64


def build_tokenizer(arguments: MlmModelArguments) -> Any:
    """The tokenizer of the model to go on from, or the one that was chosen for a new model.

    Raises:
        UserError: If it cannot be loaded, or is not one for masked language models.
    """
    name = arguments.model_name_or_path or arguments.tokenizer
    source = resolve_model(name)
    with _explained("tokenizer", name):
        tokenizer = AutoTokenizer.from_pretrained(source, local_files_only=Path(source).is_dir())
    if not tokenizer.is_fast or tokenizer.mask_token is None or tokenizer.pad_token is None:
        raise UserError(f"The tokenizer {name!r} cannot mask and pad fast; give that of a BERT, such as 'bundled'.")
    return tokenizer


def build_model(
    arguments: MlmModelArguments, matryoshka: MlmMatryoshkaArguments, tokenizer: Any
) -> MatryoshkaBertForMaskedLM:
    """The model, in float32, with its trained dims declared in its config.

    Raises:
        UserError: If it cannot be loaded, is no BERT, or the dims, shape or tokenizer do not fit it.
    """
    name = arguments.model_name_or_path
    config = _new_config(arguments, tokenizer) if name is None else _own_config(arguments, name)
    if len(tokenizer) > config.vocab_size:
        raise UserError(
            f"The tokenizer of {name!r} has {len(tokenizer)} words and the model {config.vocab_size}; "
            "give a folder whose tokenizer and weights belong together."
        )
    width = config.hidden_size
    nested = MatryoshkaDims.of(
        matryoshka.matryoshka_dims or default_dims(width), matryoshka.matryoshka_weights, width=width
    )
    scored = MatryoshkaDims.of(sorted({width, *nested.dims, *(matryoshka.eval_dims or ())}), width=width).dims
    config.is_matryoshka = True
    setattr(config, DIMS_KEY, sorted({*nested.dims, width}))
    if name is None:
        return MatryoshkaBertForMaskedLM(config, nested, scored, matryoshka.nest)
    source = resolve_model(name)
    options: dict[str, Any] = {
        "local_files_only": Path(source).is_dir(),
        "use_safetensors": True,
        "dtype": torch.float32,
    }
    with _explained("model", name):
        return MatryoshkaBertForMaskedLM.from_pretrained(
            source, nested, scored, matryoshka.nest, config=config, **options
        )


def _own_config(arguments: MlmModelArguments, name: str) -> BertConfig:
    source = resolve_model(name)
    with _explained("model", name):
        config = AutoConfig.from_pretrained(source, local_files_only=Path(source).is_dir())
    if not isinstance(config, BertConfig) or config.is_decoder:
        raise UserError(
            f"Model {name!r} is a {config.model_type} model; masked-language-model training takes a BERT encoder."
        )
    if arguments.dropout is not None:
        config.hidden_dropout_prob = config.attention_probs_dropout_prob = arguments.dropout
    return config


def _new_config(arguments: MlmModelArguments, tokenizer: Any) -> BertConfig:
    width = arguments.hidden_size or NEW_WIDTH
    heads = arguments.num_attention_heads or max(1, width // DIMS_PER_HEAD)
    if width % heads:
        raise UserError(
            f"hidden_size is {width}, which {heads} attention heads do not divide; give a multiple of {heads}."
        )
    dropout = NEW_DROPOUT if arguments.dropout is None else arguments.dropout
    return BertConfig(
        vocab_size=len(tokenizer),
        pad_token_id=tokenizer.pad_token_id,
        hidden_size=width,
        num_hidden_layers=arguments.num_hidden_layers or NEW_LAYERS,
        num_attention_heads=heads,
        intermediate_size=arguments.intermediate_size or 4 * width,
        max_position_embeddings=arguments.max_seq_length,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
    )


@contextmanager
def _explained(kind: str, name: str) -> Iterator[None]:
    """Say in one sentence what could not be loaded."""
    try:
        yield
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        raise UserError(
            f"The {kind} {name!r} could not be loaded ({reason}); give a folder with safetensors weights and a "
            "tokenizer, a hub id that can be reached, or 'bundled'."
        ) from error
