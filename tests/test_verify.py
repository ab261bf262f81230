"""Verification: a good model passes every check, and each way a folder can be wrong is named."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer

from matryoshka_st.errors import UserError
from matryoshka_st.export import save_model
from matryoshka_st.rotation import rotate_model
from matryoshka_st.verify import Check, verify_model


@pytest.fixture(scope="module")
def good_path(tiny_model_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A rotated model with the dims 8, 16 and 32 declared."""
    model = rotate_model(SentenceTransformer(str(tiny_model_path), device="cpu"), [f"text {n}" for n in range(40)])
    return save_model(model, tmp_path_factory.mktemp("verify") / "good", dims=[8, 16])


@pytest.fixture
def folder(good_path: Path, tmp_path: Path) -> Path:
    """A copy of the good model to break."""
    return Path(shutil.copytree(good_path, tmp_path / "model"))


def edit(path: Path, change: Callable[[Any], Any]) -> None:
    content = json.loads(path.read_text())
    path.write_text(json.dumps(change(content)))


def failed(folder: Path) -> dict[str, str]:
    report = verify_model(folder)
    assert not report.ok
    return {check.name: check.detail for check in report.checks if not check.ok}


def test_a_saved_model_passes(good_path: Path) -> None:
    report = verify_model(str(good_path))
    assert report.ok
    names = [check.name for check in report.checks]
    assert names[:5] == ["modules", "weight files", "finite weights", "truncate_dim", "card"]
    assert names[5:] == ["loads", "declared dims", "dim 8", "dim 16", "dim 32"]
    assert Check("modules", True, "Transformer > Pooling > Dense > Normalize") in report.checks


def test_a_model_with_a_rotation_for_retrieval_passes_and_its_inner_modules_are_looked_at(
    folder: Path, tmp_path: Path
) -> None:
    model = SentenceTransformer(str(folder), device="cpu")
    rotate_model(model, [f"text {n}" for n in range(40)], retrieval=True)
    routed = save_model(model, tmp_path / "routed", dims=[8, 16])
    report = verify_model(routed)
    assert report.ok
    assert Check("modules", True, "Transformer > Pooling > Dense > Router") in report.checks

    def of_mine(config: dict[str, Any]) -> dict[str, Any]:
        return {**config, "types": dict.fromkeys(config["types"], "my_modules.Turn")}

    edit(next(routed.glob("*/router_config.json")), of_mine)
    assert failed(routed)["modules"] == "my_modules.Turn is no module of sentence-transformers"
    router = next(routed.glob("*/router_config.json"))
    router.write_text("{}")
    with pytest.raises(UserError, match=rf"no sentence-transformers model \({router.parent.name}/router_config.json"):
        verify_model(routed)


def test_a_saved_truncate_dim_is_found(folder: Path) -> None:
    edit(folder / "config_sentence_transformers.json", lambda config: {**config, "truncate_dim": 16})
    assert failed(folder) == {"truncate_dim": "config_sentence_transformers.json cuts every load to 16"}


def test_a_missing_declaration_is_found(folder: Path) -> None:
    edit(folder / "config.json", lambda config: {k: v for k, v in config.items() if k != "matryoshka_dimensions"})
    assert failed(folder) == {"declared dims": "config.json declares no matryoshka_dimensions with is_matryoshka"}


@pytest.mark.parametrize(
    ("dims", "problem"),
    [
        ([16, 8, 32], "matryoshka_dimensions is [16, 8, 32], which is not ascending"),
        ([8, 8, 32], "matryoshka_dimensions is [8, 8, 32], which is not ascending"),
        ([8, 16], "matryoshka_dimensions ends at 16, not at the full width 32"),
        ([8, 16.0, 32], "matryoshka_dimensions is [8, 16.0, 32], not a list of whole numbers of 1 or more"),
        (32, "matryoshka_dimensions is 32, not a list of whole numbers of 1 or more"),
    ],
)
def test_wrong_dims_are_found(folder: Path, dims: list[float] | int, problem: str) -> None:
    edit(folder / "config.json", lambda config: {**config, "matryoshka_dimensions": dims})
    assert failed(folder)["declared dims"] == problem


def test_a_width_that_no_key_tells_is_found(folder: Path) -> None:
    edit(folder / "2_Dense/config.json", lambda config: {**config, "out_features": 24})
    save_file({"linear.weight": torch.eye(32)[:24].contiguous()}, folder / "2_Dense/model.safetensors")
    edit(folder / "config.json", lambda config: {**config, "matryoshka_dimensions": [8, 24]})
    assert failed(folder)["declared dims"].startswith("the width 24 is not the hidden_size")
    edit(folder / "config.json", lambda config: {**config, "embedding_size": 24})
    assert set(failed(folder)) == {"card"}


def test_pickled_weights_are_found_and_not_loaded(folder: Path) -> None:
    torch.save({"linear.weight": torch.eye(32)}, folder / "2_Dense/pytorch_model.bin")
    failures = failed(folder)
    assert failures["weight files"].startswith("2_Dense/pytorch_model.bin may hold a pickle")
    assert failures["loads"] == "not tried, since its files are not safe to load"


def test_missing_weights_are_found(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    assert set(failed(folder)) == {"loads"}
    (folder / "2_Dense/model.safetensors").unlink()
    assert failed(folder)["weight files"] == "no safetensors file"


def test_non_finite_weights_are_found(folder: Path) -> None:
    weights = load_file(folder / "2_Dense/model.safetensors")
    weights["linear.weight"][3, 4] = float("nan")
    save_file(weights, folder / "2_Dense/model.safetensors")
    failures = failed(folder)
    assert failures["finite weights"] == "linear.weight in 2_Dense/model.safetensors is not finite"
    assert "not the prefix of the full ones" in failures["dim 8"]


def test_half_written_weights_are_found(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    failures = failed(folder)
    assert failures["finite weights"].startswith("model.safetensors cannot be read")
    assert failures["loads"].startswith("plain sentence-transformers cannot load it")


def test_modules_of_other_packages_are_found_and_not_loaded(folder: Path) -> None:
    def rename(modules: list[dict[str, str]]) -> list[dict[str, str]]:
        return [*modules[:-1], {**modules[-1], "type": "matryoshka_st.modules.Normalize"}]

    edit(folder / "modules.json", rename)
    failures = failed(folder)
    assert failures["modules"] == "matryoshka_st.modules.Normalize is no module of sentence-transformers"
    assert "loads" in failures


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("<!-- matryoshka-dims: end -->", "", "README.md has no section on dims"),
        ("| 16 |", "| 17 |", "the section on dims of README.md does not list 16"),
        ("truncate_dim=8", "", "the section on dims of README.md shows no truncate_dim"),
        ("- matryoshka\n", "", "README.md lacks the tag 'matryoshka'"),
        ("tags:\n", "tags: [\n", "the front matter of README.md cannot be read"),
    ],
)
def test_a_wrong_card_is_found(folder: Path, old: str, new: str, problem: str) -> None:
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert old in card
    (folder / "README.md").write_text(card.replace(old, new), encoding="utf-8")
    assert failed(folder)["card"].startswith(problem)


def test_a_missing_card_is_found(folder: Path) -> None:
    (folder / "README.md").unlink()
    assert failed(folder) == {"card": "README.md is missing"}


def test_what_is_no_model_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere is no sentence-transformers model"):
        verify_model(tmp_path / "nowhere")
    (folder / "modules.json").write_text("{}")
    with pytest.raises(UserError, match=r"is no sentence-transformers model \(modules\.json names no module\)"):
        verify_model(folder)
    (folder / "modules.json").write_text('[{"idx": 0')
    with pytest.raises(UserError, match=r"is no sentence-transformers model .*give the folder of a saved model"):
        verify_model(folder)
