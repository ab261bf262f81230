"""Weights averaged with those training started from."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from sentence_transformers import SentenceTransformer

from matryoshka_st.errors import UserError
from matryoshka_st.training import run
from matryoshka_st.training.average import average_with, start_weights
from matryoshka_st.training.recipe import parse_recipe


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return dict(SentenceTransformer(str(folder), device="cpu").state_dict())


def test_the_saved_model_lies_between_start_and_end(flags: list[str], tiny_model_path: Path, tmp_path: Path) -> None:
    run.train(parse_recipe(flags))
    run.train(parse_recipe([*flags, "--start_share", "0.25", "--output_dir", str(tmp_path / "averaged")]))
    start, end = weights(tiny_model_path), weights(tmp_path / "out" / "model")
    averaged = weights(tmp_path / "averaged" / "model")
    assert any(not torch.equal(start[name], end[name]) for name in start)
    for name, value in averaged.items():
        torch.testing.assert_close(value, 0.25 * start[name] + 0.75 * end[name], rtol=1e-5, atol=1e-7)


def test_with_a_rotation_and_lora_the_start_is_the_rotated_model(flags: list[str], tmp_path: Path) -> None:
    more = ["--rotate", "train", "--lora", "--matryoshka_dims", "32", "16", "4"]
    run.train(parse_recipe([*flags, *more, "--learning_rate", "0", "--start_share", "0.5"]))
    run.train(parse_recipe([*flags, *more, "--learning_rate", "0", "--output_dir", str(tmp_path / "untrained")]))
    untrained, averaged = (weights(tmp_path / name / "model") for name in ("untrained", "out"))
    for name, value in averaged.items():
        torch.testing.assert_close(value, untrained[name], rtol=1e-6, atol=1e-7)


def test_tied_weights_are_averaged_once() -> None:
    model = torch.nn.ModuleDict({"words": torch.nn.Embedding(5, 3), "decoder": torch.nn.Linear(3, 5)})
    model["decoder"].weight = model["words"].weight
    start = start_weights(model, 0.25)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    end = {name: value.clone() for name, value in model.state_dict().items()}
    average_with(model, start, 0.25)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, 0.25 * start[name] + 0.75 * end[name])


@pytest.mark.parametrize("share", [1.0, -0.1, float("nan")])
def test_a_share_is_below_one(tiny_model: SentenceTransformer, share: float) -> None:
    with pytest.raises(UserError, match=r"start_share is .*; give a share of 0 or more and below 1"):
        start_weights(tiny_model, share)
