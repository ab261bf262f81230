"""Which checkpoint a run goes on from: the newest complete one, never a half-written one."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path

from safetensors import SafetensorError, safe_open

from matryoshka_st.errors import UserError

logger = logging.getLogger(__name__)

# written by the trainer after weights, optimizer and RNG state
MARKER = "trainer_state.json"
REQUIRED = ("optimizer.pt", "scheduler.pt")
MODEL_FILE = "modules.json"


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in a folder, newest first, complete or not."""
    found = [path for path in folder.glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", path.name)]
    return sorted(found, key=lambda path: int(path.name.split("-")[1]), reverse=True)


def newest_complete(folder: Path, model_file: str = MODEL_FILE) -> Path | None:
    """The newest checkpoint that can be resumed from; skipped ones are named in the log."""
    for checkpoint in checkpoints(folder):
        reason = incomplete(checkpoint, model_file)
        if reason is None:
            return checkpoint
        logger.warning("Skipping checkpoint %s: %s.", checkpoint, reason)
    return None


def incomplete(checkpoint: Path, model_file: str = MODEL_FILE) -> str | None:
    """Why a checkpoint cannot be resumed from, or ``None`` if it can.

    Args:
        checkpoint: Its folder.
        model_file: The file that a model of its kind has beside its weights.
    """
    try:
        json.loads((checkpoint / MARKER).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return f"{MARKER} is missing or cut short"
    # under FSDP weights and optimizer are folders of shards
    if list(checkpoint.glob("*fsdp*")):
        return None
    missing = [name for name in (*REQUIRED, model_file) if not (checkpoint / name).is_file()]
    if missing:
        return f"{missing[0]} is missing"
    weights = list(checkpoint.rglob("*.safetensors"))
    return next(
        (f"{path.name} is cut short" for path in weights if not _opens(path)), None if weights else "no weights"
    )


def set_aside(folder: Path) -> Path | None:
    """Rename a folder of old checkpoints so that a new run can start; returns its new name."""
    if not checkpoints(folder):
        return None
    number = 1
    while (kept := folder.with_name(f"{folder.name}.old-{number}")).exists():
        number += 1
    folder.rename(kept)
    return kept


def checkpoint_at(path: Path, model_file: str = MODEL_FILE) -> Path:
    """A checkpoint that the user named.

    Raises:
        UserError: If it does not exist or is not complete.
    """
    if not path.is_dir():
        raise UserError(f"Checkpoint {path} does not exist; give a checkpoint-N folder, 'auto' or 'never'.")
    reason = incomplete(path, model_file)
    if reason is not None:
        raise UserError(f"Checkpoint {path} cannot be resumed: {reason}; give an older one or --resume auto.")
    return path


def _opens(path: Path) -> bool:
    try:
        with safe_open(path, framework="numpy") as file:
            return bool(file.keys())
    except (SafetensorError, OSError):
        return False
