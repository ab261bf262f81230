"""The command line: what commands there are, and exit code 2 with one sentence for bad input."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from itertools import combinations
from pathlib import Path

import pytest
import torch
from sentence_transformers import SentenceTransformer

from matryoshka_st import cli
from matryoshka_st.export import declared_dims, save_model

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run ``matryoshka-st`` in this process; returns exit code, stdout and stderr."""

    def command(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["matryoshka-st", *map(str, words)])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        printed = capsys.readouterr()
        return caught.value.code or 0, printed.out, printed.err

    return command


def test_the_commands(run: Run) -> None:
    code, text, _ = run("--help")
    assert code == 0
    commands = [line.split()[0] for line in text.split("Commands:")[1].splitlines() if line.strip()]
    assert commands == ["quickstart", "train", "check", "eval", "compare", "report", "search", "rotate", "verify"]


def test_without_a_command_all_are_shown(run: Run) -> None:
    code, text, errors = run()
    assert code == 2 and not text
    assert "Commands:" in errors and "error:" not in errors


@pytest.mark.parametrize(
    "command", ["quickstart", "train", "check", "eval", "compare", "report", "search", "rotate", "verify"]
)
def test_each_command_explains_itself(run: Run, command: str) -> None:
    code, text, _ = run(command, "--help")
    assert code == 0
    assert "usage" in text.lower()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["train", "--matryoshka_dims", "0"], "matryoshka_dims holds 0; each dim is a whole number from 1 to 384."),
        (["train", "--matryoshka_dims", "385"], "matryoshka_dims holds 385, above the model's width of 384;"),
        (["train", "--matryoshka_dims", "1.5"], "--matryoshka_dims got '1.5', which is not an integer;"),
        (["train", "--learning-rat", "1"], "Unknown flag --learning_rat; did you mean '--learning_rate'?"),
        (["train", "--model_name_or_path", "./nowhere"], "Model folder './nowhere' does not exist;"),
        (["train", "--train_data", "nowhere.jsonl"], "'nowhere.jsonl' does not exist;"),
        (["check", "--per_device_train_batch_size", "0"], "per_device_train_batch_size is 0; give 1 or more."),
        (["check", "--config", "nowhere.yaml"], "Recipe nowhere.yaml cannot be read"),
        (["eval", "bundled"], "No task was named; give --tasks, --benchmark or --task-types."),
        (["eval", "bundled", "--task", "STS12"], "Unknown argument '--task'; did you mean '--tasks'?"),
        (["eval", "bundled", "--benchmark", "MTEB(eng, v9)"], "mteb has no benchmark 'MTEB(eng, v9)'; did you mean"),
        (["eval", "bundled", "--task-types", "Stss"], "mteb has no text task of type 'Stss'"),
        (
            ["eval", "bundled", "--task-types", "STS", "--languages", "en"],
            "The languages are en (Invalid language code: en); give three-letter codes (ISO 639-3) such as eng.",
        ),
        (["eval", "bundled", "--tasks", "STS12", "--devices", "cuda:99"], "Device 'cuda:99' cannot be used here"),
        (["eval", "bundled", "--tasks", "STS12", "--precisions", "int4"], "There is no precision 'int4'"),
        (["eval", "bundled", "--tasks", "STS12", "--prompts", "query"], "--prompts is not JSON"),
        (["eval", "bundled", "--tasks", "STS12", "--prompts", '{"query": 1}'], "--prompts gives 'query' a value"),
        (["eval", "bundled", "--tasks", "STS12", "--dim", "8"], "Unknown argument '--dim'; did you mean '--dims'?"),
        (["eval", "bundled", "--tasks", "STS12", "--dims", "a"], "--dims got 'a', which is not an integer;"),
        (["eval", "bundled", "--tasks", "STS12", "--dims", "8", "8"], "matryoshka_dims names 8 more than once;"),
        (["compare", "ada-002"], "compare needs two models, --claim or --list;"),
        (["compare", "ada-02", "mxbai"], "There is no model 'ada-02'; did you mean 'ada-002'?"),
        (["compare", "a", "b", "--results", "nowhere"], "The results folder 'nowhere' does not exist;"),
        (["report"], "the following arguments are required: DIR;"),
        (["report", "nowhere"], "The results folder 'nowhere' does not exist;"),
        (["report", "nowhere", "--titel", "x"], "Unknown argument '--titel'; did you mean '--title'?"),
        (["rotate", "bundled", "--texts", "nowhere.txt", "--output", "x"], "nowhere.txt cannot be read as text"),
        (
            ["rotate", "bundled", "--texts", "docstrings", "--output", "x", "--contrast", "1"],
            "Pairs (contrast) and examples (like) are for a rotation that is learned, and its steps are 0; give 600",
        ),
        (["search", "quer"], "search has no command 'quer'; did you mean 'query'?; use index or query."),
        (["search", "index", "nowhere", "--index", "x"], "'nowhere' does not exist; give a file,"),
        (["search", "query", "nowhere", "x"], "There is no text index in nowhere"),
        (["verify", "nowhere"], "nowhere"),
        (["serch"], "No such command 'serch'; did you mean 'search'?; see --help."),
        (["rotate", "bundled", "--texts", "x"], "Missing option '--output'; see --help."),
        (["quickstart", "--train-rows", "x"], "Invalid value for '--train-rows': "),
        (["quickstart", "--test-queries", "3"], "test_queries is 3; give 10 or more."),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input_is_one_sentence_and_code_2(
    run: Run, words: list[str], sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, errors = run(*words)
    lines = [line for line in errors.splitlines() if line.startswith("error: ")]
    assert code == 2
    assert len(lines) == 1 and sentence in lines[0]
    assert "Usage:" not in errors
    assert not list(tmp_path.iterdir())


def test_rotate_then_verify(run: Run, tiny_model_path: Path, tmp_path: Path) -> None:
    texts, more, output = tmp_path / "texts.txt", tmp_path / "more.txt", tmp_path / "rotated"
    texts.write_text("\n".join(f"text number {i} of many" for i in range(44)))
    more.write_text("\n".join(f"another text, {i}" for i in range(20)))
    code, text, _ = run("rotate", tiny_model_path, "--texts", texts, "--texts", more, "--output", output)
    assert code == 0
    assert f"Rotated model: {output}" in text
    assert declared_dims(output) == (4, 8, 16, 32)
    code, text, _ = run("verify", output)
    assert code == 0
    assert "FAIL" not in text and "ok   dim 8" in text


def test_rotate_takes_pairs_for_a_contrast_and_examples(run: Run, tiny_model_path: Path, tmp_path: Path) -> None:
    pairs, output = tmp_path / "pairs.csv", tmp_path / "rotated"
    pairs.write_text("anchor,positive\n" + "\n".join(f"question {i},its reply {i * 7919 % 101}" for i in range(40)))
    words = ("rotate", tiny_model_path, "--texts", pairs, "--output", output, "--steps", "10")
    built = []
    for extra in ([], ["--contrast", "1"], ["--like", "my own kind", "--like", "question 3"]):
        code, _, _ = run(*words, *extra)
        assert code == 0
        built.append(SentenceTransformer(str(output), device="cpu")[2].linear.weight.detach())
    for one, other in combinations(built, 2):
        assert not torch.allclose(one, other, atol=1e-3)
    code, _, errors = run(*words, "--contrast", "-1")
    assert code == 2
    assert "contrast" in errors


def test_rotate_for_retrieval_keeps_the_dims_that_the_model_declares(
    run: Run, tiny_model: SentenceTransformer, tmp_path: Path
) -> None:
    folder, texts = save_model(tiny_model, tmp_path / "model", dims=[5, 16]), tmp_path / "texts.txt"
    texts.write_text("\n".join(f"text number {i} of many" for i in range(44)))
    words = ("rotate", folder, "--texts", texts, "--retrieval", "--output")
    code, _, _ = run(*words, tmp_path / "rotated")
    assert code == 0
    assert declared_dims(tmp_path / "rotated") == (5, 16, 32)
    code, text, _ = run("verify", tmp_path / "rotated")
    assert code == 0
    assert "Transformer > Pooling > Router" in text
    code, _, errors = run("rotate", tmp_path / "rotated", *words[2:], tmp_path / "again")
    assert code == 2
    assert "The model has a Router" in errors
    assert not (tmp_path / "again").exists()


def test_verify_fails_on_a_poisoned_model(run: Run, tiny_model: SentenceTransformer, tmp_path: Path) -> None:
    folder = save_model(tiny_model, tmp_path / "model", dims=[8, 32])
    config = folder / "config_sentence_transformers.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "truncate_dim": 8}))
    code, text, _ = run("verify", folder)
    assert code == 1
    assert "FAIL truncate_dim" in text
