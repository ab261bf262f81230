"""Everything before the first step of an MLM run: texts, tokenizer and model, checked against each other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from datasets import Dataset
from rich.console import Console
from transformers import set_seed

from matryoshka_st.data import require_batch
from matryoshka_st.export import check_target
from matryoshka_st.mlm.arguments import MlmRecipe
from matryoshka_st.mlm.build import build_model, build_tokenizer
from matryoshka_st.mlm.masking import BatchSeededMasking
from matryoshka_st.mlm.model import MatryoshkaBertForMaskedLM
from matryoshka_st.mlm.texts import load_texts, tokenize
from matryoshka_st.models import check_length

MODEL_FILE = "config.json"


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
    tokenizer = build_tokenizer(recipe.model)
    model = build_model(recipe.model, recipe.matryoshka, tokenizer)
    length, positions = recipe.model.max_seq_length, model.config.max_position_embeddings
    check_length(length, positions)
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
