"""The command that scores a model: ``eval/run_mteb.py`` as a script, and the function it shares with the CLI."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from matryoshka_st.errors import UserError
from matryoshka_st.evaluation.bank import Bank
from matryoshka_st.evaluation.command import main
from matryoshka_st.evaluation.harness import run_eval

SCRIPT = Path(__file__).parents[2] / "eval" / "run_mteb.py"

# The untrained all-MiniLM-L6-v2, cut and normalised; its full width equals the published scores to 0.01.
FULL = {
    "STS12": 72.37, "STS13": 80.60, "STS14": 75.60, "STS15": 85.39, "STS16": 78.99, "STSBenchmark": 82.03,
    "SICK-R": 77.58,
}  # fmt: skip
AT_64 = {
    "STS12": 69.44, "STS13": 78.19, "STS14": 73.07, "STS15": 82.50, "STS16": 75.72, "STSBenchmark": 79.21,
    "SICK-R": 75.43,
}  # fmt: skip


def test_bad_input_to_the_script_is_one_line_and_code_2() -> None:
    script = [sys.executable, str(SCRIPT), "./nowhere", "--tasks", "STS12"]
    done = subprocess.run(script, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: Model folder './nowhere' does not exist;")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--tasks", "STSBenchmrk"], r"mteb has no task 'STSBenchmrk'; did you mean 'STSBenchmark'\?"),
        (["--tasks", "STS12", "--dims", "33"], "matryoshka_dims holds 33, above the model's width of 32"),
        (["--tasks", "STS12", "--dataset-mirror", "/nowhere"], "needs the folder '/nowhere/mteb/sts12-sts'"),
    ],
)
def test_bad_input_is_one_sentence(tiny_model_path: Path, arguments: list[str], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence) as caught:
        main([str(tiny_model_path), *arguments])
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("no_network")
def test_a_table_ends_the_run(
    tiny_model_path: Path, shared_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mirror = ["--dataset-mirror", str(shared_data / "mirror")]
    tasks = ["--tasks", "STSBenchmark", "--dims", "32", "8"]
    main([str(tiny_model_path), *tasks, *mirror, "--output", str(tmp_path), "--batch-size", "64"])
    assert "STSBenchmark" in capsys.readouterr().out
    assert len(list(tmp_path.rglob("STSBenchmark.json"))) == 4


@pytest.mark.usefixtures("bundled")
@pytest.mark.parametrize(
    "tasks", [["STSBenchmark"], pytest.param(list(FULL), marks=pytest.mark.slow)], ids=["STSBenchmark", "STS-7"]
)
def test_minilm_scores_are_the_known_ones(
    tasks: list[str], shared_data: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    texts: list[str] = []
    forward = Bank._forward

    def record(self: Bank, batch: list[str], **kwargs: Any) -> Any:
        texts.extend(f"{kwargs['task_metadata'].name}: {text}" for text in batch)
        return forward(self, batch, **kwargs)

    monkeypatch.setattr(Bank, "_forward", record)
    scores = run_eval("bundled", tasks, dims=[384, 64], mirror=shared_data / "mirror", output=tmp_path, batch_size=64)
    measured = {(score.task, score.dim): 100 * score.score for score in scores}
    expected = {(task, dim): row[task] for dim, row in ((384, FULL), (64, AT_64)) for task in tasks}
    assert measured == pytest.approx(expected, abs=0.02)
    assert len(texts) == len(set(texts))
