"""Everything before the first step of an MLM run: texts, tokenizer and model, checked against each other."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from rich.console import Console
from safetensors import SafetensorError
from transformers import AutoConfig, AutoTokenizer, BertConfig, set_seed

from matryoshka_st.data import require_batch
from matryoshka_st.errors import UserError
from matryoshka_st.export import DIMS_KEY, check_target
from matryoshka_st.mlm.arguments import MlmModelArguments, MlmRecipe
from matryoshka_st.mlm.masking import BatchSeededMasking
from matryoshka_st.mlm.model import MatryoshkaBertForMaskedLM
from matryoshka_st.mlm.texts import load_texts, tokenize
from matryoshka_st.models import resolve_model
from matryoshka_st.nesting import MatryoshkaDims, default_dims

MODEL_FILE = "config.json"
NEW_WIDTH, NEW_LAYERS, NEW_DROPOUT = 256, 4, 0.1
DIMS_PER_HEAD = 64


@dataclass(frozen=True)
class Prepared:
    """A run that is ready to start."""

    model: MatryoshkaBertForMaskedLM
    tokenizer: Any
    train: Dataset
    held_out: Dataset
    masking: BatchSeededMasking


def prepare(recipe: MlmRecipe) -> Prepared:
    """Load texts, tokenizer and model, and check them against each other.

    Raises:
        UserError: If texts, model and recipe do not fit.
    """
    check_target(recipe.folder / "model", MODEL_FILE)
    set_seed(recipe.trainer.seed)
    tokenizer = _tokenizer(recipe.model.model_name_or_path or recipe.model.tokenizer)
    model = _model(recipe, len(tokenizer), tokenizer.pad_token_id)
    length, positions = recipe.model.max_seq_length, model.config.max_position_embeddings
    if length > positions:
        raise UserError(
            f"max_seq_length is {length}, but the model has {positions} positions; give {positions} or less."
        )
    tokenizer.model_max_length = positions
    train, held_out = (tokenize(texts, tokenizer, length) for texts in load_texts(recipe.data, recipe.trainer.seed))
    require_batch(train, recipe.trainer.per_device_train_batch_size)
    masking = BatchSeededMasking(
        tokenizer=tokenizer, mlm_probability=recipe.data.mlm_probability, seed=recipe.trainer.seed
    )
    return Prepared(model, tokenizer, train, held_out, masking)


def dry_run(recipe: MlmRecipe) -> None:
    """Say what a run would do, and do one forward and backward pass on two examples; nothing is written.

    Raises:
        UserError: If the recipe cannot be run.
    """
    prepared = prepare(recipe)
    model, trainer = prepared.model, recipe.trainer
    console = Console(soft_wrap=True)
    batch = trainer.train_batch_size * trainer.gradient_accumulation_steps * trainer.world_size
    steps = trainer.max_steps if trainer.max_steps > 0 else int(len(prepared.train) * trainer.num_train_epochs / batch)
    output = model.train()(**prepared.masking([prepared.train[i] for i in range(min(2, len(prepared.train)))]))
    output.loss.backward()
    console.print(f"{len(prepared.train):,} training and {len(prepared.held_out):,} held-out examples")
    console.print(
        f"{model.num_parameters():,} parameters, width {model.config.hidden_size}, {len(prepared.tokenizer):,} words; "
        f"dims {', '.join(map(str, model.nested.dims))}, scored {', '.join(map(str, model.scored))}"
    )
    console.print(f"about {steps:,} steps of {batch} examples; loss on two examples: {output.loss.item():.4f}")
    console.print("The recipe is ready to run.")


def _tokenizer(name: str) -> Any:
    source = resolve_model(name)
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, local_files_only=Path(source).is_dir())
    except (OSError, ValueError) as error:
        raise UserError(f"The tokenizer {name!r} could not be loaded ({_first_line(error)}); give another.") from error
    if not tokenizer.is_fast or tokenizer.mask_token is None or tokenizer.pad_token is None:
        raise UserError(f"The tokenizer {name!r} cannot mask and pad fast; give that of a BERT, such as 'bundled'.")
    return tokenizer


def _model(recipe: MlmRecipe, words: int, padding: int) -> MatryoshkaBertForMaskedLM:
    name = recipe.model.model_name_or_path
    if name is None:
        config = _new_config(recipe.model, words, padding)
        nested, scored = _dims(recipe, config)
        return MatryoshkaBertForMaskedLM(config, nested, scored, recipe.matryoshka.nest)
    source = resolve_model(name)
    local = Path(source).is_dir()
    try:
        config = AutoConfig.from_pretrained(source, local_files_only=local)
        if not isinstance(config, BertConfig) or config.is_decoder:
            raise UserError(
                f"Model {name!r} is a {config.model_type} model; masked-language-model training takes a BERT."
            )
        if recipe.model.dropout is not None:
            config.hidden_dropout_prob = config.attention_probs_dropout_prob = recipe.model.dropout
        nested, scored = _dims(recipe, config)
        model = MatryoshkaBertForMaskedLM.from_pretrained(
            source,
            nested,
            scored,
            recipe.matryoshka.nest,
            config=config,
            local_files_only=local,
            use_safetensors=True,
            dtype=torch.float32,
        )
    except (OSError, ValueError, SafetensorError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(
            f"Model {name!r} could not be loaded ({_first_line(error)}); give a folder with safetensors weights, a "
            "hub id that can be reached, or 'bundled'."
        ) from error
    return model


def _new_config(arguments: MlmModelArguments, words: int, padding: int) -> BertConfig:
    width = arguments.hidden_size or NEW_WIDTH
    heads = arguments.num_attention_heads or max(1, width // DIMS_PER_HEAD)
    if width % heads:
        raise UserError(
            f"hidden_size is {width}, which {heads} attention heads do not divide; give a multiple of {heads}."
        )
    dropout = NEW_DROPOUT if arguments.dropout is None else arguments.dropout
    return BertConfig(
        vocab_size=words,
        pad_token_id=padding,
        hidden_size=width,
        num_hidden_layers=arguments.num_hidden_layers or NEW_LAYERS,
        num_attention_heads=heads,
        intermediate_size=arguments.intermediate_size or 4 * width,
        max_position_embeddings=arguments.max_seq_length,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
    )


def _dims(recipe: MlmRecipe, config: BertConfig) -> tuple[MatryoshkaDims, tuple[int, ...]]:
    """The trained dims and the scored ones; what the config declares for a sentence embedding is set too."""
    width, given = config.hidden_size, recipe.matryoshka
    nested = MatryoshkaDims.of(given.matryoshka_dims or default_dims(width), given.matryoshka_weights, width=width)
    scored = MatryoshkaDims.of(sorted({width, *nested.dims, *(given.eval_dims or ())}), width=width).dims
    config.is_matryoshka = True
    setattr(config, DIMS_KEY, sorted({*nested.dims, width}))
    return nested, scored


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
