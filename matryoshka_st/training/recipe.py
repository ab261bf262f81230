"""Read a recipe: dataclass defaults, overridden by a YAML file, overridden by flags. Every YAML key is a flag."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import HfArgumentParser

from matryoshka_st.errors import UserError, did_you_mean
from matryoshka_st.flags import OneSentence, underscored
from matryoshka_st.training.arguments import (
    DataArguments,
    MatryoshkaArguments,
    MatryoshkaTrainingArguments,
    ModelArguments,
    Recipe,
    RunArguments,
)

GROUPS: tuple[Any, ...] = (
    ModelArguments,
    DataArguments,
    MatryoshkaArguments,
    RunArguments,
    MatryoshkaTrainingArguments,
)
KEYS = tuple(field.name for group in GROUPS for field in dataclasses.fields(group) if field.init)
EPILOG = """examples:
  train on pairs harvested from the installed packages, on whatever hardware is there:
    finetune.py --train_data docstrings --output_dir output/first
  a recipe with one value changed:
    finetune.py --config train_scripts/recipes/minilm-pairs.yaml --learning_rate 3e-5
  two processes (a YAML for accelerate sets GPUs, nodes, FSDP):
    accelerate launch --num_processes 2 train_scripts/finetune.py --config RECIPE.yaml
  look before training:
    finetune.py --config RECIPE.yaml --dry_run
  count the rows that hold texts of evaluation tasks, exactly or nearly; see matryoshka-st check --against --help:
    matryoshka-st check --config RECIPE.yaml --against STS12 SciFact
"""


class _Parser(OneSentence, HfArgumentParser):
    pass


def parse_recipe(argv: Sequence[str], prog: str = "finetune.py") -> Recipe:
    """Parse flags, and the YAML file that ``--config`` names, into a recipe.

    Args:
        argv: Flags, without the program's name.
        prog: Name shown by ``--help``.

    Raises:
        UserError: For an unknown key or flag (naming the nearest), a value of the wrong type, or an unreadable file.
        SystemExit: After ``--help``.
    """
    parser = _Parser(
        list(GROUPS),
        prog=prog,
        description="Fine-tune embeddings that can be cut to any length.",
        epilog=EPILOG,
        allow_abbrev=False,
    )
    parser.add_argument("--config", metavar="RECIPE.yaml", help="Recipe: any of the flags below as YAML keys.")
    argv = [underscored(word) for word in argv]
    config = _value_of("--config", argv)
    from_file, nulls = _as_flags(read_yaml(Path(config))) if config else ([], [])
    parser.set_defaults(**dict.fromkeys(nulls))
    words = [*_device_flags([*from_file, *argv]), *from_file, *argv]
    try:
        *groups, _, unknown = parser.parse_args_into_dataclasses(words, return_remaining_strings=True)
    except (ValueError, ImportError) as error:
        raise error if isinstance(error, UserError) else UserError(" ".join(str(error).split())) from error
    if unknown:
        raise UserError(
            f"Unknown flag {unknown[0]}{did_you_mean(unknown[0], [f'--{key}' for key in KEYS])}; see --help."
        )
    return _recipe(groups)


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a recipe file.

    Raises:
        UserError: If it is missing, not YAML, not a mapping, or has an unknown key.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except OSError as error:
        raise UserError(f"Recipe {path} cannot be read ({error.strerror}); give the path of a YAML file.") from error
    except yaml.YAMLError as error:
        raise UserError(f"Recipe {path} is not YAML ({' '.join(str(error).split())}); fix that line.") from error
    if not isinstance(values, dict):
        raise UserError(f"Recipe {path} holds a {type(values).__name__}; it is a list of 'key: value' lines.")
    for key in values:
        if key not in KEYS:
            raise UserError(f"Unknown key {key!r} in {path}{did_you_mean(str(key), KEYS)}; see --help for all keys.")
    return values


def as_yaml(recipe: Recipe) -> dict[str, Any]:
    """All of our values and those of the trainer's that differ from its defaults; ``--config`` reads it back."""
    values: dict[str, Any] = {}
    for group in (recipe.model, recipe.data, recipe.matryoshka, recipe.run):
        values.update(dataclasses.asdict(group))
    defaults = MatryoshkaTrainingArguments(output_dir=recipe.trainer.output_dir).to_dict()
    values.update({key: value for key, value in recipe.trainer.to_dict().items() if value != defaults.get(key)})
    values["output_dir"] = str(recipe.folder)
    return {key: value for key, value in values.items() if key not in ("resume", "dry_run")}


def _recipe(groups: list[Any]) -> Recipe:
    model, data, matryoshka, run, trainer = groups
    trainer.output_dir = str(Path(trainer.output_dir) / "checkpoints")
    if trainer.push_to_hub:
        raise UserError(
            "push_to_hub is not done while training, so that no unchecked card leaves; push the finished model: "
            f"SentenceTransformer('{Path(trainer.output_dir).parent / 'model'}').push_to_hub('owner/name')."
        )
    if data.eval_size < 2:
        raise UserError(f"eval_size is {data.eval_size}; the scores per dim need 2 held-out pairs or more.")
    return Recipe(model, data, matryoshka, run, trainer)


def _value_of(flag: str, argv: Sequence[str]) -> str | None:
    for i, word in enumerate(argv):
        if word == flag:
            if i + 1 == len(argv):
                raise UserError(f"{flag} needs the path of a recipe.")
            return argv[i + 1]
        if word.startswith(f"{flag}="):
            return word.partition("=")[2]
    return None


def _as_flags(values: dict[str, Any]) -> tuple[list[str], list[str]]:
    flags: list[str] = []
    for key, value in values.items():
        if isinstance(value, list):
            flags += [f"--{key}", *map(str, value)]
        elif isinstance(value, dict):
            flags += [f"--{key}", json.dumps(value)]
        elif value is not None:
            flags += [f"--{key}", str(value)]
    return flags, [key for key, value in values.items() if value is None]


def _device_flags(words: Sequence[str]) -> list[str]:
    """What suits the device, unless recipe or launcher say otherwise: bf16 where it has it, no pinning on CPU."""
    given = {word.partition("=")[0] for word in words}
    if not torch.cuda.is_available():
        flags = [] if "--dataloader_pin_memory" in given else ["--dataloader_pin_memory", "False"]
        alone = "--bf16" in given and not torch.accelerator.is_available()
        return [*flags, "--use_cpu", "True"] if alone else flags  # transformers refuses bf16 on a CPU otherwise
    launcher = os.environ.get("ACCELERATE_MIXED_PRECISION", "no") != "no"
    if given & {"--bf16", "--fp16"} or launcher or not torch.cuda.is_bf16_supported():
        return []
    return ["--bf16", "True"]
