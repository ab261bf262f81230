"""LoRA runs: whose weights the adapters are merged into."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants, metadata_load
from peft import LoraConfig
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer

from matryoshka_st.training import run
from matryoshka_st.training.recipe import parse_recipe

HUB_ID, MAIN, OLDER = "me/tiny", "a" * 40, "b" * 40


@pytest.fixture
def hub(tiny_model_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A hub cache with two revisions of one model: ``older`` is the tiny model, ``main`` has other weights."""
    repo = tmp_path / "hub" / f"models--{HUB_ID.replace('/', '--')}"
    (repo / "refs").mkdir(parents=True)
    for name, commit in (("main", MAIN), ("older", OLDER)):
        (repo / "refs" / name).write_text(commit)
        shutil.copytree(tiny_model_path, repo / "snapshots" / commit)
    other = SentenceTransformer(str(tiny_model_path), device="cpu")
    for parameter in other.parameters():
        torch.nn.init.normal_(parameter)
    other.save_pretrained(str(repo / "snapshots" / MAIN))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return repo


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(
    "best",
    [[], ["--load_best_model_at_end", "--metric_for_best_model", "eval_dev-32_cosine_ndcg@10"]],
    ids=["last step", "best step"],
)
def test_adapters_are_merged_into_the_revision_they_were_trained_on(
    flags: list[str], hub: Path, tmp_path: Path, best: list[str]
) -> None:
    older = ["--model_name_or_path", HUB_ID, "--model_revision", "older", "--lora", "--learning_rate", "0"]
    run.train(parse_recipe([*flags, *older, *best]))
    assert same(weights(tmp_path / "out" / "model"), weights(hub / "snapshots" / OLDER))
    assert not same(weights(tmp_path / "out" / "model"), weights(hub / "snapshots" / MAIN))
    assert metadata_load(tmp_path / "out" / "model" / "README.md")["base_model"] == HUB_ID


def test_the_adapter_of_a_run_that_was_cut_short_is_not_applied(
    flags: list[str], tiny_model_path: Path, tmp_path: Path
) -> None:
    adapted = SentenceTransformer(str(tiny_model_path), device="cpu")
    adapted.add_adapter(LoraConfig(target_modules="all-linear", init_lora_weights=False))
    adapted.save_pretrained(str(tmp_path / "out" / ".trained"))
    run.train(parse_recipe([*flags, "--learning_rate", "0"]))
    assert same(weights(tmp_path / "out" / "model"), weights(tiny_model_path))


def test_adapters_on_half_precision_are_merged_in_float32(
    flags: list[str], tiny_model_path: Path, tmp_path: Path
) -> None:
    SentenceTransformer(str(tiny_model_path), device="cpu").half().save_pretrained(str(tmp_path / "half"))
    run.train(parse_recipe([*flags, "--model_name_or_path", str(tmp_path / "half"), "--lora"]))
    assert {tensor.dtype for tensor in weights(tmp_path / "out" / "model").values()} == {torch.float32}
