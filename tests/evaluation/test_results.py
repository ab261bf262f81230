from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable
from pathlib import Path

import mteb
import pytest
from mteb.abstasks.abstask import AbsTask
from sentence_transformers import SentenceTransformer

from matryoshka_st.errors import UserError
from matryoshka_st.evaluation.bank import Bank
from matryoshka_st.evaluation.prefix_view import Cut, PrefixView
from matryoshka_st.evaluation.results import ResultStore, StoredResult

PER_QUERY = {"test": {"default": {"q0": 0.5}}}
RECORD = {"embed_dim": 8, "precision": "float32"}


@pytest.fixture
def view(tiny_model: SentenceTransformer) -> PrefixView:
    return PrefixView(Bank(tiny_model), Cut(8), name="local/tiny", revision="abc")


@pytest.fixture
def task(small_task: Callable[[str], AbsTask]) -> AbsTask:
    return small_task("Retrieval")


@pytest.fixture
def stored(view: PrefixView, task: AbsTask) -> StoredResult:
    results = mteb.evaluate(view, task, cache=None, co2_tracker=False, show_progress_bar=False)
    return StoredResult(results.task_results[0], PER_QUERY)


FOLDER = Path("results", "local__tiny", "abc", "experiments", "embed_dim_8")


def test_files_lie_where_mteb_looks_for_them(
    view: PrefixView, task: AbsTask, stored: StoredResult, tmp_path: Path
) -> None:
    store = ResultStore(tmp_path)
    assert store.load(view.mteb_model_meta, task) is None
    store.save(view.mteb_model_meta, stored, cut=RECORD, encode_kwargs={"batch_size": 4})
    files = {str(path.relative_to(tmp_path / FOLDER)) for path in (tmp_path / FOLDER).rglob("*") if path.is_file()}
    assert files == {"HeldOut.json", "matryoshka/HeldOut.json", "model_meta.json", "run_settings.jsonl"}
    assert [path.name for path in tmp_path.iterdir()] == ["results"]
    loaded = store.load(view.mteb_model_meta, task)
    assert loaded is not None
    assert loaded.per_query == PER_QUERY
    assert loaded.result.get_score() == pytest.approx(stored.result.get_score(), abs=1e-6)
    from_mteb = mteb.ResultCache(tmp_path).load_task_result("HeldOut", view.mteb_model_meta)
    assert from_mteb is not None
    notes = json.loads((tmp_path / FOLDER / "matryoshka" / "HeldOut.json").read_text())
    assert {key: notes[key] for key in RECORD} == RECORD
    assert notes["schema_version"] == 2
    assert notes["versions"]["mteb"] == mteb.__version__


def test_the_output_is_a_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="file' is a file; give a folder"):
        ResultStore(tmp_path / "file")


def test_newer_scores_join_older_ones(stored: StoredResult) -> None:
    scores = stored.result.scores
    validation = stored.result.model_copy(update={"scores": {"validation": scores["test"]}})
    newer = StoredResult(validation, {"validation": {"default": {"q0": 0.25}}})
    both = stored.extended(newer)
    assert set(both.result.scores) == {"test", "validation"}
    assert both.per_query == {**PER_QUERY, "validation": {"default": {"q0": 0.25}}}


def test_run_settings_of_other_tasks_are_kept(view: PrefixView, stored: StoredResult, tmp_path: Path) -> None:
    store = ResultStore(tmp_path)
    store.save(view.mteb_model_meta, stored, cut=RECORD, encode_kwargs={})
    other = stored.result.model_copy(update={"task_name": "Other"})
    store.save(view.mteb_model_meta, StoredResult(other, {}), cut=RECORD, encode_kwargs={})
    lines = (tmp_path / FOLDER / "run_settings.jsonl").read_text().splitlines()
    assert [json.loads(line)["task"] for line in lines] == ["HeldOut", "Other"]


@pytest.mark.parametrize("name", ["HeldOut.json", "matryoshka/HeldOut.json"])
@pytest.mark.parametrize("rest", ["", "half", "null", "{}"])
def test_a_half_file_is_set_aside(
    view: PrefixView,
    task: AbsTask,
    stored: StoredResult,
    tmp_path: Path,
    name: str,
    rest: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    store = ResultStore(tmp_path)
    store.save(view.mteb_model_meta, stored, cut=RECORD, encode_kwargs={})
    path = tmp_path / FOLDER / name
    broken = path.read_text()[: path.stat().st_size // 2] if rest == "half" else rest
    path.write_text(broken)
    with caplog.at_level(logging.WARNING):
        assert store.load(view.mteb_model_meta, task) is None
    assert not path.exists()
    assert path.with_name("HeldOut.json.corrupt").read_text() == broken
    (record,) = caplog.records
    assert "set aside as HeldOut.json.corrupt" in record.getMessage()
    assert "\n" not in record.getMessage()
    store.save(view.mteb_model_meta, stored, cut=RECORD, encode_kwargs={})
    assert store.load(view.mteb_model_meta, task) is not None


def test_killed_while_writing_leaves_no_result(
    view: PrefixView, task: AbsTask, stored: StoredResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever step is the last one done, the next run finds either nothing or a whole result."""
    done = 0

    def fsync(descriptor: int) -> None:
        nonlocal done
        done += 1
        if done == last:
            raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", fsync)
    for last in range(1, 5):
        done = 0
        store = ResultStore(tmp_path / str(last))
        with pytest.raises(KeyboardInterrupt):
            store.save(view.mteb_model_meta, stored, cut=RECORD, encode_kwargs={})
        assert store.load(view.mteb_model_meta, task) is None


def test_other_data_under_the_same_name_is_no_result(
    view: PrefixView, task: AbsTask, stored: StoredResult, tmp_path: Path
) -> None:
    store = ResultStore(tmp_path)
    store.save(view.mteb_model_meta, stored, cut=RECORD, encode_kwargs={})
    other = {**task.metadata.dataset, "revision": "other"}
    task.metadata = task.metadata.model_copy(update={"dataset": other})
    assert store.load(view.mteb_model_meta, task) is None
