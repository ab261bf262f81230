"""``matryoshka-st search``: what was indexed is found again, with the dims shown; what goes wrong is one sentence."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer

from matryoshka_st.errors import UserError
from matryoshka_st.export import save_model
from matryoshka_st.retrieval.passages import Passage, read_passages
from matryoshka_st.retrieval.search_command import main
from matryoshka_st.retrieval.text_index import TextIndex, index_texts

pytest.importorskip("faiss", reason="faiss-cpu is not installed (pip install 'matryoshka-st[retrieval]')")

Run = Callable[..., str]


@pytest.fixture
def run() -> Run:
    """Run the command; returns what it prints."""

    def command(*words: object) -> str:
        shown = io.StringIO()
        main([str(word) for word in words], console=Console(file=shown, width=200))
        return shown.getvalue()

    return command


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    """Two text files, one of them in a subfolder, a jsonl and a parquet file, and what is not to be read."""
    folder = tmp_path / "notes"
    (folder / "more").mkdir(parents=True)
    (folder / ".git").mkdir()
    (folder / "a.md").write_text("# Pears\n\nPears grow\non trees.\n\n\nThey are green.\n")
    (folder / "more" / "b.txt").write_text("\nApples are red.\n")
    (folder / "c.jsonl").write_text('{"text": "Plums are blue."}\n\n{"text": "Figs are brown.", "kind": "fruit"}\n')
    pq.write_table(pa.table({"text": ["Limes are sour.", None, "Melons are sweet."]}), folder / "d.parquet")
    (folder / ".git" / "secret.txt").write_text("Hidden.")
    (folder / "package.json").write_text("[]")
    return folder


@pytest.fixture
def index(run: Run, notes: Path, tiny_model_path: Path, tmp_path: Path) -> Path:
    """An index of the notes."""
    run("index", notes, "--index", tmp_path / "index", "--model", tiny_model_path, "--shortlist-dim", 8)
    return tmp_path / "index"


def test_every_text_finds_itself(run: Run, index: Path, notes: Path) -> None:
    for text, place in read_passages(str(notes)):
        shown = run("query", index, text, "-k", 1).splitlines()
        assert shown[0] == f"1. 1.0000  {place}"
        assert shown[1].strip() == text


def test_the_dims_and_the_work_are_shown(run: Run, tiny_model_path: Path, tmp_path: Path) -> None:
    (tmp_path / "texts.txt").write_text("\n".join(f"text number {i}" for i in range(100)))
    words = ["--model", tiny_model_path, "--unit", "line", "--shortlist-dim", 8]
    shown = run("index", tmp_path / "texts.txt", "--index", tmp_path / "index", *words)
    assert f"Indexed 100 texts of {tmp_path / 'texts.txt'}: {tmp_path / 'index'}" in shown
    assert "Dims: all 32 rank every text, as 100 are no more than the shortlist of 200." in shown
    shown = run("query", tmp_path / "index", "text number 7", "--shortlist", 10)
    assert shown.splitlines()[0] == "1. 1.0000  texts.txt:8"
    assert shown.count("\n   ") == 5
    assert "Dims: the first 8 of 32 find 10 of 100 texts, all 32 rank those (2.9 times fewer operations than" in shown


def test_words_without_quotes_are_one_query(run: Run, index: Path) -> None:
    assert run("query", index, "Apples", "are", "red.") == run("query", index, "Apples are red.")


def test_few_texts_are_all_shown(run: Run, tiny_model_path: Path, tmp_path: Path) -> None:
    (tmp_path / "one.txt").write_text("Just one.")
    run("index", tmp_path / "one.txt", "--index", tmp_path / "index", "--model", tiny_model_path)
    assert run("query", tmp_path / "index", "anything").count(" one.txt:1") == 1


@pytest.mark.parametrize(
    ("unit", "expected"),
    [
        ("paragraph", [("# Pears", 1), ("Pears grow on trees.", 3), ("They are green.", 7)]),
        ("line", [("# Pears", 1), ("Pears grow", 3), ("on trees.", 4), ("They are green.", 7)]),
        ("file", [("# Pears\n\nPears grow\non trees.\n\n\nThey are green.", 1)]),
    ],
)
def test_units_of_text(notes: Path, unit: str, expected: list[tuple[str, int]]) -> None:
    found = read_passages(str(notes / "a.md"), unit=unit)
    assert found == [Passage(text, f"a.md:{line}") for text, line in expected]


def test_what_is_read_of_a_folder(notes: Path) -> None:
    places = [passage.place for passage in read_passages(str(notes))]
    tables = ["c.jsonl:1", "c.jsonl:3", "d.parquet:1", "d.parquet:3"]
    assert places == ["a.md:1", "a.md:3", "a.md:7", *tables, "more/b.txt:2"]
    assert len(read_passages(str(notes), most=2)) == 2


def test_a_file_name_need_not_be_utf8(run: Run, tiny_model_path: Path, tmp_path: Path) -> None:
    folder = tmp_path / "notes"
    folder.mkdir()
    names = [os.fsdecode(b"caf\xe9.txt"), os.fsdecode(b"th\xe9.jsonl")]
    (folder / names[0]).write_text("Coffee is black.")
    (folder / names[1]).write_text('{"text": "Tea is green."}\n')
    words = ("--index", tmp_path / "index", "--model", tiny_model_path)
    run("index", folder, *words)
    shown = run("query", tmp_path / "index", "anything")
    assert " caf\N{REPLACEMENT CHARACTER}.txt:1" in shown and " th\N{REPLACEMENT CHARACTER}.jsonl:1" in shown
    run("index", folder / names[0], *words)
    assert " caf\N{REPLACEMENT CHARACTER}.txt:1" in run("query", tmp_path / "index", "anything")


def test_an_index_among_the_texts_is_no_text(run: Run, notes: Path, tiny_model_path: Path) -> None:
    for _ in range(2):
        run("index", notes, "--index", notes / "index", "--model", tiny_model_path)
        assert len(TextIndex.load(notes / "index")) == 8


def test_columns_make_a_text(tmp_path: Path) -> None:
    table = tmp_path / "papers.jsonl"
    table.write_text('{"title": "On figs", "abstract": "Figs are brown."}\n{"title": "On plums", "abstract": null}\n')
    found = read_passages(str(table), columns=["title", "abstract"])
    assert [text for text, _ in found] == ["On figs Figs are brown.", "On plums"]
    (tmp_path / "one.csv").write_text("body\nonly\n")
    assert [text for text, _ in read_passages(str(tmp_path / "one.csv"))] == ["only"]


def test_docstrings_can_be_indexed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    package = tmp_path / "fruits"
    package.mkdir()
    prose = "Everything about apples that a program may want to know, from their colour to the weight of their pips."
    (package / "apples.py").write_text(f'"""Look at apples in the orchard.\n\n{prose}\n"""\n')
    monkeypatch.setattr("matryoshka_st.docstrings._installed_roots", lambda: [tmp_path])
    (found,) = read_passages("docstrings")
    assert found == Passage(f"Look at apples in the orchard. {prose}", "fruits.apples")


def test_a_new_index_replaces_the_old_one(run: Run, index: Path, notes: Path, tiny_model_path: Path) -> None:
    (index / "build-0123456789abcdef").mkdir()  # left by a run that was killed
    run("index", notes / "a.md", "--index", index, "--model", tiny_model_path)
    assert len(TextIndex.load(index)) == 3
    assert len(list(index.iterdir())) == 2  # the manifest and the newest build


def test_an_index_stays_usable_when_building_the_next_fails(
    run: Run, index: Path, notes: Path, tiny_model_path: Path, tmp_path: Path
) -> None:
    before = run("query", index, "Apples are red.")
    broken = tmp_path / "broken"
    shutil.copytree(tiny_model_path, broken)
    weights = load_file(broken / "model.safetensors")
    weights["embeddings.LayerNorm.weight"][:] = float("nan")
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match="Document vector 0 of 8 holds NaN"):
        run("index", notes, "--index", index, "--model", broken)
    assert run("query", index, "Apples are red.") == before
    assert len(list(index.iterdir())) == 2


@pytest.mark.slow
def test_an_index_stays_usable_when_building_the_next_is_killed(
    run: Run, index: Path, notes: Path, tiny_model_path: Path, tmp_path: Path
) -> None:
    before = run("query", index, "Apples are red.")
    (tmp_path / "many.txt").write_text("\n".join(f"text number {i}" for i in range(200_000)))
    words = ["index", tmp_path / "many.txt", "--unit", "line", "--index", index, "--model", tiny_model_path]
    process = subprocess.Popen([sys.executable, "-m", "matryoshka_st", "search", *map(str, words)])
    while len(list(index.glob("build-*"))) < 2:
        assert process.poll() is None
        time.sleep(0.05)
    process.kill()
    process.wait()
    assert run("query", index, "Apples are red.") == before
    run("index", notes, "--index", index, "--model", tiny_model_path)
    assert len(list(index.iterdir())) == 2


def test_another_model_is_refused(
    run: Run, index: Path, tiny_model: SentenceTransformer, tiny_model_path: Path, tmp_path: Path
) -> None:
    tiny_model[0].model.embeddings.LayerNorm.weight.data.mul_(1.5)
    tiny_model.save_pretrained(str(tmp_path / "other"))
    with pytest.raises(
        UserError, match=r"other' .* is not the one that made the vectors, .* give that one with --model"
    ):
        run("query", index, "Apples", "--model", tmp_path / "other")
    shutil.copytree(tiny_model_path, tmp_path / "moved")
    assert run("query", index, "Apples", "--model", tmp_path / "moved") == run("query", index, "Apples")


def test_dims_are_those_of_the_model(run: Run, notes: Path, tiny_model: SentenceTransformer, tmp_path: Path) -> None:
    save_model(tiny_model, tmp_path / "model", dims=[8, 16, 32])
    words = ["index", notes, "--index", tmp_path / "index", "--model", tmp_path / "model"]
    with pytest.raises(UserError, match=r"The model has no dim 12; it declares 8, 16, 32."):
        run(*words, "--shortlist-dim", 12)
    with pytest.raises(UserError, match=r"dims is \[16, 8\], but each has to be larger than the one before."):
        run(*words, "--shortlist-dim", 16, "--rerank-dim", 8)
    assert not (tmp_path / "index").exists()
    run(*words)
    assert TextIndex.load(tmp_path / "index").retriever.settings.dims == (8, 32)
    run(*words, "--shortlist-dim", 8, "--rerank-dim", 16)
    assert "16 of 32 rank those" in run("query", tmp_path / "index", "Apples", "--shortlist", 5)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["nowhere"], "'nowhere' does not exist; give a file, a folder or 'docstrings'."),
        (["empty"], "Folder empty holds no file that ends in .txt, .md, .rst, .parquet, .csv, .tsv, .jsonl;"),
        (["blank.txt"], "blank.txt holds no text; give files with at least one."),
        (["picture.png"], "picture.png ends in '.png'; files to index end in .txt, .md, .rst,"),
        (["latin.txt"], "latin.txt, line 2 is not UTF-8 text"),
        (["half.jsonl"], "half.jsonl, line 2 is not valid JSON"),
        (["half.parquet"], "half.parquet is not a readable parquet file"),
        (["numbers.jsonl"], "numbers.jsonl, line 1 holds int as 'text'; choose columns of text."),
        (["papers.jsonl"], "has the columns 'title', 'body', and none is called 'text'; choose one or several with"),
        (
            ["papers.jsonl", "--columns", "titel"],
            "has no column 'titel'; it has 'title', 'body'; did you mean 'title'?",
        ),
        (["good.txt", "--unit", "lines"], "There is no unit 'lines'; did you mean 'line'?; use paragraph,"),
        (["good.txt", "--max-texts", "0"], "The most texts to read is 0; give 1 or more."),
        (["good.txt", "--model", "./nowhere"], "Model folder './nowhere' does not exist;"),
        (["good.txt", "--shortlist-dim", "32"], r"dims is [32, 32], but each has to be larger than the one before."),
        (["good.txt", "--shortlist-dim", "64"], "The vectors have 32 dims, so 64 is no prefix of them;"),
        (
            ["good.txt", "--shortlist-dims", "8"],
            "Unknown argument '--shortlist-dims'; did you mean '--shortlist-dim'?",
        ),
        (["good.txt", "--index", "taken"], "taken holds other files (thesis.tex); give a new or an empty folder."),
        (["good.txt", "--index", "good.txt"], "good.txt is not a folder;"),
        (["good.txt", "--index", "good.txt/new"], "good.txt is a file and not a folder; give another path."),
        (["good.txt", "--batch-size", "0"], "batch_size is 0; give a whole number of 1 or more."),
        (["surrogate.jsonl"], "surrogate.jsonl, line 2 holds half a character (a lone surrogate) in 'text'; repair"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_be_indexed(
    run: Run,
    words: list[str],
    sentence: str,
    tiny_model_path: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("empty", "taken"):
        Path(folder).mkdir()
    Path("taken/thesis.tex").write_text("Years of work.")
    Path("blank.txt").write_text(" \n\n")
    Path("good.txt").write_text("Fine.")
    Path("picture.png").write_bytes(b"\x89PNG")
    Path("latin.txt").write_bytes("gut\nschön".encode("latin-1"))
    Path("half.jsonl").write_text('{"text": "whole"}\n{"text": "ha')
    Path("surrogate.jsonl").write_text('{"text": "\\ud83d\\ude00"}\n{"text": "cut \\ud83d"}\n')
    Path("half.parquet").write_bytes(b"PAR1")
    Path("numbers.jsonl").write_text('{"text": 7}\n')
    Path("papers.jsonl").write_text('{"title": "On figs", "body": "Figs are brown."}\n')
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError) as caught:
        run("index", *(["--index", "index"] if "--index" not in words else []), "--model", tiny_model_path, *words)
    assert sentence in str(caught.value)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["nowhere", "x"], "There is no text index in nowhere (no build.json);"),
        (["index", " "], "The query is empty;"),
        (["index", "x", "-k", "9"], "k is 9, but the index holds 8 vectors; use 1 to 8."),
        (["index", "x", "-k", "5", "--shortlist", "3"], "k is 5, but the last shortlist keeps only 3;"),
        (["index", "x", "--shortlist", "0"], "lengths are 1 or more"),
        (["index", "x", "-k", "many"], "argument -k: invalid int value: 'many'"),
        (["index"], "the following arguments are required: query;"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_be_queried(
    run: Run, words: list[str], sentence: str, index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(index.parent)
    with pytest.raises(UserError) as caught:
        run("query", *words)
    assert sentence in str(caught.value)


def test_an_index_that_is_not_whole(run: Run, index: Path) -> None:
    manifest = index / "build.json"
    for path in index.rglob("*.*"):
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2])
        with pytest.raises(UserError):
            run("query", index, "Apples")
        path.write_bytes(content)
    facts = json.loads(manifest.read_text())
    for wrong, sentence in (
        ({"schema_version": 99}, "has schema version 99, this release reads 1; build it anew."),
        ({"format": "usearch store"}, "is of no text index; give another folder."),
        ({"build": "../elsewhere"}, "names the subfolder '../elsewhere', which is not there;"),
    ):
        manifest.write_text(json.dumps({**facts, **wrong}))
        with pytest.raises(UserError, match=sentence):
            run("query", index, "Apples")
    manifest.write_text(json.dumps(facts))
    assert run("query", index, "Apples")


def test_prompts_of_the_model_are_used(tiny_model: SentenceTransformer, tmp_path: Path) -> None:
    tiny_model.prompts = {"query": "query: ", "document": "passage: "}
    tiny_model.save_pretrained(str(tmp_path / "model"))
    passages = [Passage("Apples are red.", "a"), Passage("Pears are green.", "b")]
    index = index_texts(passages, tmp_path / "index", source="test", model_name=str(tmp_path / "model"))
    model = index.load_model()
    found = index.search(model, "Pears", 2)
    expected = model.encode_query(["Pears"]) @ model.encode_document([found[0].text]).T
    assert found[0].score == pytest.approx(float(expected[0, 0]), abs=1e-5)


def test_search_explains_itself(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["--help"], [], ["index", "--help"], ["query", "--help"]):
        with pytest.raises(SystemExit) as caught:
            run(*words)
        assert caught.value.code == 0
        assert "example" in capsys.readouterr().out
    with pytest.raises(UserError, match="search has no command 'qurey'; did you mean 'query'"):
        run("qurey")
