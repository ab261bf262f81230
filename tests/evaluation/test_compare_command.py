"""``matryoshka-st compare``: the published claim, our own results, and what it refuses."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import pytest
from mteb.abstasks.abstask import AbsTask
from rich.console import Console
from sentence_transformers import SentenceTransformer

from matryoshka_st.errors import UserError
from matryoshka_st.evaluation.compare_command import main
from matryoshka_st.evaluation.harness import evaluate_dims

CLAIM = (
    "text-embedding-3-large at 256 of its 3072 dims beats text-embedding-ada-002 at its full 1536 dims on the mean of "
    "the 56 tasks of MTEB(eng, v1): 62.00 against 60.99 (+1.01), with 34 of 56 tasks won."
)


def printed(*words: object) -> list[str]:
    console = Console(width=100)
    with console.capture() as capture:
        main([str(word) for word in words], console=console)
    return capture.get().splitlines()


def rows(lines: list[str]) -> dict[str, list[str]]:
    cells = [[cell.strip() for cell in line.strip("│").split("│")] for line in lines if line.startswith("│")]
    return {row[0]: row[1:] for row in cells}


@pytest.fixture
def results(tiny_model: SentenceTransformer, small_task: Callable[[str], AbsTask], tmp_path: Path) -> Path:
    """The tiny model at 32 and 4 dims on a retrieval and an STS task."""
    folder = tmp_path / "results"
    tasks = [small_task("Retrieval"), small_task("STS")]
    evaluate_dims(tiny_model, tasks, [32, 4], name="local/tiny", output=folder, progress=False)
    return folder


@pytest.mark.usefixtures("no_network")
def test_the_claim_is_reproduced_from_its_tasks(tmp_path: Path) -> None:
    lines = printed(
        "--claim", "openai-256", "--csv", tmp_path / "claim.csv", "--markdown", tmp_path / "new" / "claim.md"
    )
    assert lines[-1] == CLAIM
    assert rows(lines)["overall"] == ["56", "62.00", "60.99", "+1.01", "34-0-22"]
    assert rows(lines)["Retrieval"] == ["15", "51.66", "49.25", "+2.41", "13-0-2"]
    assert any(line.startswith("Shared tasks (56): AmazonCounterfactualClassification, ") for line in lines)
    assert any(line.startswith("Training data: ") for line in lines)
    with (tmp_path / "claim.csv").open() as file:
        tasks = list(csv.DictReader(file))
    assert len(tasks) == 56
    assert sum(float(task["left_score"]) - float(task["right_score"]) for task in tasks) / 56 == pytest.approx(
        1.01, abs=5e-3
    )
    assert all(task["left_source"].startswith("results@") for task in tasks)
    text = (tmp_path / "new" / "claim.md").read_text()
    assert CLAIM in text
    assert "| Retrieval | 15 | 51.66 | 49.25 | +2.41 | 13-0-2 |" in text
    assert "| ArguAna | 55.60 | 57.44 | -1.84 |" in text


def test_the_same_comparison_without_the_claim() -> None:
    words = ["text-embedding-3-large@256", "ada-002", "--benchmark", "MTEB(eng, v1)"]
    assert printed(*words)[-1] == CLAIM
    assert "on the mean of 27 of the 41 tasks of MTEB(eng, v2): " in printed(*words[:3], "MTEB(eng, v2)")[-1]
    assert "on SciFact: 73.10 against 72.75 (+0.35)." in printed(*words[:2], "--tasks", "SciFact")[-1]


def test_two_of_our_runs_with_an_interval_where_queries_allow_it(results: Path) -> None:
    lines = printed("local/tiny@4", "local/tiny", "--results", results)
    table = rows(lines)
    assert "[" in table["Retrieval"][3] and "[" not in table["STS"][3] + table["overall"][3]
    assert "tiny at 4 of its 32 dims" in lines[-1] and "tiny at its full 32 dims on the mean of 2 tasks" in lines[-1]
    assert not any(line.startswith(("Training data", "Published values")) for line in lines)
    assert "] at 95 %)." in printed("tiny@4", "tiny", "--results", results, "--tasks", "HeldOut")[-1]


def test_our_run_is_compared_with_the_newest_published_value(
    tiny_model: SentenceTransformer, shared_data: Path, tmp_path: Path
) -> None:
    tasks, table = ["BIOSSES", "STS12"], tmp_path / "tasks.csv"
    mirror = shared_data / "mirror"
    evaluate_dims(tiny_model, tasks, [8], name="local/tiny", mirror=mirror, output=tmp_path / "out", progress=False)
    lines = printed("tiny@8", "nomic-embed-text-v1.5", "--results", tmp_path / "out", "--csv", table)
    assert "tiny at 8 of its 32 dims trails nomic-embed-text-v1.5 at its full 768 dims" in lines[-1]
    assert any(line.startswith("Published values: the newest rerun") for line in lines)
    with table.open() as file:
        scores = {row["task"]: float(row["right_score"]) for row in csv.DictReader(file)}
    assert scores.keys() == set(tasks)
    assert scores["STS12"] == pytest.approx(71.16, abs=0.005)  # 78.5 on the leaderboard of its time


def test_the_list_has_published_models_and_our_runs(results: Path) -> None:
    listed = rows(printed("--list", "--results", results))
    assert listed["openai/text-embedding-ada-002@1536"] == ["68"]
    assert listed["openai/text-embedding-3-large@1024"] == ["averages only"]
    ours = [label for label in listed if label.startswith("local/tiny#")]
    assert [label.split("@")[1] for label in ours] == ["32", "4"]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([], "compare needs two models, --claim or --list;"),
        (["ada-002"], "compare needs two models, --claim or --list;"),
        (["--claim", "openai-255"], "There is no claim 'openai-255'; use one of openai-256."),
        (["a", "b", "--claim", "openai-256"], "--claim openai-256 says itself what is compared;"),
        (["a", "b", "--tasks", "A", "--benchmark", "B"], "--tasks and --benchmark both choose the tasks;"),
        (["ada-002", "mxbai-embed-large", "--benchmark", "MTEB(eng, v3)"], r"did you mean 'MTEB\(eng, v2\)'\?"),
        (["ada-002", "mxbai-embed-large", "--tasks", "SciFct"], "on 'SciFct'; did you mean 'SciFact'"),
        (["ada-002", "mxbai-embed-large", "--results", "nowhere"], "The results folder 'nowhere' does not exist;"),
        (["local/model@64", "ada-002"], "There is no model 'local/model'"),
        (["ada-002", "ada-002"], "Both sides are openai/text-embedding-ada-002@1536;"),
    ],
)
def test_bad_input_is_one_sentence(words: list[str], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence) as caught:
        main(words)
    assert "\n" not in str(caught.value)


def test_our_tasks_that_nobody_published_are_not_shared(results: Path) -> None:
    with pytest.raises(UserError, match="local/tiny@4 and openai/text-embedding-ada-002@1536 share no task"):
        main(["tiny@4", "ada-002", "--results", str(results)])


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be written"):
        main(["--claim", "openai-256", "--csv", str(tmp_path)])
