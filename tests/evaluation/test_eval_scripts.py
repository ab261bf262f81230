"""The measuring scripts of ``eval/``, each run whole on a tiny model and made-up texts."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer

from matryoshka_st.export import declared_dims

pytestmark = pytest.mark.slow

EVAL = Path(__file__).parents[2] / "eval"
TOPICS = {"sea": ["fjord", "inlet", "jetty", "lagoon"], "wood": ["birch", "cedar", "grove", "knoll"],
          "fire": ["amber", "ember", "delta", "haven"]}  # fmt: skip


def texts(count: int, seed: int) -> list[dict[str, str]]:
    rng = random.Random(seed)
    labels = [list(TOPICS)[i % 3] for i in range(count)]
    return [
        {"text": " ".join(rng.choices(TOPICS[label], k=3)) + f" {seed}x{i}", "label": label}
        for i, label in enumerate(labels)
    ]


@pytest.fixture
def labelled(tmp_path: Path) -> Path:
    """A folder with the splits train and test."""
    folder = tmp_path / "topics"
    folder.mkdir()
    for split, count in (("train", 150), ("test", 60)):
        (folder / f"{split}.jsonl").write_text("\n".join(map(json.dumps, texts(count, len(split)))))
    return folder


def run(script: str, *arguments: object, output: Path) -> dict[str, Any]:
    """What the script wrote."""
    words = [sys.executable, str(EVAL / script), *map(str, arguments), "--output", str(output)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    found: dict[str, Any] = json.loads(output.read_text())
    return found


def test_retrieval_within_the_target_is_reported_beside_exact_search(tiny_model_path: Path, tmp_path: Path) -> None:
    rows = texts(400, 1)
    columns = {"anchor": [row["text"].split(" ", 1)[1] for row in rows], "positive": [row["text"] for row in rows]}
    pairs = tmp_path / "pairs.parquet"
    pq.write_table(pa.table(columns), pairs)
    words = ["--pairs", pairs, "--model", tiny_model_path, "--cache", tmp_path / "cache", "--queries", 100]
    words += [
        "--ways",
        "float32 flat",
        "--ways",
        "float32 flat, fastest",
        "--target",
        0.8,
        "--repeats",
        1,
        "--max-seq-length",
        16,
    ]
    found = run("bench_retrieval.py", *words, output=tmp_path / "found.json")
    (case,) = found["cases"]
    assert case["documents"] == 400
    assert [way["basis"] for way in case["ways"]] == ["as is", "rotated", "rotated"]
    for way in case["ways"]:
        assert way["tuned_ndcg_share"] >= 0.8
        assert way["dims"][-1] == 32
        assert 0 < way["ndcg_at_10"]["ours"] <= 1
        assert way["operation_ratio"] > 1


def test_heads_and_their_fixed_twins_are_trained_scored_and_kept(
    tiny_model_path: Path, labelled: Path, tmp_path: Path
) -> None:
    words = ["--data", labelled, "--model", tiny_model_path, "--dims", 32, 8, "--work", tmp_path / "work"]
    words += ["--max_steps", 4, "--per_device_train_batch_size", 16, "--use_cpu", "True"]
    found = run("classification_heads.py", *words, output=tmp_path / "first.json")
    assert set(found["runs"]) == {"MRL", "MRL-E", "FF-32", "FF-8"}
    for name, (one,) in found["runs"].items():
        assert set(one["heads"]) == {"32", "8"} if name.startswith("MRL") else {name[3:]}
    mrl, efficient = (found["runs"][name][0]["head_bytes"] for name in ("MRL", "MRL-E"))
    assert mrl > efficient
    again = run("classification_heads.py", *words, output=tmp_path / "again.json")
    assert again["runs"] == found["runs"]


def test_few_shots_compare_prefixes_with_fixed_models(tiny_model_path: Path, labelled: Path, tmp_path: Path) -> None:
    words = [tiny_model_path, "--data", labelled, "--fixed", tiny_model_path, "--dims", 32, 8]
    words += ["--shots", 1, 4, "--draws", 2, "--largest", 20, "--imbalance", 4]
    found = run("fewshot.py", *words, output=tmp_path / "found.json")
    assert "few_shot" in json.dumps(found)


def test_a_cascade_is_reported_beside_its_oracle(tiny_model_path: Path, labelled: Path, tmp_path: Path) -> None:
    words = ["--model", tiny_model_path, "--data", labelled, "--dims", 32, 8, 4, "--tolerances", 0.01]
    found = run("adaptive_classification.py", *words, output=tmp_path / "found.json")
    case = found["cases"]["topics"]
    assert case["dims"] == [4, 8, 32]
    cascade = case["cascades"]["tolerance 0.01"]
    assert 4 <= cascade["expected_dims"] <= 32
    assert case["oracle"]["accuracy"] >= cascade["accuracy"]


@pytest.fixture
def ablation_files(tiny_model_path: Path, tmp_path: Path) -> Path:
    """A plan with its recipes, pairs and the texts of STS12; two rows start from one rotation, one from a model."""
    rows = texts(120, 1)
    anchors, positives = [row["text"] for row in rows], [f"{row['label']} {row['text']}" for row in rows]
    pq.write_table(pa.table({"anchor": anchors, "positive": positives}), tmp_path / "pairs.parquet")
    scored = pa.table({"sentence1": anchors, "sentence2": positives[::-1], "score": [i % 6 for i in range(120)]})
    sts12 = tmp_path / "mirror" / "mteb" / "sts12-sts"
    (sts12 / "data").mkdir(parents=True)
    for split in ("validation", "test"):
        pq.write_table(scored, sts12 / "data" / f"{split}.parquet")
    recipe: dict[str, Any] = {
        "model_name_or_path": str(tiny_model_path),
        "train_data": [str(tmp_path / "pairs.parquet")],
        "eval_data": str(sts12),
        "eval_split": "validation",
        "eval_strategy": "no",
        "max_seq_length": 16,
        "matryoshka_dims": [32, 16, 8],
        "rotate": [str(tmp_path / "pairs.parquet")],
        "rotate_steps": 5,
        "rotate_contrast": 1.0,
        "per_device_train_batch_size": 8,
        "max_steps": 3,
        "dropout": 0.0,
        "use_cpu": True,
    }
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    (tmp_path / "first.yaml").write_text(json.dumps({**recipe, "objective": "neighbours", "group_size": 2}))
    (tmp_path / "slower.yaml").write_text(json.dumps({**recipe, "learning_rate": 1e-6}))
    rows_of = {
        "ours": {"seeds": [13, 14]},
        "slower": {"recipe": "slower.yaml"},
        "host": {"host": True, "rotate": None},
        "after": {"first": "first.yaml", "rotate": None, "learning_rate": 0.0},
        "turned": {"matryoshka_dims": [32], "rotate_after": True},
        "start": {"trained": False},
    }
    plan = {"recipe": "recipe.yaml", "dims": [32, 8], "seeds": [13], "tasks": ["STS12"], "rows": rows_of}
    (tmp_path / "plan.yaml").write_text(json.dumps(plan))
    return tmp_path


def test_rows_share_what_they_start_from_and_are_scored_alike(ablation_files: Path) -> None:
    work, whole = ablation_files / "work", ablation_files / "whole"
    words = [ablation_files / "plan.yaml", "--work", work, "--dataset-mirror", ablation_files / "mirror"]
    words += [word for row in ("ours", "slower", "host", "after", "turned", "start") for word in ("--row", row)]
    found = run("ablation.py", *words, output=ablation_files / "found.json")
    assert {name: len(runs) for name, runs in found["scores"].items()} == {
        "ours": 2,
        "slower": 1,
        "host": 1,
        "after": 1,
        "turned": 1,
        "start": 1,
    }
    lengths = [SentenceTransformer(str(work / row / "model")).max_seq_length for row in ("ours-13", "host-13")]
    assert lengths == [32, 32], "both score whole texts, not what training read of them"

    assert "1e-06" in (work / "slower-13" / "recipe.yaml").read_text(), "a row's own recipe"
    first, after = (load_file(work / "after-13" / step / "model.safetensors") for step in ("first/model", "model"))
    assert all(torch.equal(first[name], after[name]) for name in first), "nothing was learned after"

    assert [declared_dims(work / "turned-13" / step) for step in ("trained/model", "model")] == [(32,), (8, 16, 32)]
    sentences = ["red apples on a tree", "a train to the coast", "rain in the morning"]
    trained, turned = (
        SentenceTransformer(str(work / "turned-13" / step)).encode(sentences, convert_to_tensor=True)
        for step in ("trained/model", "model")
    )
    torch.testing.assert_close(turned @ turned.T, trained @ trained.T, atol=1e-5, rtol=0)
    assert not torch.allclose(turned, trained, atol=0.01), "rotated after training: same products, other coordinates"

    rotations = [load_file(folder / "model/2_Dense/model.safetensors") for folder in (work / "rotations").iterdir()]
    assert len(rotations) == 2
    alone, ours = (load_file(work / row / "model/2_Dense/model.safetensors") for row in ("start-13", "ours-13"))
    is_there = [torch.equal(alone["linear.weight"], rotation["linear.weight"]) for rotation in rotations]
    assert sorted(is_there) == [False, True]
    assert not torch.equal(alone["linear.weight"], ours["linear.weight"]), "rotated, not trained"

    recipe = ["--config", str(ablation_files / "recipe.yaml"), "--output_dir", str(whole), "--seed", "13"]
    subprocess.run([sys.executable, "-m", "matryoshka_st", "train", *recipe], check=True, capture_output=True)
    for file in ("model.safetensors", "2_Dense/model.safetensors"):
        alone, shared = (load_file(folder / "model" / file) for folder in (whole, work / "ours-13"))
        assert all(torch.equal(alone[name], shared[name]) for name in alone)


@pytest.mark.parametrize("key", ["recipe", "first"])
def test_a_recipe_that_is_not_there_is_told_before_a_row_is_trained(key: str, ablation_files: Path) -> None:
    plan = json.loads((ablation_files / "plan.yaml").read_text())
    plan["rows"]["slower"] = {key: "slow.yaml"}
    (ablation_files / "plan.yaml").write_text(json.dumps(plan))
    words = [ablation_files / "plan.yaml", "--work", ablation_files / "work", "--dataset-mirror", ablation_files]
    command = [sys.executable, str(EVAL / "ablation.py"), *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2
    assert "slow.yaml, which does not exist; did you mean 'slower.yaml'?" in done.stderr
    assert not (ablation_files / "work").exists()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["ablation.py", EVAL / "ablation.yaml", "--work", "w", "--dataset-mirror", "m", "--row", "our"], "no row"),
        (["bench_retrieval.py", "--ways", "float32 flit"], "no way 'float32 flit'; did you mean 'float32 flat'?; use"),
        (["bench_retrieval.py", "--pairs", "nowhere.parquet"], "'nowhere.parquet' does not exist"),
        (["bench_harness.py", "--model", "./nowhere"], "Model folder './nowhere' does not exist"),
        (["bench_training.py", "--train-data", "nowhere.jsonl"], "'nowhere.jsonl' does not exist"),
        (["bench_loss.py", "--width", "20", "--count", "6"], "A width of 20 has no 6 dims here"),
        (["bench_cpu_settings.py", "--train-data", "nowhere.jsonl"], "'nowhere.jsonl' does not exist"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_bad_input_is_one_sentence_and_code_2(words: list[str | Path], sentence: str, tmp_path: Path) -> None:
    script, *rest = words
    command = [sys.executable, str(EVAL / script), *map(str, rest)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=tmp_path)
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode == 2
    assert len(lines) == 1 and sentence in lines[0]
    assert not list(tmp_path.glob("w*"))
