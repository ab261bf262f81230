"""Whole MLM runs on a tiny BERT: what they leave behind, how they resume, what they refuse."""

from __future__ import annotations

import json
import os
import runpy
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer
from transformers import AutoTokenizer, BertForMaskedLM, TrainerCallback

from matryoshka_st.errors import UserError
from matryoshka_st.export import declared_dims
from matryoshka_st.mlm import run
from matryoshka_st.mlm.prepare import prepare
from matryoshka_st.mlm.recipe import as_yaml, parse_recipe
from matryoshka_st.mlm.texts import load_texts, tokenize
from matryoshka_st.training.trainer import GuardedTrainer

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "train_scripts" / "pretrain_mlm.py"
RECIPES = ROOT / "train_scripts" / "recipes" / "mlm"
WORDS = ["amber", "birch", "cedar", "delta", "ember", "fjord", "grove", "haven"]


def lines(count: int) -> list[str]:
    """Texts whose words follow one another in a fixed cycle, so that a masked one can be guessed."""
    return [" ".join(WORDS[(i + j) % len(WORDS)] for j in range(3)) + f" {i}" for i in range(count)]


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    path = tmp_path / "texts.txt"
    path.write_text("\n\n".join(lines(96)))
    return path


def as_flags(**values: object) -> list[str]:
    return [word for key, value in values.items() for word in (f"--{key}", *str(value).split())]


@pytest.fixture
def common(texts: Path, tmp_path: Path) -> list[str]:
    """A run of 8 steps, of whatever model."""
    return as_flags(
        max_seq_length=32, train_data=texts, output_dir=tmp_path / "out", matryoshka_dims="32 16 4",
        per_device_train_batch_size=8, max_steps=8, eval_size=8, save_steps=4, eval_steps=4, logging_steps=2,
        disable_tqdm=True, use_cpu=True,
    )  # fmt: skip


@pytest.fixture
def flags(common: list[str], tiny_bert_path: Path) -> list[str]:
    """The same with a new BERT of width 32; add or repeat flags to change it."""
    return common + as_flags(tokenizer=tiny_bert_path, hidden_size=32, num_hidden_layers=2, num_attention_heads=2)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def test_a_run_leaves_a_plain_bert_that_declares_its_dims(
    flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scores = run.train(parse_recipe([*flags, "--eval_dims", "2"]))
    out = tmp_path / "out"
    assert sorted(path.name for path in out.iterdir()) == ["checkpoints", "metrics.json", "model", "run_config.yaml"]
    bert = BertForMaskedLM.from_pretrained(out / "model")
    assert bert.config.architectures == ["BertForMaskedLM"]
    assert declared_dims(out / "model") == (4, 16, 32)
    embedder = SentenceTransformer(str(out / "model"), truncate_dim=4, device="cpu")
    tokens = AutoTokenizer.from_pretrained(out / "model")("amber birch", return_tensors="pt")
    pooled = bert.bert(**tokens)[0].mean(dim=1)[0, :4]
    torch.testing.assert_close(torch.from_numpy(embedder.encode("amber birch")), pooled, rtol=1e-4, atol=1e-5)
    assert embedder.max_seq_length == 32

    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["matryoshka_dims"] == [4, 16, 32]
    assert metrics["accuracy"] == {str(dim): value for dim, value in scores.accuracy.items()}
    assert set(metrics["loss"]) == {"2", "4", "16", "32"}
    assert any("eval_accuracy_16" in entry for entry in metrics["log_history"])
    printed = capsys.readouterr().out
    rows = [line.split("│")[1:-1] for line in printed.splitlines() if line.startswith("│")]
    assert [(row[0].strip(), row[-1].strip()) for row in rows] == [
        ("32", "yes"), ("16", "yes"), ("4", "yes"), ("2", "cut"),
    ]  # fmt: skip
    assert f"{100 * scores.accuracy[16]:.2f}" in rows[1][1]


def test_the_scores_are_those_of_the_saved_model(flags: list[str], tmp_path: Path) -> None:
    recipe = parse_recipe(flags)
    scores = run.train(recipe)
    prepared = prepare(recipe)
    bert = BertForMaskedLM.from_pretrained(tmp_path / "out" / "model")
    batch = prepared.masking(list(prepared.held_out))
    chosen = batch["labels"] != -100
    with torch.no_grad():
        logits = bert(batch["input_ids"], batch["attention_mask"]).logits[chosen]
    words = batch["labels"][chosen]
    assert scores.masked_tokens == len(words)
    assert scores.accuracy[32] == pytest.approx((logits.argmax(dim=1) == words).float().mean().item(), abs=1e-6)
    assert scores.loss[32] == pytest.approx(torch.nn.functional.cross_entropy(logits, words).item(), rel=1e-5)
    assert scores.most_frequent == pytest.approx(words.bincount().max().item() / len(words))


def test_training_lowers_the_loss_of_every_trained_dim(flags: list[str], tmp_path: Path) -> None:
    longer = [*flags, "--learning_rate", "5e-3", "--dropout", "0", "--eval_strategy", "no"]
    short = run.train(parse_recipe([*longer, "--max_steps", "1"]))
    scores = run.train(parse_recipe([*longer, "--max_steps", "60", "--output_dir", str(tmp_path / "longer")]))
    assert all(scores.loss[dim] < 0.8 * short.loss[dim] for dim in (4, 16, 32))


def test_the_full_width_alone_is_the_baseline_and_is_cut(flags: list[str], tmp_path: Path) -> None:
    scores = run.train(parse_recipe([*flags, "--matryoshka_dims", "32", "--eval_dims", "16", "4"]))
    assert set(scores.loss) == {4, 16, 32}
    assert declared_dims(tmp_path / "out" / "model") == (32,)


def test_a_bert_can_be_gone_on_from(common: list[str], tiny_bert_path: Path, tmp_path: Path) -> None:
    extra = as_flags(model_name_or_path=tiny_bert_path, max_steps=1, learning_rate=1e-5)
    run.train(parse_recipe([*common, *extra]))
    before, after = load_file(tiny_bert_path / "model.safetensors"), weights(tmp_path / "out" / "model")
    kept = [name for name in before if not name.startswith("pooler")]
    assert len(kept) > 30
    for name in kept:
        torch.testing.assert_close(after[f"bert.{name}"], before[name], atol=1e-4, rtol=0)


class Killed(TrainerCallback):
    def on_step_end(self, args: object, state: object, control: object, **_: object) -> None:
        if state.global_step == 6:
            raise KeyboardInterrupt


class DoomedTrainer(GuardedTrainer):
    def __init__(self, **kwargs: object) -> None:
        super().__init__(callbacks=[Killed()], **kwargs)


@pytest.mark.parametrize(
    "extra",
    [["--dropout", "0.3"], ["--gradient_accumulation_steps", "2", "--dropout", "0"]],
    ids=["dropout", "accumulated"],
)
def test_interrupted_and_resumed_ends_with_the_same_weights(
    flags: list[str], tmp_path: Path, extra: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run.train(parse_recipe([*flags, *extra]))
    expected = weights(tmp_path / "out" / "model")
    shutil.rmtree(tmp_path / "out")
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(run, "GuardedTrainer", DoomedTrainer)
        run.train(parse_recipe([*flags, *extra]))
    assert not (tmp_path / "out" / "model").exists()
    half_written = tmp_path / "out" / "checkpoints" / "checkpoint-6"
    half_written.mkdir()
    (half_written / "model.safetensors").write_bytes(b"\0" * 8)
    assert run.train(parse_recipe([*flags, *extra])) == whole
    resumed = weights(tmp_path / "out" / "model")
    assert expected.keys() == resumed.keys()
    assert all(torch.equal(expected[name], resumed[name]) for name in expected)


@pytest.mark.slow
def test_sigkilled_and_started_again_ends_with_the_same_weights(flags: list[str], tmp_path: Path) -> None:
    longer = [*flags, *as_flags(max_steps=200, save_steps=20, eval_strategy="no", dropout=0.1)]

    def start(output: Path) -> subprocess.Popen[str]:
        command = [sys.executable, str(SCRIPT), *longer, "--output_dir", str(output)]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    whole, killed = tmp_path / "whole", tmp_path / "killed"
    with start(whole) as process:
        assert process.wait() == 0, process.stdout and process.stdout.read()
    for checkpoint in (40, 100):
        with start(killed) as process:
            while not (killed / "checkpoints" / f"checkpoint-{checkpoint}").exists():
                assert process.poll() is None, process.stdout and process.stdout.read()
                time.sleep(0.002)
            os.kill(process.pid, signal.SIGKILL)
        assert process.returncode == -signal.SIGKILL
        assert not (killed / "model").exists()
    with start(killed) as process:
        printed = process.communicate()[0]
    assert process.returncode == 0, printed
    assert "Going on from" in printed
    expected, resumed = weights(whole / "model"), weights(killed / "model")
    assert expected.keys() == resumed.keys()
    assert all(torch.equal(expected[name], resumed[name]) for name in expected)


def test_checkpoints_of_another_run_are_not_resumed(flags: list[str], tmp_path: Path) -> None:
    run.train(parse_recipe(flags))
    with pytest.raises(UserError, match=r"another run \(mlm_probability was 0\.15, is 0\.3\)"):
        run.train(parse_recipe([*flags, "--mlm_probability", "0.3"]))


def test_a_non_finite_loss_stops_and_saves_nothing(
    flags: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build = run.prepare

    def poisoned(*arguments: object) -> object:
        prepared = build(*arguments)
        prepared.model.bert.embeddings.word_embeddings.weight.data[7] = torch.nan
        return prepared

    monkeypatch.setattr(run, "prepare", poisoned)
    with pytest.raises(
        UserError, match="The loss is nan at step 1, so training stopped before it changed the weights"
    ):
        run.train(parse_recipe(flags))
    assert not list((tmp_path / "out").rglob("*.safetensors"))


def test_a_dry_run_says_what_would_happen_and_writes_nothing(
    flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run.main([*flags, "--dry_run"])
    text = capsys.readouterr().out
    assert "88 training and 8 held-out examples" in text
    assert "width 32, 141 words; dims 4, 16, 32, scored 4, 16, 32" in text
    assert "8 steps of 8 examples; loss on two examples: " in text
    assert not (tmp_path / "out").exists()


def data(*argv: object) -> tuple[Dataset, Dataset]:
    return load_texts(parse_recipe(as_flags(train_data=argv[0]) + [str(word) for word in argv[1:]]).data, seed=13)


def test_no_held_out_text_is_trained_on(tmp_path: Path) -> None:
    path = tmp_path / "texts.txt"
    path.write_text("\n".join([*lines(50), *(line.upper() + "  " for line in lines(50))]))
    train, held_out = data(path, "--eval_size", "4")
    assert len(held_out) == 4
    assert len(train) == 92
    assert {text.lower() for text in train["text"]}.isdisjoint(text.lower() for text in held_out["text"])


def test_named_evaluation_texts_leave_the_training_texts(texts: Path, tmp_path: Path) -> None:
    (tmp_path / "dev.txt").write_text("\n".join(lines(3)))
    train, held_out = data(texts, "--eval_data", tmp_path / "dev.txt", "--max_train_texts", 50)
    assert held_out["text"][:] == lines(3)
    assert len(train) == 50 and set(train["text"]) <= set(lines(96)[3:])


def test_columns_are_joined_and_the_docstrings_come_whole(tmp_path: Path) -> None:
    rows = {"title": [f"title {i}" for i in range(20)], "body": lines(20), "year": list(range(20))}
    Dataset.from_dict(rows).to_parquet(tmp_path / "papers.parquet")
    train, _ = data(tmp_path / "papers.parquet", "--text_columns", "title", "body")
    assert train.column_names == ["text"]
    assert train["text"][-1] in {f"title {i} {line}" for i, line in enumerate(lines(20))}
    (tmp_path / "one.jsonl").write_text("\n".join(json.dumps({"passage": line}) for line in lines(20)))
    assert set(data(tmp_path / "one.jsonl")[0]["text"]) <= set(lines(20))


def test_long_texts_become_several_examples_and_lose_nothing(tiny_bert_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_bert_path)
    long = " ".join("abcdefghij" for _ in range(7))
    pieces = tokenize(Dataset.from_dict({"text": [long, "ab"]}), tokenizer, 16)
    assert max(map(len, pieces["input_ids"])) == 16
    inner = [token for ids in pieces["input_ids"] for token in ids[1:-1]]
    assert inner == [
        token for text in (long, "ab") for token in tokenizer(text, add_special_tokens=False)["input_ids"]
    ]


@pytest.mark.parametrize(
    ("extra", "sentence"),
    [
        (["--matryoshka_dims", "33"], "matryoshka_dims holds 33, above the model's width of 32"),
        (["--matryoshka_dims", "0"], "matryoshka_dims holds 0"),
        (["--matryoshka_weights", "1"], "matryoshka_weights has 1 values for 3 dims"),
        (["--eval_dims", "64"], "holds 64, above the model's width of 32"),
        (["--hidden_size", "30", "--num_attention_heads", "4"], "hidden_size is 30, which 4 attention heads do not"),
        (["--hidden_size", "0"], "hidden_size is 0; give 1 or more"),
        (["--max_seq_length", "2"], "max_seq_length is 2; give 4 or more"),
        (["--dropout", "1"], "dropout is 1.0; give a share from 0 to below 1"),
        (["--mlm_probability", "0"], "mlm_probability is 0.0; give a share between 0 and 1"),
        (["--eval_size", "0"], "eval_size is 0; give 1 or more"),
        (
            ["--model_name_or_path", "bundled"],
            "--hidden_size shapes a new BERT, but --model_name_or_path goes on from",
        ),
        (["--train_data", "nowhere.txt"], r"nowhere\.txt cannot be read \(No such file or directory\)"),
        (["--train_data", "nowhere.parquet"], r"'nowhere\.parquet' does not exist"),
        (["--tokenizer", "./nowhere"], r"'\./nowhere' does not exist"),
        (["--per_device_train_batch_size", "0"], "per_device_train_batch_size is 0; give 1 or more"),
        (["--per_device_train_batch_size", "500"], "88 rows, less than one batch of 500"),
        (["--learning_rat", "1"], "Unknown flag --learning_rat; did you mean '--learning_rate'"),
        (["--resume", "nowhere"], "Checkpoint nowhere does not exist"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_flags_stop_the_run_before_anything_is_written(
    flags: list[str], tmp_path: Path, extra: list[str], sentence: str
) -> None:
    with pytest.raises(UserError, match=sentence) as caught:
        run.main([*flags, *extra])
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("a.txt", b"", r"a\.txt holds no text; give one text a line"),
        ("a.txt", b"fine\n\n\xff\xfe\n", r"a\.txt, line 3 is not UTF-8 text"),
        ("a.txt", b"too\nfew\n", "2 training texts are too few to hold any out"),
        ("a.jsonl", b'{"a": "x", "b": "y"}', r"a\.jsonl has the columns 'a', 'b'; name those that hold text"),
        ("a.jsonl", b'{"text": "x"}\n{"text": 3}', r"a\.jsonl has 1 of 2 rows without text .*at line 2"),
        ("a.pdf", b"%PDF", r"a\.pdf ends in '\.pdf', which cannot be read"),
    ],
)
def test_bad_texts_stop_the_run(flags: list[str], tmp_path: Path, name: str, content: bytes, sentence: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=sentence) as caught:
        run.main([*flags, "--train_data", str(tmp_path / name)])
    assert "\n" not in str(caught.value)


def other_kind(folder: Path) -> None:
    path = folder / "config.json"
    path.write_text(path.read_text().replace('"model_type": "bert"', '"model_type": "distilbert"'))


def more_words(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens("lagoon")
    tokenizer.save_pretrained(folder)


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (other_kind, "is a distilbert model; masked-language-model training takes a BERT encoder"),
        (more_words, "has 142 words and the model 141; give a folder whose tokenizer and weights belong together"),
        (lambda folder: (folder / "config.json").write_text("{"), "could not be loaded"),
        (lambda folder: (folder / "model.safetensors").unlink(), "could not be loaded"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"cut short"), "could not be loaded"),
    ],
    ids=["no BERT", "another's tokenizer", "config", "no weights", "half the weights"],
)
def test_models_that_will_not_do(
    common: list[str], tiny_bert_path: Path, tmp_path: Path, spoil: Callable[[Path], None], sentence: str
) -> None:
    shutil.copytree(tiny_bert_path, tmp_path / "bert")
    spoil(tmp_path / "bert")
    with pytest.raises(UserError, match=sentence) as caught:
        run.main([*common, "--model_name_or_path", str(tmp_path / "bert")])
    assert "\n" not in str(caught.value)


def test_too_long_for_the_model(common: list[str], tiny_bert_path: Path) -> None:
    extra = as_flags(model_name_or_path=tiny_bert_path, max_seq_length=65)
    with pytest.raises(UserError, match="max_seq_length is 65, but the model has 64 positions; give 64 or less"):
        run.main([*common, *extra])


def test_a_folder_of_something_else_is_not_replaced(flags: list[str], tmp_path: Path) -> None:
    (tmp_path / "out" / "model").mkdir(parents=True)
    (tmp_path / "out" / "model" / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match="is not empty and holds no model to replace"):
        run.main(flags)


def test_the_script_exits_with_2_and_one_sentence(
    flags: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *flags, "--mlm_probability", "2"])
    with pytest.raises(SystemExit) as caught:
        runpy.run_path(str(SCRIPT), run_name="__main__")
    assert caught.value.code == 2
    printed = capsys.readouterr()
    assert printed.err == "error: mlm_probability is 2.0; give a share between 0 and 1, such as 0.15.\n"


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_recipes_read_back_to_the_same_run(path: Path, tmp_path: Path) -> None:
    recipe = parse_recipe(["--config", str(path)])
    assert recipe.matryoshka.matryoshka_dims == sorted(recipe.matryoshka.matryoshka_dims or [], reverse=True)
    written = tmp_path / "run_config.yaml"
    written.write_text(json.dumps(as_yaml(recipe)))
    assert as_yaml(parse_recipe(["--config", str(written)])) == as_yaml(recipe)


def test_help_shows_our_flags_before_the_trainer_s(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parse_recipe(["--help"])
    text = capsys.readouterr().out
    assert caught.value.code == 0
    assert text.index("--matryoshka_dims") < text.index("--learning_rate ")
    assert "go on from a BERT" in text


@pytest.mark.slow
def test_two_processes_train_and_save_one_model(flags: list[str], tmp_path: Path) -> None:
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2"]
    done = subprocess.run(
        [*launch, str(SCRIPT), *flags, "--max_steps", "4"],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Model: ") == 1
    assert declared_dims(tmp_path / "out" / "model") == (4, 16, 32)
