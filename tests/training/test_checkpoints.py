"""A half-written checkpoint never blocks a run."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from matryoshka_st.errors import UserError
from matryoshka_st.training.checkpoints import checkpoint_at, newest_complete, set_aside


def write_checkpoint(folder: Path, step: int) -> Path:
    checkpoint = folder / f"checkpoint-{step}"
    checkpoint.mkdir(parents=True)
    for name in ("optimizer.pt", "scheduler.pt", "modules.json"):
        (checkpoint / name).write_text("x")
    save_file({"w": np.ones(64, dtype=np.float32)}, checkpoint / "model.safetensors")
    (checkpoint / "trainer_state.json").write_text('{"global_step": 1}')
    return checkpoint


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


BREAKAGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "no marker": (lambda c: (c / "trainer_state.json").unlink(), "trainer_state.json is missing or cut short"),
    "half a marker": (lambda c: cut(c / "trainer_state.json"), "trainer_state.json is missing or cut short"),
    "no optimizer": (lambda c: (c / "optimizer.pt").unlink(), "optimizer.pt is missing"),
    "half the weights": (lambda c: cut(c / "model.safetensors"), "model.safetensors is cut short"),
    "no weights": (lambda c: (c / "model.safetensors").unlink(), "no weights"),
}


def test_the_newest_by_number_not_by_name(tmp_path: Path) -> None:
    for step in (100, 20, 9):
        write_checkpoint(tmp_path, step)
    newest = newest_complete(tmp_path)
    assert newest is not None and newest.name == "checkpoint-100"
    assert newest_complete(tmp_path / "nowhere") is None


@pytest.mark.parametrize("breakage", BREAKAGES)
def test_a_broken_one_is_named_and_the_one_before_is_used(
    tmp_path: Path, breakage: str, caplog: pytest.LogCaptureFixture
) -> None:
    older, newer = write_checkpoint(tmp_path, 5), write_checkpoint(tmp_path, 10)
    break_it, reason = BREAKAGES[breakage]
    break_it(newer)
    with caplog.at_level(logging.WARNING):
        assert newest_complete(tmp_path) == older
    assert f"Skipping checkpoint {newer}: {reason}." in caplog.text
    with pytest.raises(UserError, match=f"cannot be resumed: {reason}"):
        checkpoint_at(newer)


def test_a_named_checkpoint_must_exist(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="checkpoint-3 does not exist; give a checkpoint-N folder, 'auto' or 'never'"):
        checkpoint_at(tmp_path / "checkpoint-3")


def test_setting_aside_keeps_everything(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    assert set_aside(folder) is None
    for number in (1, 2):
        write_checkpoint(folder, 7)
        kept = set_aside(folder)
        assert kept is not None and kept.name == f"checkpoints.old-{number}"
        assert (kept / "checkpoint-7" / "model.safetensors").is_file()
        assert not folder.exists()
