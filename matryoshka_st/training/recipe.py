"""The recipe of a fine-tuning run: its groups of arguments, from flags over a YAML file over defaults."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matryoshka_st.errors import UserError
from matryoshka_st.training.arguments import (
    DataArguments,
    MatryoshkaArguments,
    MatryoshkaTrainingArguments,
    ModelArguments,
    Recipe,
    RunArguments,
)
from matryoshka_st.training.parsing import check_batches, groups_as_yaml, keep_checkpoints_apart, parse_groups

GROUPS: tuple[Any, ...] = (
    ModelArguments,
    DataArguments,
    MatryoshkaArguments,
    RunArguments,
    MatryoshkaTrainingArguments,
)
EPILOG = """examples:
  train on pairs harvested from the installed packages, on whatever hardware is there:
    finetune.py --train_data docstrings --output_dir output/first
  a recipe with one value changed:
    finetune.py --config train_scripts/recipes/minilm-pairs.yaml --learning_rate 3e-5
  two processes (a YAML for accelerate sets GPUs, nodes, FSDP):
    accelerate launch --num_processes 2 train_scripts/finetune.py --config RECIPE.yaml
  look before training:
    finetune.py --config RECIPE.yaml --dry_run
  the fixed-size twin (FF) of a recipe at one dim, to compare a prefix with:
    finetune.py --config RECIPE.yaml --fixed 64 --output_dir output/fixed-64
  count the rows that hold texts of evaluation tasks, exactly or nearly; see matryoshka-st check --against --help:
    matryoshka-st check --config RECIPE.yaml --against STS12 SciFact
"""


def parse_recipe(argv: Sequence[str], prog: str = "finetune.py") -> Recipe:
    """Parse flags, and the YAML file that ``--config`` names, into a recipe.

    Args:
        argv: Flags, without the program's name.
        prog: Name shown by ``--help``.

    Raises:
        UserError: For an unknown key or flag (naming the nearest), a value of the wrong type or out of range, an
            option that would change nothing, or an unreadable file.
        SystemExit: After ``--help``.
    """
    description = "Fine-tune embeddings that can be cut to any length."
    recipe = Recipe(*parse_groups(argv, GROUPS, prog=prog, description=description, epilog=EPILOG))
    keep_checkpoints_apart(recipe.trainer, "SentenceTransformer('{model}').push_to_hub('owner/name')")
    check_batches(recipe.trainer)
    if recipe.data.eval_size < 2:
        raise UserError(f"eval_size is {recipe.data.eval_size}; the scores per dim need 2 held-out pairs or more.")
    _refuse_idle(recipe.matryoshka)
    if recipe.matryoshka.fixed is not None:
        _leave_one_dim(recipe.matryoshka, recipe.matryoshka.fixed)
    return recipe


def as_yaml(recipe: Recipe) -> dict[str, Any]:
    """All of our values and those of the trainer's that differ from its defaults; ``--config`` reads it back."""
    return groups_as_yaml((recipe.model, recipe.data, recipe.matryoshka, recipe.run), recipe.trainer)


def _refuse_idle(loss: MatryoshkaArguments) -> None:
    """Refuse options that change nothing without another that is not there."""
    if loss.hardness_strength and loss.hardness_mode is None:
        raise UserError(
            f"hardness_strength is {loss.hardness_strength}, and no hardness_mode says which negatives it is for; "
            "give one (in_batch_negatives, hard_negatives, all_negatives), or leave the strength out."
        )
    if loss.hardness_mode is not None and not loss.hardness_strength:
        raise UserError(
            f"hardness_mode is {loss.hardness_mode}, and its hardness_strength of 0 changes nothing; give a strength "
            "(5 or 9 is usual), or leave the mode out."
        )
    if loss.teacher is not None and not loss.teacher_weight:
        raise UserError(
            f"teacher is {loss.teacher!r}, and its teacher_weight of 0 leaves it out of the loss; give a weight "
            "(1 is worth trying), or leave the teacher out."
        )


def _leave_one_dim(loss: MatryoshkaArguments, dim: int) -> None:
    loss.matryoshka_dims = [dim]
    loss.matryoshka_weights = loss.matryoshka_weights_end = None
    loss.n_dims_per_step = -1
    loss.distill_weight = 0.0
