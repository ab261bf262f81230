from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from statistics import fmean

import mteb
import pytest
import torch
from mteb.abstasks.abstask import AbsTask
from mteb.mocks.mock_tasks import MockSTSTask
from sentence_transformers import SentenceTransformer

from matryoshka_st.errors import UserError
from matryoshka_st.evaluation.bank import Bank
from matryoshka_st.evaluation.harness import UnfinishedError, evaluate_dims, model_label, run_eval
from matryoshka_st.models import weights_hash

MakeTask = Callable[[str], AbsTask]

# Tasks of few texts leave scikit-learn's statistics undefined.
pytestmark = pytest.mark.filterwarnings("ignore:::(sklearn|scipy)")


@pytest.fixture
def banks(monkeypatch: pytest.MonkeyPatch) -> list[Bank]:
    """Every bank that is made; their ``encoded`` counts the texts that went through a model."""
    made: list[Bank] = []
    start = Bank.__init__

    def remember(self: Bank, *args: object, **kwargs: object) -> None:
        made.append(self)
        start(self, *args, **kwargs)

    monkeypatch.setattr(Bank, "__init__", remember)
    return made


@pytest.mark.usefixtures("no_network")
def test_each_dim_scores_as_in_mteb_and_each_text_is_encoded_once(
    tiny_model_path: Path,
    small_task: MakeTask,
    own_score: Callable[[SentenceTransformer, AbsTask], float],
    banks: list[Bank],
    tmp_path: Path,
) -> None:
    model = SentenceTransformer(str(tiny_model_path), device="cpu")
    tasks = [small_task("STS"), small_task("Retrieval")]
    scores = evaluate_dims(model, tasks, [8, 32], output=tmp_path)
    assert [(score.task, score.dim) for score in scores] == [
        ("MockSTSTask", 32),
        ("MockSTSTask", 8),
        ("HeldOut", 32),
        ("HeldOut", 8),
    ]
    for score in scores:
        truncated = SentenceTransformer(str(tiny_model_path), truncate_dim=score.dim, device="cpu")
        expected = own_score(truncated, small_task("STS" if score.task == "MockSTSTask" else "Retrieval"))
        assert score.score == pytest.approx(expected, abs=1e-5)
    sts = small_task("STS").dataset["test"]
    distinct = len({*sts["sentence1"], *sts["sentence2"]}) + 30 + 30
    assert banks[0].encoded == distinct


def test_per_query_scores_average_to_the_score(tiny_model: SentenceTransformer, small_task: MakeTask) -> None:
    held_out, similarity = evaluate_dims(tiny_model, [small_task("Retrieval"), small_task("STS")], [8])
    assert held_out.metric == "ndcg_at_10"
    assert len(held_out.per_query) == 30
    assert "test/default/q0" in held_out.per_query
    assert fmean(held_out.per_query.values()) == pytest.approx(held_out.score, abs=1e-5)
    assert similarity.per_query == {}


def test_a_rerun_is_served_from_disk(
    tiny_model: SentenceTransformer, small_task: MakeTask, banks: list[Bank], tmp_path: Path
) -> None:
    first = evaluate_dims(tiny_model, [small_task("Retrieval")], [32, 8], output=tmp_path)
    again = evaluate_dims(tiny_model, [small_task("Retrieval")], [32, 8], output=tmp_path)
    assert banks[1].encoded == 0
    assert [score.score for score in again] == pytest.approx([score.score for score in first], abs=1e-6)
    assert again[0].per_query == pytest.approx(first[0].per_query)


def test_a_new_dim_is_run_and_the_old_ones_are_kept(
    tiny_model: SentenceTransformer, small_task: MakeTask, banks: list[Bank], tmp_path: Path
) -> None:
    (wide,) = evaluate_dims(tiny_model, [small_task("STS")], [32], output=tmp_path)
    both = evaluate_dims(tiny_model, [small_task("STS")], [32, 4], output=tmp_path)
    (narrow,) = evaluate_dims(tiny_model, [small_task("STS")], [4])
    assert banks[1].encoded > 0
    assert [score.score for score in both] == pytest.approx([wide.score, narrow.score], abs=1e-6)
    assert wide.score != pytest.approx(narrow.score, abs=1e-3)
    folder = tmp_path / "results" / "local__model" / weights_hash(tiny_model)
    assert (folder / "MockSTSTask.json").is_file()
    assert (folder / "experiments" / "embed_dim_4" / "MockSTSTask.json").is_file()
    loaded = mteb.ResultCache(tmp_path).load_results(load_experiments="match_name")
    assert len(loaded.model_results) == 2


def test_two_checkpoints_never_share_a_result(
    tiny_model: SentenceTransformer, small_task: MakeTask, tmp_path: Path
) -> None:
    (before,) = evaluate_dims(tiny_model, [small_task("STS")], [8], name="me/run", output=tmp_path)
    with torch.no_grad():
        for parameter in tiny_model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    (after,) = evaluate_dims(tiny_model, [small_task("STS")], [8], name="me/run", output=tmp_path)
    (alone,) = evaluate_dims(tiny_model, [small_task("STS")], [8])
    assert after.score == pytest.approx(alone.score, abs=1e-6)
    assert after.score != pytest.approx(before.score, abs=1e-4)
    assert len(list((tmp_path / "results" / "me__run").iterdir())) == 2


def test_a_half_result_is_set_aside_and_run_again(
    tiny_model: SentenceTransformer, small_task: MakeTask, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = evaluate_dims(tiny_model, [small_task("STS")], [32, 8], output=tmp_path)
    (path,) = tmp_path.rglob("embed_dim_8/MockSTSTask.json")
    whole = path.read_text()
    path.write_text(whole[: len(whole) // 2])
    with caplog.at_level(logging.WARNING, logger="matryoshka_st"):
        again = evaluate_dims(tiny_model, [small_task("STS")], [32, 8], output=tmp_path)
    assert [record.name for record in caplog.records] == ["matryoshka_st.evaluation.results"]
    assert [score.score for score in again] == pytest.approx([score.score for score in first], abs=1e-6)
    assert json.loads(path.read_text())["scores"] == json.loads(whole)["scores"]
    assert path.with_name("MockSTSTask.json.corrupt").exists()


def test_another_split_joins_the_result(tiny_model: SentenceTransformer, small_task: MakeTask, tmp_path: Path) -> None:
    def two_splits() -> AbsTask:
        task = small_task("STS")
        task.dataset["validation"] = task.dataset["test"].select(range(20))
        return task

    (tuned,) = evaluate_dims(tiny_model, [two_splits()], [8], splits=["validation"], output=tmp_path)
    (tested,) = evaluate_dims(tiny_model, [two_splits()], [8], output=tmp_path)
    (path,) = tmp_path.rglob("embed_dim_8/MockSTSTask.json")
    scores = json.loads(path.read_text())["scores"]
    assert scores["validation"][0]["main_score"] == pytest.approx(tuned.score, abs=1e-5)
    assert scores["test"][0]["main_score"] == pytest.approx(tested.score, abs=1e-5)
    assert tuned.score != pytest.approx(tested.score, abs=1e-3)


def test_missing_data_of_one_task_does_not_lose_the_others(
    tiny_model: SentenceTransformer, small_task: MakeTask, tmp_path: Path
) -> None:
    tasks = [small_task("STS"), "SciFact", small_task("Retrieval")]
    with pytest.raises(UnfinishedError, match="'SciFact' needs the folder") as caught:
        evaluate_dims(tiny_model, tasks, [8], mirror=tmp_path / "mirror", output=tmp_path)
    assert [score.task for score in caught.value.scores] == ["MockSTSTask", "HeldOut"]
    assert len(list(tmp_path.rglob("embed_dim_8/*.json"))) == 3


def test_bad_input_is_found_before_any_work(tiny_model: SentenceTransformer, banks: list[Bank]) -> None:
    with pytest.raises(UserError, match="holds 64, above the model's width of 32"):
        evaluate_dims(tiny_model, [MockSTSTask], [64])
    with pytest.raises(UserError, match="did you mean 'SciFact'"):
        evaluate_dims(tiny_model, [MockSTSTask, "SciFcat"], [8])
    with pytest.raises(UserError, match="batch_size is 0"):
        evaluate_dims(tiny_model, [MockSTSTask], [8], batch_size=0)
    assert banks == []


def test_silence_without_a_terminal(
    tiny_model: SentenceTransformer, small_task: MakeTask, capfd: pytest.CaptureFixture[str]
) -> None:
    evaluate_dims(tiny_model, [small_task("Retrieval")], [8])
    output = capfd.readouterr()
    assert (output.out, output.err) == ("", "")


def test_declared_dims_are_the_default(
    tiny_model: SentenceTransformer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny_model.config.matryoshka_dimensions = [5, 32]
    tiny_model.save_pretrained(str(tmp_path / "declared"))
    capsys.readouterr()
    scores = run_eval(str(tmp_path / "declared"), [MockSTSTask], device="cpu")
    assert [score.dim for score in scores] == [32, 5]
    table = capsys.readouterr().out
    assert "local/declared" in table
    assert "MockSTSTask" in table


def test_halvings_are_the_default_otherwise(tiny_model_path: Path) -> None:
    scores = run_eval(str(tiny_model_path), [MockSTSTask], device="cpu")
    assert [score.dim for score in scores] == [32, 16, 8, 4]


def test_finished_tasks_are_shown_before_the_error(
    tiny_model_path: Path, small_task: MakeTask, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tasks = ["SciFact", small_task("STS")]
    with pytest.raises(UnfinishedError):
        run_eval(str(tiny_model_path), tasks, dims=[8], mirror=tmp_path, device="cpu")
    assert "MockSTSTask" in capsys.readouterr().out


def test_labels(tiny_model_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert model_label(str(tiny_model_path)) == "local/tiny"
    monkeypatch.chdir(tiny_model_path)
    assert model_label(".") == "local/tiny"
    assert model_label("all-MiniLM-L6-v2") == "sentence-transformers/all-MiniLM-L6-v2"
