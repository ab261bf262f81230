"""Dataclasses of arguments from flags over a YAML file over defaults, and back to YAML. Every YAML key is a flag."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import HfArgumentParser, TrainingArguments

from matryoshka_st.errors import UserError, did_you_mean
from matryoshka_st.flags import OneSentence, underscored


class _Parser(OneSentence, HfArgumentParser):
    pass


def parse_groups(argv: Sequence[str], groups: Sequence[Any], *, prog: str, description: str, epilog: str) -> list[Any]:
    """Parse flags, and the YAML file that ``--config`` names, into one object per group.

    Args:
        argv: Flags, without the program's name.
        groups: Dataclasses of arguments.
        prog: Name shown by ``--help``.
        description: What ``--help`` says first.
        epilog: What ``--help`` says last.

    Raises:
        UserError: For an unknown key or flag (naming the nearest), a value of the wrong type, or an unreadable file.
        SystemExit: After ``--help``.
    """
    parser = _Parser(list(groups), prog=prog, description=description, epilog=epilog, allow_abbrev=False)
    parser.add_argument("--config", metavar="RECIPE.yaml", help="Recipe: any of the flags below as YAML keys.")
    keys = [field.name for group in groups for field in dataclasses.fields(group) if field.init]
    argv = [underscored(word) for word in argv]
    config = _value_of("--config", argv)
    from_file, nulls = _as_flags(read_yaml(Path(config), keys)) if config else ([], [])
    parser.set_defaults(**dict.fromkeys(nulls))
    words = [*_device_flags([*from_file, *argv]), *from_file, *argv]
    try:
        *parsed, _, unknown = parser.parse_args_into_dataclasses(words, return_remaining_strings=True)
    except (ValueError, ImportError) as error:
        raise error if isinstance(error, UserError) else UserError(" ".join(str(error).split())) from error
    if unknown:
        raise UserError(
            f"Unknown flag {unknown[0]}{did_you_mean(unknown[0], [f'--{key}' for key in keys])}; see --help."
        )
    return parsed


def read_yaml(path: Path, keys: Sequence[str]) -> dict[str, Any]:
    """Read a recipe file.

    Raises:
        UserError: If it is missing, not UTF-8, not YAML, not a mapping, or has another key than ``keys``.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except OSError as error:
        raise UserError(f"Recipe {path} cannot be read ({error.strerror}); give the path of a YAML file.") from error
    except UnicodeDecodeError as error:
        raise UserError(f"Recipe {path} is not UTF-8 text ({error.reason}); save the file as UTF-8.") from error
    except yaml.YAMLError as error:
        raise UserError(f"Recipe {path} is not YAML ({' '.join(str(error).split())}); fix that line.") from error
    if not isinstance(values, dict):
        raise UserError(f"Recipe {path} holds a {type(values).__name__}; it is a list of 'key: value' lines.")
    for key in values:
        if key not in keys:
            raise UserError(f"Unknown key {key!r} in {path}{did_you_mean(str(key), keys)}; see --help for all keys.")
    return values


def groups_as_yaml(groups: Iterable[Any], trainer: TrainingArguments) -> dict[str, Any]:
    """All values of our groups and those of the trainer's that are not its defaults; ``--config`` reads it back."""
    values: dict[str, Any] = {}
    for group in groups:
        values.update(dataclasses.asdict(group))
    defaults = type(trainer)(output_dir=trainer.output_dir).to_dict()
    values.update({key: value for key, value in trainer.to_dict().items() if value != defaults.get(key)})
    values["output_dir"] = str(Path(str(trainer.output_dir)).parent)
    return {key: value for key, value in values.items() if key not in ("resume", "dry_run")}


def check_batches(trainer: TrainingArguments) -> None:
    """Refuse batches of no rows, and steps of no batches.

    Raises:
        UserError: Naming the first number below 1.
    """
    for name in ("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps"):
        value = getattr(trainer, name)
        if value < 1:
            raise UserError(f"{name} is {value}; give 1 or more.")


def keep_checkpoints_apart(trainer: TrainingArguments, push: str) -> None:
    """Point the trainer at the folder ``checkpoints`` in its output folder.

    Args:
        trainer: As it was parsed.
        push: How to push the finished model, with a ``{model}`` for its folder.

    Raises:
        UserError: If it would push while training.
    """
    folder = Path(str(trainer.output_dir))
    if trainer.push_to_hub:
        raise UserError(
            "push_to_hub is not done while training, so that no unchecked card leaves; push the finished model: "
            f"{push.format(model=folder / 'model')}."
        )
    trainer.output_dir = str(folder / "checkpoints")


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
