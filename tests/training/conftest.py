"""A small training set and the flags of a run that takes seconds."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

WORDS = ["amber", "birch", "cedar", "delta", "ember", "fjord", "grove", "haven", "inlet", "jetty", "knoll", "lagoon"]


def rows(count: int, seed: int = 0) -> list[dict[str, str]]:
    rng = random.Random(seed)
    sentences = [" ".join(rng.choices(WORDS, k=4)) for _ in range(count)]
    return [{"anchor": f"{s} a{i}", "positive": f"{s} p{i}"} for i, s in enumerate(sentences)]


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows(96)))
    return path


@pytest.fixture
def flags(tiny_model_path: Path, pairs: Path, tmp_path: Path) -> list[str]:
    """A run of 8 steps on the tiny model; add or repeat flags to change it."""
    values = {
        "model_name_or_path": tiny_model_path,
        "train_data": pairs,
        "output_dir": tmp_path / "out",
        "matryoshka_dims": "32 16 4",
        "per_device_train_batch_size": 8,
        "max_steps": 8,
        "eval_size": 8,
        "learning_rate": 1e-3,
        "save_steps": 4,
        "eval_steps": 4,
        "logging_steps": 2,
        "disable_tqdm": True,
        "use_cpu": True,
    }
    return [word for key, value in values.items() for word in (f"--{key}", *str(value).split())]
