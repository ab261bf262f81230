"""The files of a report, in memory and on disk."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from mteb.abstasks.abstask import AbsTask
from sentence_transformers import SentenceTransformer

from matryoshka_st.errors import UserError
from matryoshka_st.evaluation.harness import evaluate_dims
from matryoshka_st.evaluation.report.command import main, write_report
from matryoshka_st.evaluation.report.compose import report_files
from matryoshka_st.evaluation.runs import read_runs

from .report_runs import make_run, many_runs


def page_of(runs: list, title: str = "Report") -> str:
    return str(report_files(runs, title)["report.html"])


def test_the_files() -> None:
    content = report_files(many_runs(), "Report")
    figures = [f"{name}-{group}" for name in ("dims", "size") for group in ("mean", "retrieval", "sts")]
    kinds = {f"figures/{name}.{kind}" for name in figures for kind in ("png", "svg", "csv")}
    assert set(content) == {*kinds, "table.md", "table.csv", "tasks.csv", "runs.csv", "report.html"}
    assert list(content)[-1] == "report.html"


def test_the_page_asks_the_network_for_nothing() -> None:
    page = page_of(many_runs(), "A & <B>")
    assert "<h1>A &amp; &lt;B&gt;</h1>" in page
    links = set(re.findall(r'(?:src|href)="([^"#]+)"', page))
    assert links == {"data:,", "table.md", "table.csv", "tasks.csv", "runs.csv"}
    assert not re.search(r"url\((?!#)|@import", page)


def test_the_ids_of_a_page_are_its_own() -> None:
    ids = re.findall(r' id="([^"]*)"', page_of(many_runs()))
    assert len(ids) == len(set(ids)) > 100


def test_views_without_a_task_are_named_and_have_no_mean() -> None:
    runs = [run for run in many_runs() if (run.model, run.dim, run.task) != ("local/trained", 384, "NFCorpus")]
    content = report_files(runs, "Report")
    page = str(content["report.html"])
    assert "trained, 384 dims, int8: no NFCorpus" in page
    rows = list(csv.DictReader(str(content["table.csv"]).splitlines()))
    lacking = [row for row in rows if (row["model"], row["dims"]) == ("trained", "384")]
    assert [(row["Retrieval"], row["Mean"], row["% of full"]) for row in lacking] == [("", "", "")] * 4
    assert all(row["STS"] for row in lacking)
    assert "trained, 384 dims" not in page.split("<h2>Score against size</h2>")[0].split("Retrieval (2 tasks)")[0]


def test_nothing_in_common_is_a_page_without_means() -> None:
    content = report_files([make_run(task="STS12"), make_run(dim=64, task="SciFact")], "Report")
    assert {name for name in content if name.endswith(".svg")} == {
        f"figures/{name}-{group}.svg" for name in ("dims", "size") for group in ("sts", "retrieval")
    }
    assert "For each task type" in str(content["report.html"])


def test_the_markdown_says_what_it_means() -> None:
    text = str(report_files([make_run(0.8), make_run(0.6, dim=64)], "Report")["table.md"])
    lines = text.splitlines()
    assert lines[2] == "| small | 384 | float32 | 1536 | **80.00** | 100.0 |"
    assert lines[3] == "| small | 64 | float32 | 256 | 60.00 | 75.0 |"
    assert lines[-1].endswith("all means are over the same tasks. STS: STS12 (cosine_spearman).")


def test_runs_are_kept_to_the_last_digit() -> None:
    runs = [make_run(1 / 3), make_run(0.1, dim=64, variant="a,b")]
    rows = list(csv.DictReader(str(report_files(runs, "Report")["runs.csv"]).splitlines()))
    assert [float(row["score"]) for row in rows] == [run.score for run in runs]
    assert rows[1]["variant"] == "a,b" and "per_query" not in rows[0]


def test_from_results_to_a_report(
    tiny_model: SentenceTransformer,
    small_task: Callable[[str], AbsTask],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    tasks = [small_task("STS"), small_task("Retrieval")]
    evaluate_dims(tiny_model, tasks, [32, 8], name="local/tiny", output=tmp_path / "results")
    output = tmp_path / "report"
    main([str(tmp_path / "results"), "--output", str(output), "--title", "Tiny"])
    assert capsys.readouterr().out == f"Report: {output / 'report.html'}\n"
    runs = read_runs([tmp_path / "results"])
    retrieval = {run.dim: run.score for run in runs if run.task_type == "Retrieval"}
    rows = {row["dims"]: row for row in csv.DictReader((output / "table.csv").read_text().splitlines())}
    assert {dim: row["Retrieval"] for dim, row in rows.items()} == {
        str(dim): f"{100 * score:.2f}" for dim, score in retrieval.items()
    }
    written = {str(path.relative_to(output)) for path in output.rglob("*") if path.is_file()}
    assert written == set(report_files(runs, "Tiny"))


def test_the_page_is_not_there_before_everything_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "figures").touch()
    with pytest.raises(OSError):
        write_report([make_run()], tmp_path, "Report")
    assert not (tmp_path / "report.html").exists()


def test_the_output_is_a_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "new" / "report"):
        with pytest.raises(UserError, match=r"report\.html cannot be written, as .*file is a file and not a folder"):
            write_report([make_run()], folder, "Report")
