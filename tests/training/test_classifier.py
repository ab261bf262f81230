"""Whole runs of a classifier on a tiny BERT: what they leave, how they resume, the fixed-size twin, bad input."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer
from transformers import TrainerCallback

from matryoshka_st.errors import UserError
from matryoshka_st.export import declared_dims
from matryoshka_st.label_head import LabelHead
from matryoshka_st.training import classifier, run
from matryoshka_st.training.classifier_arguments import parse_classifier
from matryoshka_st.training.trainer import LOSS_WEIGHTS, MatryoshkaTrainer
from matryoshka_st.verify import verify_model

SCRIPT = Path(__file__).parents[2] / "train_scripts" / "finetune_classifier.py"
TOPICS = {"sea": ["fjord", "inlet", "jetty", "lagoon"], "wood": ["birch", "cedar", "grove", "knoll"],
          "fire": ["amber", "ember", "delta", "haven"]}  # fmt: skip


def labelled(count: int, seed: int) -> list[dict[str, str]]:
    rng = random.Random(seed)
    labels = [list(TOPICS)[i % 3] for i in range(count)]
    return [
        {"text": " ".join(rng.choices(TOPICS[label], k=3)) + f" {seed}x{i}", "label": label}
        for i, label in enumerate(labels)
    ]


def written(path: Path, rows: list[dict[str, str]]) -> Path:
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return written(tmp_path / "topics.jsonl", labelled(150, 0))


@pytest.fixture
def flags(tiny_model_path: Path, data: Path, tmp_path: Path) -> list[str]:
    """A run of 12 steps on the tiny model; add or repeat flags to change it."""
    values = {
        "model_name_or_path": tiny_model_path,
        "train_data": data,
        "output_dir": tmp_path / "out",
        "matryoshka_dims": "32 8 2",
        "per_device_train_batch_size": 16,
        "max_steps": 12,
        "learning_rate": 3e-3,
        "save_steps": 4,
        "eval_steps": 4,
        "logging_steps": 2,
        "disable_tqdm": True,
        "use_cpu": True,
    }
    return [word for key, value in values.items() for word in (f"--{key}", *str(value).split())]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return {
        f"{file.relative_to(folder)}:{name}": tensor
        for file in sorted(folder.rglob("*.safetensors"))
        for name, tensor in load_file(file).items()
    }


@pytest.mark.parametrize("efficient", [False, True], ids=["MRL", "MRL-E"])
def test_a_run_leaves_a_model_and_a_head_that_label_texts(
    flags: list[str], tmp_path: Path, efficient: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    scores = classifier.train(parse_classifier([*flags, *(["--efficient"] if efficient else [])]))
    out = tmp_path / "out"
    assert sorted(path.name for path in out.iterdir()) == [
        "checkpoints", "metrics.json", "model", "run_config.yaml", "scores.png",
    ]  # fmt: skip
    assert scores.metric == "accuracy" and set(scores.after) == {2, 8, 32}
    assert scores.after[32] > 0.9 and scores.after[2] > scores.before[2]
    assert declared_dims(out / "model") == (2, 8, 32) and verify_model(out / "model").ok
    head = LabelHead.load(out / "model")
    assert head.labels == ("fire", "sea", "wood") and head.linear.efficient is efficient
    model = SentenceTransformer(str(out / "model"), truncate_dim=8, device="cpu")
    asked = labelled(30, 1)
    got = head.predict(model.encode([row["text"] for row in asked]))
    assert sum(label == row["label"] for label, row in zip(got, asked, strict=True)) >= 24
    metrics = json.loads((out / "metrics.json").read_text())
    logged = [entry for entry in metrics["log_history"] if "loss" in entry]
    assert logged[0]["loss"] == pytest.approx(sum(logged[0][f"loss_dim_{dim}"] for dim in (2, 8, 32)), abs=2e-3)
    assert any("eval_dev-8_accuracy" in entry for entry in metrics["log_history"])
    assert capsys.readouterr().out.count("VERDICT: ") == 1


def test_the_card_says_how_to_label_and_holds_no_training_row(flags: list[str], tmp_path: Path) -> None:
    classifier.train(parse_classifier(flags))
    text = (tmp_path / "out" / "model" / "README.md").read_text()
    for words in ("MatryoshkaClassificationLoss", "kusupati2022matryoshka", "one of 3 labels", "LabelHead.load"):
        assert words in text
    assert not any(word in card.read_text() for card in tmp_path.rglob("README.md") for word in ("fjord", "lagoon"))


def test_the_heads_start_at_the_nearest_class_mean(flags: list[str], tiny_model_path: Path) -> None:
    _, loss, _, before = classifier.prepare(parse_classifier([*flags, "--rotate", "train"]))
    plain, other, _, same = classifier.prepare(parse_classifier(flags))
    assert before == same == plain.evaluator.scores(SentenceTransformer(str(tiny_model_path), device="cpu"))
    assert not torch.equal(loss.head.heads["8"].weight, other.head.heads["8"].weight)
    assert loss.head.heads["8"].weight.norm(dim=1).tolist() == pytest.approx([1.0] * 3)


@pytest.mark.parametrize(
    "extra",
    [["--rotate_contrast", "1"], ["--rotate_like", "a text"], ["--rotate_retrieval", "train"]],
    ids=lambda flags: flags[0],
)
def test_a_rotation_by_pairs_or_examples_is_refused(flags: list[str], extra: list[str]) -> None:
    with pytest.raises(UserError, match="rotate_contrast, rotate_like and rotate_retrieval are not for texts"):
        classifier.prepare(parse_classifier([*flags, "--rotate", "train", *extra]))


@pytest.mark.parametrize("extra", [[], ["--efficient", "--rotate", "train"], ["--lora"], ["--fixed", "8"]], ids=str)
def test_killed_and_resumed_ends_with_the_same_weights(
    flags: list[str], tmp_path: Path, extra: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    classifier.train(parse_classifier([*flags, *extra]))
    whole = weights(tmp_path / "out" / "model")
    shutil.rmtree(tmp_path / "out")

    class Killed(TrainerCallback):
        def on_step_end(self, args: object, state: object, control: object, **_: object) -> None:
            if state.global_step == 6:
                raise KeyboardInterrupt

    class DoomedTrainer(MatryoshkaTrainer):
        def __init__(self, **kwargs: object) -> None:
            super().__init__(callbacks=[Killed()], **kwargs)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(run, "MatryoshkaTrainer", DoomedTrainer)
        classifier.train(parse_classifier([*flags, *extra]))
    assert not (tmp_path / "out" / "model").exists()
    classifier.train(parse_classifier([*flags, *extra]))
    resumed = weights(tmp_path / "out" / "model")
    assert whole.keys() == resumed.keys() and any("matryoshka_head" in name for name in whole)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_a_checkpoint_whose_heads_are_gone_is_not_resumed(flags: list[str], tmp_path: Path) -> None:
    classifier.train(parse_classifier(flags))
    (tmp_path / "out" / "checkpoints" / "checkpoint-12" / LOSS_WEIGHTS).unlink()
    with pytest.raises(UserError, match=r"checkpoint-12/loss\.safetensors cannot be read .* go on from another"):
        classifier.train(parse_classifier(flags))


def test_the_fixed_size_twin_is_as_wide_as_its_dim(flags: list[str], tmp_path: Path) -> None:
    scores = classifier.train(parse_classifier([*flags, "--fixed", "8"]))
    assert set(scores.after) == {8}
    model = SentenceTransformer(str(tmp_path / "out" / "model"), device="cpu")
    assert model.get_embedding_dimension() == 8 and declared_dims(tmp_path / "out" / "model") == (8,)
    assert verify_model(tmp_path / "out" / "model").ok
    assert LabelHead.load(tmp_path / "out" / "model").predict(model.encode(["birch grove"])) == ["wood"]


def test_held_out_texts_can_be_named(flags: list[str], tmp_path: Path, data: Path) -> None:
    rows = labelled(40, 2)
    named = written(tmp_path / "dev.jsonl", [*rows, labelled(150, 0)[3]])
    found = classifier.load_data(parse_classifier([*flags, "--eval_data", str(named)]))
    assert len(found.held_out) == 41 and len(found.train) == 149
    written(named, [*rows, {"text": "smoke", "label": "smoke"}])
    with pytest.raises(UserError, match=r"dev\.jsonl has the label 'smoke', which the training data has not"):
        classifier.load_data(parse_classifier([*flags, "--eval_data", str(named)]))


def test_evaluation_texts_are_drawn_from_a_file_sorted_by_class(flags: list[str], tmp_path: Path) -> None:
    named = written(tmp_path / "dev.jsonl", sorted(labelled(90, 2), key=lambda row: row["label"]))
    recipe = parse_classifier([*flags, "--eval_data", str(named), "--eval_size", "15"])
    held_out = classifier.load_data(recipe).held_out
    assert len(held_out) == 15 and set(held_out["label"]) == {0, 1, 2}
    assert classifier.load_data(recipe).held_out["text"][:] == held_out["text"][:]


def test_a_dry_run_writes_nothing(flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    classifier.main([*flags, "--dry_run"])
    text = capsys.readouterr().out
    assert "135 texts of 3 classes" in text and "12 steps of 16 texts" in text and "loss_dim_8" in text
    assert not (tmp_path / "out").exists()


def one_class(path: Path) -> None:
    written(path, [{**row, "label": "sea"} for row in labelled(60, 0)])


@pytest.mark.parametrize(
    ("spoil", "extra", "sentence"),
    [
        (one_class, [], "has one label only, 'sea'; a classifier needs two or more"),
        (
            lambda path: written(path, labelled(12, 0)),
            [],
            "A training set of 12 rows is too small to hold texts out of",
        ),
        (lambda path: written(path, [{"text": "x"}]), [], "none of which is known to be the label"),
        (lambda path: None, ["--matryoshka_dims", "33"], "holds 33, above the model's width of 32"),
        (lambda path: None, ["--fixed", "0"], "holds 0; each dim is a whole number from 1 to 32"),
        (lambda path: None, ["--matryoshka_weights", "1"], "has 1 values for 3 dims"),
        (lambda path: None, ["--per_device_train_batch_size", "200"], "135 rows, less than one batch of 200"),
        (lambda path: None, ["--per_device_train_batch_size", "0"], "per_device_train_batch_size is 0; give 1"),
        (lambda path: None, ["--efficent"], r"Unknown flag --efficent; did you mean '--efficient'\?"),
        (lambda path: None, ["--eval_size", "1"], "eval_size is 1; the accuracy needs 2"),
        (lambda path: None, ["--start_share", "0.3"], r"start_share is 0\.3, but the heads fit the trained weights"),
    ],
)
def test_bad_input_stops_the_run_before_anything_is_written(
    flags: list[str], data: Path, tmp_path: Path, spoil: Callable[[Path], None], extra: list[str], sentence: str
) -> None:
    spoil(data)
    with pytest.raises(UserError, match=sentence) as caught:
        classifier.train(parse_classifier([*flags, *extra]))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_training_data_has_to_be_named() -> None:
    with pytest.raises(UserError, match="the following arguments are required: --train_data"):
        parse_classifier([])


@pytest.mark.slow
def test_two_processes_train_and_save_one_model_with_one_head(flags: list[str], tmp_path: Path) -> None:
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2"]
    done = subprocess.run(
        [*launch, str(SCRIPT), *flags, "--max_steps", "4"],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert LabelHead.load(tmp_path / "out" / "model").dims == (2, 8, 32)


def test_the_script_says_bad_input_in_one_sentence(flags: list[str]) -> None:
    done = subprocess.run([sys.executable, str(SCRIPT), *flags, "--scal", "1"], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.strip() == "error: Unknown flag --scal; did you mean '--scale'?; see --help."
