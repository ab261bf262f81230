"""From the flags of a recipe to the loss."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from sentence_transformers import SentenceTransformer

from matryoshka_st.errors import UserError
from matryoshka_st.losses import CachedMatryoshkaContrastiveLoss, CombinedLoss, MatryoshkaContrastiveLoss, TaughtLoss
from matryoshka_st.training import run
from matryoshka_st.training.loss import build_loss
from matryoshka_st.training.recipe import parse_recipe

EVERYTHING = [
    word
    for flag, values in {
        "matryoshka_weights": (1, 2, 3),
        "matryoshka_weights_end": (3, 2, 1),
        "n_dims_per_step": (2,),
        "gather_across_devices": (),
        "hardness_mode": ("hard_negatives",),
        "hardness_strength": (5,),
        "exclude_duplicates": (),
        "margin": (0.1,),
        "margin_strategy": ("relative",),
        "distill_weight": (0.5,),
        "length_groups": (3,),
        "engine": ("tiled",),
    }.items()
    for word in (f"--{flag}", *map(str, values))
]


def build(model: SentenceTransformer, flags: list[str], *extra: str) -> Any:
    return build_loss(parse_recipe([*flags, *extra]), model, (32,))


def test_a_plain_recipe_has_the_plain_loss(tiny_model: SentenceTransformer, flags: list[str]) -> None:
    loss = build(tiny_model, flags)
    assert type(loss) is MatryoshkaContrastiveLoss
    assert loss.get_config_dict() == MatryoshkaContrastiveLoss(tiny_model, [32, 16, 4]).get_config_dict()


def test_every_option_reaches_the_loss(tiny_model: SentenceTransformer, flags: list[str]) -> None:
    config = build(tiny_model, flags, *EVERYTHING).get_config_dict()
    assert config["matryoshka_weights"] == [3, 2, 1] and config["matryoshka_weights_end"] == [1, 2, 3]
    plain = MatryoshkaContrastiveLoss(tiny_model, [32, 16, 4]).get_config_dict()
    same = {name for name in plain if plain[name] == config[name]}
    assert same == {"matryoshka_dims", "scale", "directions", "partition_mode", "similarity", "guide"}


@pytest.mark.parametrize(
    ("extra", "sizes"),
    [
        (["--mini_batch_size", "4"], (4, None)),
        (["--mini_batch_num_tokens", "64"], (32, 64)),
        (["--mini_batch_size", "4", "--mini_batch_num_tokens", "64"], (4, 64)),
    ],
)
def test_a_mini_batch_size_asks_for_the_cache(
    tiny_model: SentenceTransformer, flags: list[str], extra: list[str], sizes: tuple[int, int | None]
) -> None:
    cached = build(tiny_model, flags, *extra)
    combined = build(tiny_model, flags, *extra, "--spread_out_weight", "0.1")
    assert type(cached) is CachedMatryoshkaContrastiveLoss and type(combined) is CombinedLoss
    for loss in (cached, combined):
        assert (loss.mini_batch_size, loss.mini_batch_num_tokens) == sizes


def test_a_guide_is_loaded(tiny_model: SentenceTransformer, flags: list[str], tiny_model_path: Path) -> None:
    loss = build(tiny_model, flags, "--guide", str(tiny_model_path), "--margin", "0")
    assert isinstance(loss.guide, SentenceTransformer)
    with pytest.raises(UserError, match="A guide is given but no margin"):
        build(tiny_model, flags, "--guide", str(tiny_model_path))


@pytest.mark.parametrize("cache", [[], ["--mini_batch_size", "3"]], ids=["plain", "cached"])
def test_a_run_logs_every_term_and_dim(flags: list[str], tmp_path: Path, cache: list[str]) -> None:
    extra = ["--spread_out_weight", "0.1", "--distill_weight", "0.5", "--max_steps", "2", "--logging_steps", "1"]
    run.train(parse_recipe([*flags, *extra, *cache]))
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    first = next(entry for entry in metrics["log_history"] if "loss" in entry)
    terms = {
        *(f"contrastive/loss_dim_{dim}" for dim in (4, 16, 32)),
        *(f"contrastive/loss_distill_dim_{dim}" for dim in (4, 16)),
        *(f"spread_out/loss_spread_out_dim_{dim}" for dim in (4, 16, 32)),
    }
    assert terms <= first.keys()
    assert first["loss"] == pytest.approx(sum(first[name] for name in terms), abs=2e-3)


def test_everything_at_once_runs(flags: list[str], tmp_path: Path, tiny_model_path: Path) -> None:
    recipe = parse_recipe([*flags, *EVERYTHING, "--guide", str(tiny_model_path), "--max_steps", "2"])
    run.dry_run(recipe)
    run.train(recipe)
    assert (tmp_path / "out" / "model").is_dir()


def test_a_teacher_is_the_model_before_training_unless_named(
    tiny_model: SentenceTransformer, flags: list[str], tiny_model_path: Path
) -> None:
    loss = build(tiny_model, flags, "--teacher_weight", "2", "--spread_out_weight", "0.1", "--length_groups", "3")
    assert type(loss) is TaughtLoss and loss.loss.length_groups == 3
    assert loss.loss.weights == {"contrastive": 1.0, "spread_out": 0.1, "teacher": 2.0}
    start = SentenceTransformer(str(tiny_model_path), device="cpu").state_dict()
    assert all(torch.equal(start[name], value) for name, value in loss.teacher.state_dict().items())


def test_a_taught_run_logs_the_teacher_s_terms_and_saves_the_student_alone(flags: list[str], tmp_path: Path) -> None:
    run.train(parse_recipe([*flags, "--teacher_weight", "1"]))
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    logged = next(entry for entry in metrics["log_history"] if "loss" in entry)
    assert {f"teacher/loss_teacher_dim_{dim}" for dim in (4, 16, 32)} <= logged.keys()
    assert not [path for path in (tmp_path / "out" / "model").rglob("*") if "teacher" in path.name]
