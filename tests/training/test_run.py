"""Whole runs on a tiny BERT: what they leave behind, how they resume, how they stop."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer
from transformers import TrainerCallback

from matryoshka_st.errors import UserError
from matryoshka_st.export import declared_dims
from matryoshka_st.training import run
from matryoshka_st.training.recipe import parse_recipe
from matryoshka_st.training.trainer import MatryoshkaTrainer
from matryoshka_st.verify import verify_model

from .conftest import rows

SCRIPT = Path(__file__).parents[2] / "train_scripts" / "finetune.py"


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return {
        f"{file.relative_to(folder)}:{name}": tensor
        for file in sorted(folder.rglob("*.safetensors"))
        for name, tensor in load_file(file).items()
    }


def test_a_run_leaves_a_model_that_plain_sentence_transformers_cuts(
    flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scores = run.train(parse_recipe(flags))
    out = tmp_path / "out"
    assert sorted(path.name for path in out.iterdir()) == [
        "checkpoints", "metrics.json", "model", "run_config.yaml", "scores.png",
    ]  # fmt: skip
    model = SentenceTransformer(str(out / "model"), truncate_dim=4, device="cpu")
    assert model.encode(["amber birch"], normalize_embeddings=True).shape == (1, 4)
    assert declared_dims(out / "model") == (4, 16, 32)
    assert verify_model(out / "model").ok
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["after"] == {str(dim): value for dim, value in scores.after.items()}
    logged = [entry for entry in metrics["log_history"] if "loss" in entry]
    assert logged[0]["loss"] == pytest.approx(sum(logged[0][f"loss_dim_{dim}"] for dim in (4, 16, 32)), abs=2e-3)
    assert any("eval_dev-16_cosine_ndcg@10" in entry for entry in metrics["log_history"])
    printed = capsys.readouterr().out
    assert "bytes per vector" in printed
    assert printed.count("VERDICT: ") == 1


def test_the_card_names_the_loss_and_holds_no_training_row(flags: list[str], tmp_path: Path) -> None:
    run.train(parse_recipe(flags))
    cards = list((tmp_path / "out").rglob("README.md"))
    assert len(cards) == 3
    for card in cards:
        text = card.read_text()
        assert "MatryoshkaContrastiveLoss" in text and "kusupati2022matryoshka" in text
        assert '"matryoshka_dims": [' in text
        assert not any(word in text for word in ("fjord", "lagoon"))


def test_the_untouched_model_is_scored_first(flags: list[str], tiny_model_path: Path) -> None:
    recipe = parse_recipe([*flags, "--rotate", "train", "--matryoshka_dims", "32", "2", "1"])
    prepared, before = run.prepare(recipe)
    assert before == prepared.evaluator.scores(SentenceTransformer(str(tiny_model_path), device="cpu"))
    assert before != prepared.evaluator.scores(prepared.model)


def test_a_rotation_for_retrieval_changes_queries_and_documents_alone(flags: list[str], tmp_path: Path) -> None:
    texts = [f"text {number} on topic {number * 7919 % 1013}" for number in range(8)]
    learned = ["--rotate", "train", "--rotate_steps", "5"]
    run.train(parse_recipe([*flags, *learned]))
    plain = SentenceTransformer(str(tmp_path / "out" / "model"), device="cpu")
    run.train(parse_recipe([*flags, *learned, "--rotate_retrieval", "train", "--resume", "never"]))
    routed = SentenceTransformer(str(tmp_path / "out" / "model"), device="cpu")
    assert np.array_equal(routed.encode(texts), plain.encode(texts))
    apart, full = routed.encode_query(texts), plain.encode(texts)
    assert not np.allclose(apart, full, atol=1e-3)
    assert np.allclose(apart @ routed.encode_document(texts).T, full @ full.T, atol=1e-5)
    again = [*flags, "--model_name_or_path", str(tmp_path / "out" / "model"), "--output_dir", str(tmp_path / "next")]
    with pytest.raises(UserError, match=r"has a Router, and nothing says which way .*; give --router_mapping"):
        run.train(parse_recipe(again))
    again += ["--router_mapping", json.dumps({"anchor": "query", "positive": "document"})]
    with pytest.raises(UserError, match="so some texts are embedded otherwise than others already"):
        run.prepare(parse_recipe([*again, "--rotate_retrieval", "train"]))
    before = {name: tensor for name, tensor in weights(tmp_path / "out" / "model").items() if "Router" in name}
    run.train(parse_recipe(again))
    after = weights(tmp_path / "next" / "model")
    assert before and not any(torch.equal(after[name], tensor) for name, tensor in before.items())
    with pytest.raises(UserError, match="rotate_retrieval_texts has 2 numbers for 1 sources of --rotate_retrieval"):
        many = ["--rotate_retrieval", "train", "--rotate_retrieval_texts", "8", "9", "--resume", "never"]
        run.prepare(parse_recipe([*flags, *many]))


@pytest.mark.parametrize(
    "extra",
    [
        [],
        ["--rotate", "train"],
        ["--lora", "--lora_dropout", "0.2"],
        ["--n_dims_per_step", "2", "--matryoshka_weights_end", "0", "1", "2", "--mini_batch_size", "3"],
        ["--objective", "neighbours", "--group_size", "2", "--group_among", "4"],
        ["--rotate_retrieval", "train", "--rotate_steps", "5", "--rotate_contrast", "1"],
    ],
    ids=["plain", "rotated", "lora", "drawn dims, moving weights, cached", "neighbours", "rotated for retrieval"],
)
def test_killed_and_resumed_ends_with_the_same_weights(
    flags: list[str], tmp_path: Path, extra: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run.train(parse_recipe([*flags, *extra]))
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
        run.train(parse_recipe([*flags, *extra]))
    assert not (tmp_path / "out" / "model").exists()
    half_written = tmp_path / "out" / "checkpoints" / "checkpoint-6"
    half_written.mkdir()
    (half_written / "model.safetensors").write_bytes(b"\0" * 8)
    run.train(parse_recipe([*flags, *extra]))
    resumed = weights(tmp_path / "out" / "model")
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_checkpoints_of_another_run_are_not_resumed(flags: list[str], tmp_path: Path) -> None:
    run.train(parse_recipe(flags))
    with pytest.raises(UserError, match=r"another run \(scale was 20\.0, is 30\.0\); use another --output_dir"):
        run.train(parse_recipe([*flags, "--scale", "30"]))
    run.train(parse_recipe([*flags, "--scale", "30", "--resume", "never"]))
    assert (tmp_path / "out" / "checkpoints.old-1" / "checkpoint-8").is_dir()
    assert yaml.safe_load((tmp_path / "out" / "run_config.yaml").read_text())["scale"] == 30.0


def test_a_non_finite_loss_stops_before_the_step_and_saves_nothing(
    flags: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build = run.build_loss

    def poisoned(*arguments: object) -> torch.nn.Module:
        loss = build(*arguments)
        plain, calls = loss.compute_loss_from_embeddings, iter(range(100))
        loss.compute_loss_from_embeddings = lambda *arguments: {
            name: value * (torch.nan if next(calls) == 15 else 1.0) for name, value in plain(*arguments).items()
        }
        return loss

    monkeypatch.setattr(run, "build_loss", poisoned)
    with pytest.raises(
        UserError, match="The loss is nan at step 6, so training stopped before it changed the weights"
    ):
        run.train(parse_recipe(flags))
    assert not (tmp_path / "out" / "model").exists()
    checkpoint = weights(tmp_path / "out" / "checkpoints" / "checkpoint-4")
    assert all(tensor.isfinite().all() for tensor in checkpoint.values())


def test_non_finite_weights_are_never_written(
    flags: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Poison(TrainerCallback):
        def on_step_end(
            self, args: object, state: object, control: object, model: torch.nn.Module, **_: object
        ) -> None:
            if state.global_step == 4:
                next(model.parameters()).data.fill_(torch.inf)

    class PoisonedTrainer(MatryoshkaTrainer):
        def __init__(self, **kwargs: object) -> None:
            super().__init__(callbacks=[Poison()], **kwargs)

    monkeypatch.setattr(run, "MatryoshkaTrainer", PoisonedTrainer)
    with pytest.raises(UserError, match=r"The weights '.*' are not finite at step 4, so they were not saved"):
        run.train(parse_recipe([*flags, "--eval_strategy", "no"]))
    assert not list((tmp_path / "out").rglob("*.safetensors"))


def test_lora_trains_adapters_and_saves_plain_weights(flags: list[str], tmp_path: Path, tiny_model_path: Path) -> None:
    run.train(parse_recipe([*flags, "--lora", "--learning_rate", "0.05"]))
    trained, base = weights(tmp_path / "out" / "model"), weights(tiny_model_path)
    assert trained.keys() == base.keys()
    changed = {name for name in base if not torch.equal(base[name], trained[name])}
    assert changed and all("dense" in name or "query" in name or "key" in name or "value" in name for name in changed)


def test_a_plain_bert_gets_mean_pooling(flags: list[str], tiny_bert_path: Path, tmp_path: Path) -> None:
    run.train(parse_recipe([*flags, "--model_name_or_path", str(tiny_bert_path), "--max_steps", "2"]))
    model = SentenceTransformer(str(tmp_path / "out" / "model"), device="cpu")
    assert model[1].pooling_mode in ("mean", ("mean",))


def test_several_sources_are_sets_of_their_own(flags: list[str], tmp_path: Path) -> None:
    other = tmp_path / "other.csv"
    other.write_text("query,answer\n" + "\n".join(f"{r['anchor']} x,{r['positive']} x" for r in rows(60, seed=1)))
    prepared, _ = run.prepare(parse_recipe([*flags, "--train_data", str(tmp_path / "pairs.jsonl"), str(other)]))
    assert set(prepared.train) == {"pairs", "other"}
    held_out = set(prepared.evaluator.reference.queries)
    assert len(held_out) == 8
    assert all(held_out.isdisjoint(dataset["anchor"]) for dataset in prepared.train.values())


def test_sts_data_is_scored_by_rank_correlation(flags: list[str], tmp_path: Path) -> None:
    sts = tmp_path / "sts.jsonl"
    lines = [{"sentence1": r["anchor"], "sentence2": r["positive"], "score": i % 5} for i, r in enumerate(rows(9, 3))]
    sts.write_text("\n".join(map(json.dumps, lines)))
    prepared, before = run.prepare(parse_recipe([*flags, "--eval_data", str(sts)]))
    assert prepared.evaluator.metric == "spearman_cosine"
    assert len(prepared.evaluator.gold) == 8 and len(prepared.train) == 96 and set(before) == {4, 16, 32}
    for row, sentence in (
        ({"sentence1": "a", "sentence2": "b", "score": "high"}, "holds .* score is a number"),
        ({"sentence1": "a", "sentence2": "cut \ud83d", "score": 1}, r"holds half a character \(a lone surrogate"),
    ):
        sts.write_text(json.dumps(row))
        with pytest.raises(UserError, match=rf"sts\.jsonl line 1 {sentence}"):
            run.prepare(parse_recipe([*flags, "--eval_data", str(sts)]))


def test_a_dry_run_names_the_columns_and_writes_nothing(
    flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run.main([*flags, "--dry_run"])
    text = capsys.readouterr().out
    assert "1. anchor" in text and "2. positive" in text and "loss_dim_16" in text
    assert "8 steps of 8 pairs" in text
    assert not (tmp_path / "out").exists()


def test_the_best_checkpoint_by_one_dim_can_be_kept(flags: list[str], tmp_path: Path) -> None:
    metric = "eval_dev-2_cosine_ndcg@10"
    best = ["--load_best_model_at_end", "--metric_for_best_model", metric, "--matryoshka_dims", "32", "2"]
    scores = run.train(parse_recipe([*flags, *best, "--learning_rate", "0.03"]))
    history = json.loads((tmp_path / "out" / "metrics.json").read_text())["log_history"]
    assert scores.after[2] == pytest.approx(max(entry[metric] for entry in history if metric in entry))


def test_the_longer_sequence_limit_is_saved(flags: list[str], tmp_path: Path) -> None:
    run.train(parse_recipe([*flags, "--max_seq_length", "8", "--max_steps", "1"]))
    assert SentenceTransformer(str(tmp_path / "out" / "model"), device="cpu").max_seq_length == 32


def test_the_saved_model_reads_as_far_into_a_text_as_asked_for(flags: list[str], tmp_path: Path) -> None:
    run.train(parse_recipe([*flags, "--max_seq_length", "8", "--saved_max_seq_length", "64", "--max_steps", "1"]))
    model = SentenceTransformer(str(tmp_path / "out" / "model"), device="cpu")
    assert model.max_seq_length == 64
    forty_letters = "a " * 40
    whole, other_end = model.encode([forty_letters + "lake", forty_letters + "river"])
    assert abs(whole - other_end).max() > 1e-3


def drop_positive(path: Path) -> None:
    path.write_text("\n".join(json.dumps({"anchor": row["anchor"]}) for row in rows(96)))


def swap_columns(path: Path) -> None:
    path.write_text("\n".join(json.dumps({"positive": r["positive"], "anchor": r["anchor"]}) for r in rows(96)))


def break_line(path: Path) -> None:
    path.write_text(path.read_text() + '\n{"anchor": "x"')


def empty_cell(path: Path) -> None:
    path.write_text(path.read_text() + '\n{"anchor": "", "positive": "x"}\n{"anchor": 3, "positive": "x"}')


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (drop_positive, "has the columns 'anchor'; contrastive training needs at least two text columns"),
        (swap_columns, "'positive', 'anchor'"),
        (lambda path: path.write_text(""), "has no rows"),
        (break_line, r"pairs\.jsonl.*line 97"),
        (empty_cell, r"2 of 98 rows without text in every column"),
        (lambda path: path.write_text("\n".join(path.read_text().splitlines()[:30])), None),
    ],
)
def test_bad_data_stops_the_run_before_anything_is_written(
    flags: list[str], pairs: Path, tmp_path: Path, spoil: Callable[[Path], None], sentence: str | None
) -> None:
    spoil(pairs)
    extra = ["--per_device_train_batch_size", "64"] if sentence is None else []
    with pytest.raises(UserError, match=sentence or "rows, less than one batch of 64") as caught:
        run.train(parse_recipe([*flags, *extra]))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_bad_rows_can_be_dropped(flags: list[str], pairs: Path, caplog: pytest.LogCaptureFixture) -> None:
    empty_cell(pairs)
    prepared, _ = run.prepare(parse_recipe([*flags, "--bad_rows", "drop"]))
    assert len(prepared.train) == 96 - 8
    assert "dropped 2 of 98 rows" in caplog.text


@pytest.mark.parametrize("dims", ["0", "-4", "33", "16 16"])
def test_bad_dims_stop_the_run(flags: list[str], dims: str) -> None:
    with pytest.raises(UserError, match="matryoshka_dims"):
        run.train(parse_recipe([*flags, "--matryoshka_dims", *dims.split()]))


def test_a_truncated_model_is_refused(flags: list[str], tiny_model_path: Path, tmp_path: Path) -> None:
    poisoned = tmp_path / "poisoned"
    SentenceTransformer(str(tiny_model_path), truncate_dim=8, device="cpu").save_pretrained(str(poisoned))
    with pytest.raises(UserError, match="was saved with truncate_dim=8, so its full width is hidden"):
        run.train(parse_recipe([*flags, "--model_name_or_path", str(poisoned)]))


@pytest.mark.parametrize(
    "extra",
    [
        [],
        ["--gather_across_devices", "--mini_batch_size", "3", "--exclude_duplicates", "--n_dims_per_step", "2"],
        ["--objective", "neighbours", "--group_size", "2", "--group_among", "4"],
    ],
    ids=["apart", "gathered, cached, drawn dims", "neighbours"],
)
def test_two_processes_train_and_save_one_model(flags: list[str], tmp_path: Path, extra: list[str]) -> None:
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2"]
    done = subprocess.run(
        [*launch, str(SCRIPT), *flags, *extra, "--max_steps", "4"],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("VERDICT: ") == 1
    model = SentenceTransformer(str(tmp_path / "out" / "model"), truncate_dim=16, device="cpu")
    assert model.encode("amber").shape == (16,)
