"""The recipe of an MLM run: its groups of arguments, from flags over a YAML file over defaults."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matryoshka_st.errors import UserError
from matryoshka_st.mlm.arguments import (
    MlmDataArguments,
    MlmMatryoshkaArguments,
    MlmModelArguments,
    MlmRecipe,
    MlmRunArguments,
    MlmTrainingArguments,
)
from matryoshka_st.training.parsing import check_batches, groups_as_yaml, keep_checkpoints_apart, parse_groups

GROUPS: tuple[Any, ...] = (
    MlmModelArguments,
    MlmDataArguments,
    MlmMatryoshkaArguments,
    MlmRunArguments,
    MlmTrainingArguments,
)
SHAPE = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
FEWEST_TOKENS = 4
EPILOG = """examples:
  a small BERT from scratch on docstrings of the installed packages, minutes on two CPU cores:
    pretrain_mlm.py --config train_scripts/recipes/mlm/bert-small-docstrings.yaml
  the same without nesting, scored at the same dims: what cutting a plain BERT costs:
    pretrain_mlm.py --config train_scripts/recipes/mlm/bert-small-docstrings.yaml \\
      --matryoshka_dims 256 --eval_dims 128 64 32 16 8 --output_dir output/bert-small-plain
  go on from a BERT with your own text, one text a line:
    pretrain_mlm.py --model_name_or_path google-bert/bert-base-uncased --train_data texts.txt --learning_rate 5e-5
  look before training:
    pretrain_mlm.py --train_data texts.txt --dry_run
"""


def parse_recipe(argv: Sequence[str], prog: str = "pretrain_mlm.py") -> MlmRecipe:
    """Parse flags, and the YAML file that ``--config`` names, into a recipe.

    Args:
        argv: Flags, without the program's name.
        prog: Name shown by ``--help``.

    Raises:
        UserError: For an unknown key or flag (naming the nearest), a value out of range, or an unreadable file.
        SystemExit: After ``--help``.
    """
    description = "Train a BERT with a masked language model at every prefix of its hidden states."
    recipe = MlmRecipe(*parse_groups(argv, GROUPS, prog=prog, description=description, epilog=EPILOG))
    keep_checkpoints_apart(recipe.trainer, "BertForMaskedLM.from_pretrained('{model}').push_to_hub('owner/name')")
    check_batches(recipe.trainer)
    _check(recipe)
    return recipe


def as_yaml(recipe: MlmRecipe) -> dict[str, Any]:
    """All of our values and those of the trainer's that differ from its defaults; ``--config`` reads it back."""
    return groups_as_yaml((recipe.model, recipe.data, recipe.matryoshka, recipe.run), recipe.trainer)


def _check(recipe: MlmRecipe) -> None:
    model, data = recipe.model, recipe.data
    if model.model_name_or_path is not None:
        for name in SHAPE:
            if getattr(model, name) is not None:
                raise UserError(
                    f"--{name} shapes a new BERT, but --model_name_or_path goes on from {model.model_name_or_path!r}; "
                    "leave one of them out."
                )
    if model.dropout is not None and not 0 <= model.dropout < 1:
        raise UserError(f"dropout is {model.dropout}; give a share from 0 to below 1.")
    if not 0 < data.mlm_probability < 1:
        raise UserError(f"mlm_probability is {data.mlm_probability}; give a share between 0 and 1, such as 0.15.")
    counts = {"eval_size": data.eval_size, "max_train_texts": data.max_train_texts}
    for name, value in {**counts, **{name: getattr(model, name) for name in SHAPE}}.items():
        if value is not None and value < 1:
            raise UserError(f"{name} is {value}; give 1 or more.")
    if model.max_seq_length < FEWEST_TOKENS:
        raise UserError(f"max_seq_length is {model.max_seq_length}; give {FEWEST_TOKENS} or more.")
