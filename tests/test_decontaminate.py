"""``check --against`` on a small mirror: what it prints, writes, drops and refuses; and on real data that is known."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from matryoshka_st import cli
from matryoshka_st.decontaminate import is_asked_for, main

Check = Callable[..., tuple[int, str, str]]

EVALUATED = [
    ("A small dog runs along the wet beach at dawn.", "The dog is on the beach."),
    ("The cook cuts an onion into thin slices.", "Someone prepares the vegetables."),
]
LEAKED = [
    ("a small dog runs along the wet beach at dawn", "the dog is on the beach!"),
    ("A small cat runs along the wet beach at dawn.", "It is early in the morning."),
]
OWN = [
    ("The report shows higher costs than planned.", "Costs rose in the third quarter."),
    ("yes", "She answered in one word."),
]


@pytest.fixture
def mirror(tmp_path: Path) -> Path:
    for name, rows in {
        "sts12-sts": EVALUATED,
        "sts13-sts": [("Nobody has ever written this text.", "Nor this one.")],
    }.items():
        folder = tmp_path / "mirror" / "mteb" / name
        folder.mkdir(parents=True)
        lines = [json.dumps({"sentence1": a, "sentence2": b, "score": 2.5}) for a, b in rows]
        (folder / "test.jsonl").write_text("\n".join(lines))
    return tmp_path / "mirror"


@pytest.fixture
def check(mirror: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Check:
    """Run ``matryoshka-st check --against`` in this process; returns exit code, stdout and stderr."""

    def command(*words: object, against: str = "STS12 STS13") -> tuple[int, str, str]:
        own = ["--against", *against.split(), "--dataset-mirror", mirror]
        monkeypatch.setattr(sys, "argv", ["matryoshka-st", "check", *map(str, [*words, *own])])
        monkeypatch.setenv("COLUMNS", "120")
        with pytest.raises(SystemExit) as caught:
            cli.main()
        printed = capsys.readouterr()
        return caught.value.code or 0, printed.out, printed.err

    return command


def write(path: Path, rows: list[tuple[str, str]]) -> Path:
    pq.write_table(pa.table({"anchor": [a for a, _ in rows], "positive": [b for _, b in rows]}), path)
    return path


@pytest.fixture
def leaky(tmp_path: Path) -> Path:
    return write(tmp_path / "leaky.parquet", [LEAKED[0], OWN[0], LEAKED[1], OWN[1]])


@pytest.fixture
def own(tmp_path: Path) -> Path:
    return write(tmp_path / "own.parquet", OWN)


def test_the_table_and_the_counts(check: Check, leaky: Path, own: Path, tmp_path: Path) -> None:
    code, text, _ = check("--train_data", leaky, own, "--output", tmp_path / "overlap.json")
    assert code == 0
    assert "STS12: split test, 4 texts" in text
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in text.splitlines() if line.startswith("│")]
    assert rows == [
        ["leaky", "any", "4", "1", "1", "1", "2"],
        ["", "STS12", "", "1", "1", "1", "2 (50.0 %)"],
        ["own", "any", "2", "0", "0", "0", "0"],
        ["all sets", "any", "6", "1", "1", "1", "2"],
        ["", "STS12", "", "1", "1", "1", "2 (50.0 %)"],
    ]
    verdict = "VERDICT: OVERLAP | 2 of 6 rows (33.33 %): 1 exact, 1 near | 1 of 2 sets, most in leaky: 2 of 4"
    assert text.splitlines()[-1] == verdict
    report = json.loads((tmp_path / "overlap.json").read_text())
    assert report["schema_version"] == 1
    assert report["verdict"] == verdict
    assert report["sets"]["leaky"]["tasks"] == {
        "STS12": {"rows_exact": 1, "rows_near": 1, "rows_both": 1, "texts_hit": 2}
    }
    assert report["sets"]["own"]["rows_clean"] == 2
    assert report["tasks"]["STS13"]["splits"] == ["test"]
    assert report["method"]["near_threshold"] == 0.8


def test_no_text_is_shown_unless_asked_for(check: Check, leaky: Path, tmp_path: Path) -> None:
    _, text, _ = check("--train_data", leaky, "--output", tmp_path / "overlap.json")
    assert "beach" not in text + (tmp_path / "overlap.json").read_text()
    _, text, _ = check("--train_data", leaky, "--examples", 1)
    assert "leaky, near: a small cat runs along the wet beach at dawn\n" in text
    assert text.count("beach") == 2


def test_what_is_dropped_is_gone(check: Check, leaky: Path, own: Path, tmp_path: Path) -> None:
    code, text, _ = check("--train_data", leaky, own, "--drop", tmp_path / "clean")
    assert code == 0
    assert f"{tmp_path / 'clean' / 'leaky.parquet'}: 2 of 4 rows are left" in text
    assert {path.name for path in (tmp_path / "clean").iterdir()} == {"leaky.parquet", "own.parquet"}
    for name in ("leaky", "own"):
        left = pq.read_table(tmp_path / "clean" / f"{name}.parquet")
        assert left.column_names == ["anchor", "positive"]
        assert list(zip(*left.to_pydict().values(), strict=True)) == OWN
    _, text, _ = check("--train_data", tmp_path / "clean" / "leaky.parquet")
    assert text.splitlines()[-1] == "VERDICT: CLEAN | 0 of 2 rows (0.00 %): 0 exact, 0 near | 0 of 1 sets"


def test_training_data_is_never_written_over(check: Check, leaky: Path, tmp_path: Path) -> None:
    before = leaky.read_bytes()
    (tmp_path / "link").symlink_to(tmp_path)
    for folder in (tmp_path, tmp_path / "link"):
        code, _, errors = check("--train_data", leaky, "--drop", folder)
        assert code == 2
        assert f"--drop would write '{folder / 'leaky.parquet'}' over training data; give another folder." in errors
    data = tmp_path / "data"
    data.mkdir()
    write(data / "train.parquet", OWN)
    code, _, errors = check("--train_data", data, "--drop", data / "clean")
    assert code == 2 and "over training data" in errors
    assert leaky.read_bytes() == before


def test_a_set_of_which_nothing_is_left(check: Check, own: Path, tmp_path: Path) -> None:
    leaked = write(tmp_path / "leaked.parquet", LEAKED)
    code, text, errors = check("--train_data", own, leaked, "--drop", tmp_path / "clean")
    assert code == 2
    assert "error: Every row of leaked has a text of the tasks, so none is left; leave it out." in errors
    assert "VERDICT: OVERLAP" in text
    assert not (tmp_path / "clean").exists()


def test_a_recipe_says_what_the_data_is(check: Check, leaky: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"train_data: [{leaky}]\nmax_train_rows: 1\nmodel_name_or_path: ./no-model-is-loaded\n")
    code, text, _ = check("--config", recipe, "--near-threshold", "1.0")
    assert code == 0
    assert "1 of 4 rows (25.00 %): 1 exact, 0 near" in text


@pytest.mark.parametrize(
    ("words", "against", "sentence"),
    [
        (["--near_threshold", "0.5"], "STS12", "near_threshold is 0.5; give 0.8 to 1"),
        (["--near_threshold", "high"], "STS12", "--near_threshold got 'high', which is not a number;"),
        (["--examples", "-1"], "STS12", "--examples is -1; give 0 or more."),
        ([], "", "--against names no task; give one or more names of mteb tasks."),
        ([], "STS21", "mteb has no task 'STS21'; did you mean 'STS"),
        ([], "STS14", "Task 'STS14' needs the folder"),
        (["--drop", "own.parquet"], "STS12", "--drop got 'own.parquet', which is a file; give a folder."),
        (["--output", "own.parquet/x"], "STS12", "own.parquet/x could not be written"),
        (["--drop", "notes.txt/x"], "STS12", "notes.txt/x/own.parquet could not be written"),
        (["--learning_rat", "1"], "STS12", "Unknown flag --learning_rat; did you mean '--learning_rate'?"),
        (["--train_data", "nowhere.csv"], "STS12", "Data file 'nowhere.csv' does not exist;"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input_is_one_sentence(
    check: Check,
    own: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
    against: str,
    sentence: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes.txt").touch()
    code, _, errors = check("--train_data", own, *words, against=against)
    lines = [line for line in errors.splitlines() if line.startswith("error: ")]
    assert code == 2
    assert len(lines) == 1 and sentence in lines[0]


def test_only_the_flag_asks_for_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert is_asked_for(["--config", "r.yaml", "--against=STS12"])
    assert not is_asked_for(["--config", "against.yaml"])
    with pytest.raises(SystemExit):
        main(["--against", "--help"], prog="matryoshka-st check")
    assert "--near_threshold" in capsys.readouterr().out


@pytest.mark.slow
def test_known_overlap_of_real_sets(shared_data: Path, tmp_path: Path) -> None:
    """PROVENANCE.md beside the data says how many rows hold texts of which tasks; it counts short texts too."""
    pairs = shared_data / "pairs"
    sources = [*sorted((pairs / "contaminated").glob("*.parquet")), pairs / "medquad.parquet"]
    tasks = ["STS12", "STS13", "STS14", "STS15", "STS16", "STSBenchmark", "SICK-R", "SciFact"]
    words = ["--train_data", *sources, "--against", *tasks, "--dataset_mirror", shared_data / "mirror"]
    main([*map(str, words), "--output", str(tmp_path / "overlap.json")], prog="matryoshka-st check")
    sets = json.loads((tmp_path / "overlap.json").read_text())["sets"]
    assert sets["stsb_train"]["tasks"]["STS12"]["rows_exact"] == 245
    assert sets["stsb_train"]["tasks"]["STS13"]["rows_exact"] == 128
    assert sets["stsb_train"]["tasks"]["STS15"]["rows_exact"] == 307
    assert sets["stsb_train"]["tasks"]["STS16"]["rows_exact"] == 68
    assert sets["stsb_train"]["tasks"]["STSBenchmark"]["rows_exact"] == 88
    assert 475 <= sets["stsb_train"]["tasks"]["STS14"]["rows_exact"] <= 482
    assert sets["sick_train"]["tasks"]["SICK-R"]["rows_exact"] == 1655
    assert sets["sick_train"]["rows_both"] > 1600
    assert sets["scifact_train"]["tasks"]["SciFact"]["rows_near"] > 900
    assert sets["medquad"]["rows_clean"] == sets["medquad"]["rows"] == 16344
