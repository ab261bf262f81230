"""The fixed-size twin of a contrastive recipe: trained at one dim alone, saved that wide."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import yaml
from sentence_transformers import SentenceTransformer

from matryoshka_st.errors import UserError
from matryoshka_st.export import declared_dims
from matryoshka_st.training import run
from matryoshka_st.training.recipe import as_yaml, parse_recipe
from matryoshka_st.verify import verify_model

SEVERAL = ["--matryoshka_weights", "1", "2", "3", "--matryoshka_weights_end", "3", "2", "1", "--n_dims_per_step", "2",
           "--distill_weight", "0.5"]  # fmt: skip


@pytest.mark.parametrize("extra", [[], ["--rotate", "train"], SEVERAL], ids=["plain", "rotated", "several dims"])
def test_the_twin_of_a_recipe_trains_one_dim_and_is_that_wide(
    flags: list[str], tmp_path: Path, extra: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    scores = run.train(parse_recipe([*flags, *extra, "--fixed", "4"]))
    out = tmp_path / "out"
    assert set(scores.before) == set(scores.after) == {4}
    model = SentenceTransformer(str(out / "model"), device="cpu")
    assert model.get_embedding_dimension() == 4 and declared_dims(out / "model") == (4,)
    assert model.encode(["amber"], convert_to_tensor=True).norm().item() == pytest.approx(1)
    assert verify_model(out / "model").ok
    logged = [entry for entry in json.loads((out / "metrics.json").read_text())["log_history"] if "loss" in entry]
    assert all(entry["loss"] == pytest.approx(entry["loss_dim_4"], abs=1e-3) for entry in logged)
    assert "leaves out the full width" not in caplog.text


@pytest.mark.parametrize("rotate", [[], ["--rotate", "train"]], ids=["plain", "rotated"])
def test_it_is_the_model_trained_at_that_prefix_alone(flags: list[str], tmp_path: Path, rotate: list[str]) -> None:
    plain = [*flags, *rotate, "--learning_rate", "0.01"]
    run.train(parse_recipe([*plain, "--fixed", "4"]))
    run.train(parse_recipe([*plain, "--matryoshka_dims", "4", "--output_dir", str(tmp_path / "prefix")]))
    texts = ["amber birch", "fjord", "lagoon knoll"]
    twin = SentenceTransformer(str(tmp_path / "out" / "model"), device="cpu").encode(texts, convert_to_tensor=True)
    cut = SentenceTransformer(str(tmp_path / "prefix" / "model"), truncate_dim=4, device="cpu")
    want = F.normalize(cut.encode(texts, convert_to_tensor=True), dim=1)
    torch.testing.assert_close(twin, want, rtol=0, atol=2e-4)


def test_its_config_reads_back_to_the_same_run(flags: list[str], tmp_path: Path) -> None:
    recipe = parse_recipe([*flags, *SEVERAL, "--fixed", "4"])
    (tmp_path / "run_config.yaml").write_text(yaml.safe_dump(as_yaml(recipe)))
    assert as_yaml(parse_recipe(["--config", str(tmp_path / "run_config.yaml")])) == as_yaml(recipe)


@pytest.mark.parametrize("dim", ["0", "33"])
def test_a_dim_that_the_model_has_not_is_refused(flags: list[str], dim: str) -> None:
    with pytest.raises(UserError, match=f"matryoshka_dims holds {dim}"):
        run.train(parse_recipe([*flags, "--fixed", dim]))
