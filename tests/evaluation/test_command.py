"""The flags of an evaluation, with a real model, a real mteb task and a local mirror."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path

import mteb
import pytest
from sentence_transformers import SentenceTransformer

from matryoshka_st.errors import UserError
from matryoshka_st.evaluation.command import main
from matryoshka_st.evaluation.harness import UnfinishedError
from matryoshka_st.evaluation.report.board import board
from matryoshka_st.evaluation.runs import Run, read_runs
from matryoshka_st.evaluation.sides import run_sides
from matryoshka_st.evaluation.tasks import select_tasks


@pytest.fixture
def mirror(tmp_path: Path) -> Path:
    draw = random.Random(5)
    folder = tmp_path / "mirror" / "mteb" / "sts12-sts"
    folder.mkdir(parents=True)
    words = ["".join(draw.choices("abcdefgh ", k=30)) for _ in range(80)]
    rows = [
        {"sentence1": left, "sentence2": right, "score": draw.uniform(0, 5)}
        for left, right in zip(words[:40], words[40:], strict=True)
    ]
    (folder / "test.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    return tmp_path / "mirror"


def evaluate(model: Path, mirror: Path, output: Path, *flags: str) -> list[Run]:
    words = [str(model), "--tasks", "STS12", "--dataset-mirror", str(mirror), "--output", str(output), *flags]
    main(words)
    return read_runs([output])


def test_fixed_models_are_scored_at_their_own_width(
    tiny_model: SentenceTransformer,
    tiny_model_path: Path,
    mirror: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    tiny_model.save_pretrained(str(tmp_path / "fixed"))
    runs = evaluate(tiny_model_path, mirror, tmp_path / "out", "--dims", "8", "--fixed", str(tmp_path / "fixed"))
    assert {(run.model, run.dim) for run in runs} == {("local/tiny", 8), ("local/fixed", 32)}
    assert capsys.readouterr().out.count("STS12") == 2


def test_fixed_models_are_cut_stored_and_prompted_like_the_nested_one(
    tiny_model: SentenceTransformer, tiny_model_path: Path, mirror: Path, tmp_path: Path
) -> None:
    tiny_model.save_pretrained(str(tmp_path / "fixed"))
    flags = ["--dims", "32", "--precisions", "float32", "int8", "--no-normalize", "--prompts", '{"STS": "a prompt: "}']
    runs = evaluate(tiny_model_path, mirror, tmp_path / "out", *flags, "--fixed", str(tmp_path / "fixed"))
    of_model = [sorted((run.precision, run.variant, run.score) for run in runs if run.model == name)
                for name in ("local/tiny", "local/fixed")]  # fmt: skip
    assert len(of_model[0]) == 2
    assert of_model[0] == of_model[1], "the same weights, so the same scores"


def test_a_task_without_data_does_not_keep_the_fixed_models_from_being_scored(
    tiny_model: SentenceTransformer, tiny_model_path: Path, mirror: Path, tmp_path: Path
) -> None:
    tiny_model.save_pretrained(str(tmp_path / "fixed"))
    words = [str(tiny_model_path), "--tasks", "STS12", "STS13", "--dataset-mirror", str(mirror), "--dims", "8"]
    with pytest.raises(UnfinishedError, match="STS13") as caught:
        main([*words, "--output", str(tmp_path / "out"), "--fixed", str(tmp_path / "fixed")])
    assert str(caught.value).count("STS13'") == 1
    found = {(run.model, run.dim, run.task) for run in read_runs([tmp_path / "out"])}
    assert found == {("local/tiny", 8, "STS12"), ("local/fixed", 32, "STS12")}


def test_what_differs_from_the_plain_cut_is_told_apart_when_results_are_read(
    tiny_model_path: Path, mirror: Path, tmp_path: Path
) -> None:
    (tmp_path / "texts.txt").write_text("\n".join(f"text {number} of some kind" for number in range(40)))
    cut = ["--dims", "8", "--precisions", "int8"]
    evaluate(tiny_model_path, mirror, tmp_path / "out", *cut)
    evaluate(tiny_model_path, mirror, tmp_path / "out", *cut, "--before-cut", "layer_norm")
    evaluate(tiny_model_path, mirror, tmp_path / "out", *cut, "--before-cut", "layer_norm", "--no-normalize")
    runs = evaluate(tiny_model_path, mirror, tmp_path / "out", *cut, "--texts", str(tmp_path / "texts.txt"))
    own, *others = sorted(run.variant for run in runs)
    assert own == ""
    assert others[:2] == ["layer_norm", "layer_norm:not normalized"]
    assert re.fullmatch(r"texts-[0-9a-f]{8}", others[2])
    assert {run.parts for run in runs} == {("test/default",)}
    board(runs)
    assert len(run_sides(runs)) == 4


def test_prompts_change_the_vectors_and_the_revision(tiny_model_path: Path, mirror: Path, tmp_path: Path) -> None:
    (plain,) = evaluate(tiny_model_path, mirror, tmp_path / "out", "--dims", "8")
    both = evaluate(
        tiny_model_path, mirror, tmp_path / "out", "--dims", "8", "--prompts", '{"STS": "a long prompt: "}'
    )
    assert len({run.revision for run in both}) == 2
    assert len({run.score for run in both}) == 2
    assert plain in both


def test_model_kwargs_reach_the_model(tiny_model_path: Path, mirror: Path, tmp_path: Path) -> None:
    half = evaluate(
        tiny_model_path, mirror, tmp_path / "half", "--dims", "8", "--model-kwargs", '{"dtype": "bfloat16"}'
    )
    whole = evaluate(tiny_model_path, mirror, tmp_path / "whole", "--dims", "8")
    assert half[0].revision != whole[0].revision
    assert half[0].score == pytest.approx(whole[0].score, abs=0.1)


def test_a_missing_dataset_is_named_and_the_others_run(tiny_model_path: Path, mirror: Path, tmp_path: Path) -> None:
    words = [
        "--tasks",
        "STS12",
        "STS13",
        "--dims",
        "8",
        "--dataset-mirror",
        str(mirror),
        "--output",
        str(tmp_path / "o"),
    ]
    with pytest.raises(UserError, match=r"Task 'STS13' needs the folder '.*sts13-sts', which does not exist"):
        main([str(tiny_model_path), *words])
    assert [run.task for run in read_runs([tmp_path / "o"])] == ["STS12"]


def test_tasks_of_a_benchmark_and_of_a_type() -> None:
    benchmark = select_tasks(benchmark="MTEB(eng, v1)")
    names = {task if isinstance(task, str) else task.metadata.name for task in benchmark}
    assert "CQADupstackRetrieval" not in names and "CQADupstackAndroidRetrieval" in names
    assert len(names) == 55 + 12
    summaries = select_tasks(["STS12"], types=["Summarization"], languages=["eng"])
    assert summaries[0] == "STS12" and "SummEvalSummarization.v2" in summaries
    assert all(mteb.get_task(name).metadata.type == "Summarization" for name in summaries[1:])
