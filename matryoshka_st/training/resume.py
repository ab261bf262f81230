"""Where a run starts: at the newest complete checkpoint of the same run, at a named one, or afresh."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from accelerate import PartialState

from matryoshka_st.errors import UserError
from matryoshka_st.training.checkpoints import MODEL_FILE, checkpoint_at, newest_complete, set_aside

logger = logging.getLogger(__name__)

# keys of run_config.yaml that may differ when a run is resumed
FREE_TO_CHANGE = {
    "output_dir",
    "card_samples",
    "report_to",
    "run_name",
    "logging_steps",
    "save_total_limit",
    "disable_tqdm",
}


def resume_point(resume: str, folder: Path, config: Mapping[str, Any], *, model_file: str = MODEL_FILE) -> Path | None:
    """The checkpoint to go on from, or ``None`` to start afresh.

    Args:
        resume: ``auto``, ``never`` (checkpoints of an earlier run are set aside) or the path of a checkpoint.
        folder: The run folder, with ``run_config.yaml`` and ``checkpoints`` of an earlier start, if any.
        config: What ``run_config.yaml`` will say of this run.
        model_file: The file that a model of its kind has beside its weights.

    Raises:
        UserError: If the named checkpoint will not do, or those in the folder belong to another run.
    """
    if resume not in ("auto", "never"):
        return checkpoint_at(Path(resume), model_file)
    if resume == "never":
        with PartialState().main_process_first():
            kept = set_aside(folder / "checkpoints")
        if kept:
            logger.info("Set the checkpoints of an earlier run aside in %s.", kept)
        return None
    checkpoint = newest_complete(folder / "checkpoints", model_file)
    if checkpoint is not None:
        _require_same_run(folder, config)
        logger.info("Going on from %s.", checkpoint)
    return checkpoint


def _require_same_run(folder: Path, now: Mapping[str, Any]) -> None:
    path = folder / "run_config.yaml"
    try:
        earlier = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (OSError, yaml.YAMLError):
        earlier = {}
    keys = sorted((earlier.keys() | now.keys()) - FREE_TO_CHANGE)
    changed = [key for key in keys if earlier.get(key) != now.get(key)]
    if changed:
        raise UserError(
            f"{folder} holds checkpoints of another run ({changed[0]} was {earlier.get(changed[0])!r}, is "
            f"{now.get(changed[0])!r}); use another --output_dir, or --resume never to set them aside."
        )
