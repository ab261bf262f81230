"""Pairs load from every format in one shape, and every kind of bad input is refused in one sentence."""

from __future__ import annotations

import csv
import json
import logging
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, DatasetDict
from hypothesis import given
from hypothesis import strategies as st

from matryoshka_st.data import (
    describe_columns,
    load_pairs,
    load_training_sets,
    normalize_text,
    require_batch,
    split_holdout,
)
from matryoshka_st.errors import UserError

FORMATS = ["parquet", "csv", "tsv", "jsonl", "json"]
PAIRS = {"anchor": ["a cat", "a dog"], "positive": ["it meows", "it barks, loudly"]}


def write(path: Path, columns: dict[str, list[Any]]) -> str:
    """Write columns in the format that the suffix names."""
    records = [dict(zip(columns, cells, strict=True)) for cells in zip(*columns.values(), strict=True)]
    if path.suffix == ".parquet":
        pq.write_table(pa.table(columns), path)
    elif path.suffix in (".jsonl", ".json"):
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
    else:
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(columns), delimiter="\t" if path.suffix == ".tsv" else ",")
            writer.writeheader()
            writer.writerows(records)
    return str(path)


@pytest.mark.parametrize("suffix", FORMATS)
def test_every_format_gives_the_same_pairs(tmp_path: Path, suffix: str) -> None:
    dataset = load_pairs(write(tmp_path / f"pairs.{suffix}", PAIRS))
    assert dataset.column_names == ["anchor", "positive"]
    assert dataset.to_dict() == PAIRS


@pytest.mark.parametrize(
    ("found", "named"),
    [
        (["query", "answer"], ["anchor", "positive"]),
        (["Question", "Passage"], ["anchor", "positive"]),
        (["sentence1", "sentence2"], ["anchor", "positive"]),
        (["premise", "hypothesis"], ["anchor", "positive"]),
        (["anchor", "positive", "negative"], ["anchor", "positive", "negative"]),
        (["anchor", "positive", "negative_1"], ["anchor", "positive", "negative"]),
        (["query", "document", "neg_1", "neg_2"], ["anchor", "positive", "negative_1", "negative_2"]),
    ],
)
def test_known_names_are_renamed(tmp_path: Path, found: list[str], named: list[str]) -> None:
    columns = {name: [f"{name} {row}" for row in range(3)] for name in found}
    dataset = load_pairs(write(tmp_path / "pairs.parquet", columns))
    assert dataset.column_names == named
    assert dataset[0] == {new: f"{old} 0" for old, new in zip(found, named, strict=True)}


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (["positive", "anchor"], "in this order, but .* needs 'anchor', 'positive'; .*--column_order anchor positive"),
        (["anchor", "negative", "positive"], "--column_order anchor positive negative"),
        (["anchor"], "the columns 'anchor'; contrastive training needs at least two text columns"),
        (["anchor", "negative"], "the columns 'anchor', 'negative' but no positive; call one positive"),
        (["positive", "negative"], "but no anchor; call one anchor"),
        (["title", "text"], "'title', 'text' cannot be told .*--column_order title text"),
        (["source", "question", "answer"], "'source' cannot be told .*--column_order question answer"),
        (["query", "anchor", "positive"], "'query', 'anchor' could each be the anchor; choose with"),
        (["anchor", "positive", "label"], "'label' would be read as a label.*--column_order anchor positive"),
        (["score", "sentence1", "sentence2"], "'score' would be read as a label.*--column_order sentence1 sentence2"),
        (["text", "label"], "needs at least two text columns"),
    ],
)
def test_columns_that_are_not_understood(tmp_path: Path, suffix: str, columns: list[str], message: str) -> None:
    source = write(tmp_path / f"pairs.{suffix}", {name: ["some text"] for name in columns})
    with pytest.raises(UserError, match=message) as caught:
        load_pairs(source)
    assert source in str(caught.value)


@pytest.mark.parametrize("suffix", FORMATS)
def test_column_order_selects_and_reorders(tmp_path: Path, suffix: str) -> None:
    columns = {"text": ["body"], "positive": ["title"], "label": ["1"], "anchor": ["worse"]}
    source = write(tmp_path / f"pairs.{suffix}", columns)
    dataset = load_pairs(source, column_order=["positive", "text", "anchor"])
    assert list(dataset[0].items()) == [("anchor", "title"), ("positive", "body"), ("negative", "worse")]


@pytest.mark.parametrize(
    ("order", "message"),
    [
        (["anchor", "positiv"], "names 'positiv', but .* has the columns .*; did you mean 'positive'"),
        (["anchor"], "column_order is 'anchor'; name two or more different columns"),
        (["anchor", "anchor"], "name two or more different columns"),
    ],
)
def test_bad_column_order(tmp_path: Path, order: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_pairs(write(tmp_path / "pairs.jsonl", PAIRS), column_order=order)


@pytest.mark.parametrize("suffix", FORMATS)
def test_bad_rows_are_counted_and_located(tmp_path: Path, suffix: str) -> None:
    positives = [f"text {row}" for row in range(20)]
    for row in (2, 3, 5, 7, 11, 13):
        positives[row] = " \t" if row % 2 else ""
    source = write(tmp_path / f"pairs.{suffix}", {"anchor": ["query"] * 20, "positive": positives})
    where = {"parquet": "rows 3, 4, 6, 8, 12", "json": "lines 3, 4, 6, 8, 12", "jsonl": "lines 3, 4, 6, 8, 12"}
    expected = rf"{suffix} has 6 of 20 rows .*6 empty positive; first at {where.get(suffix, 'lines 4, 5, 7, 9, 13')}\)"
    with pytest.raises(UserError, match=f"{expected}; fix them, or .* --bad_rows drop"):
        load_pairs(source)


@pytest.mark.parametrize("suffix", FORMATS)
def test_bad_rows_can_be_dropped(tmp_path: Path, suffix: str, caplog: pytest.LogCaptureFixture) -> None:
    source = write(tmp_path / f"pairs.{suffix}", {"anchor": ["one", "", "three"], "positive": ["1", "2", "3"]})
    assert load_pairs(source, bad_rows="drop").to_dict() == {"anchor": ["one", "three"], "positive": ["1", "3"]}
    assert "dropped 1 of 3 rows" in caplog.text


@pytest.mark.parametrize("suffix", FORMATS)
def test_only_bad_rows(tmp_path: Path, suffix: str) -> None:
    source = write(tmp_path / f"pairs.{suffix}", {"anchor": ["", "b"], "positive": ["a", " "]})
    with pytest.raises(UserError, match=r"has only bad rows: 2 of 2 .*1 empty anchor, 1 empty positive"):
        load_pairs(source, bad_rows="drop")


def test_values_that_are_not_text(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    values = ["null", "5", "NaN", "true", '{"a": 1}', '"text"']
    lines = [f'{{"anchor": "query", "positive": {value}}}' for value in values]
    path.write_text("\n\n".join([*lines, '{"anchor": "no positive"}']))
    with pytest.raises(UserError, match="6 of 7 rows") as caught:
        load_pairs(str(path))
    for part in ("3 missing positive", "1 int as positive", "1 bool as", "1 dict as", "first at lines 1, 3, 5, 7, 9)"):
        assert part in str(caught.value)
    assert load_pairs(str(path), bad_rows="drop")["positive"][:] == ["text"]


def test_half_a_character_is_a_fault_of_its_row(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text(
        '{"anchor": "whole \\ud83d\\ude00", "positive": "a"}\n'
        '{"anchor": "half \\ud83d", "positive": "b"}\n'
        '{"anchor": "c", "positive": ["d", "half \\ude00"]}\n'
    )
    with pytest.raises(UserError, match=r"2 of 4 rows .*1 half a character .*surrogate\) in anchor, .*at lines 2, 3"):
        load_pairs(str(path))
    assert load_pairs(str(path), bad_rows="drop").to_dict() == {"anchor": ["whole 😀", "c"], "positive": ["a", "d"]}


def test_parquet_with_nulls_or_numbers(tmp_path: Path) -> None:
    nulls = write(tmp_path / "nulls.parquet", {"anchor": ["a", None], "positive": ["b", "c"]})
    with pytest.raises(UserError, match=r"1 of 2 rows .*\(1 missing anchor; at row 2\)"):
        load_pairs(nulls)
    numbers = write(tmp_path / "numbers.parquet", {"anchor": ["a", "b"], "positive": [1.5, 2.5]})
    with pytest.raises(UserError, match=r"only bad rows: .*2 float as positive"):
        load_pairs(numbers)


def test_bad_rows_takes_two_words(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="bad_rows is 'skip'; use 'error' or 'drop'"):
        load_pairs(write(tmp_path / "pairs.csv", PAIRS), bad_rows="skip")  # type: ignore[arg-type]


@pytest.mark.parametrize("suffix", FORMATS)
def test_empty_files(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"pairs.{suffix}"
    path.touch()
    with pytest.raises(UserError, match="has no rows; give a dataset with at least one pair"):
        load_pairs(str(path))


@pytest.mark.parametrize("suffix", ["parquet", "csv", "tsv"])
def test_header_without_rows(tmp_path: Path, suffix: str) -> None:
    with pytest.raises(UserError, match="has no rows"):
        load_pairs(write(tmp_path / f"pairs.{suffix}", {"anchor": [], "positive": []}))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.jsonl", b'{"anchor": "a", "positive": "b"}\n{"anchor": "a"\n', r"p\.jsonl, line 2 is not valid JSON"),
        ("p.jsonl", b'\n\n["a", "b"]\n', r"p\.jsonl, line 3 is a JSON list, not an object"),
        ("p.json", b"[\n{}\n]", r"p\.json, line 1 is not valid JSON .*one JSON object per line"),
        ("p.jsonl", b'{"anchor": "caf\xe9"}\n', r"p\.jsonl, line 1 is not UTF-8 text"),
        ("p.csv", b"anchor,positive\na,b\nc\n", r"p\.csv, line 3 has 1 fields where the header has 2"),
        ("p.csv", b'anchor,positive\na,"b\nc,d\n', r"p\.csv, line 2 cannot be parsed .*close every double quote"),
        ("p.tsv", b'anchor\tpositive\na\tb\n"c" d\te\n', r"p\.tsv, line 3 cannot be parsed"),
        ("p.csv", b"anchor,anchor\na,b\n", r"p\.csv, line 1: the header names 'anchor' twice"),
        ("p.csv", b"anchor,positive\na,\xff\n", r"p\.csv, line 2 is not UTF-8 text"),
        ("p.parquet", b"PAR1 and nothing more", r"p\.parquet is not a readable parquet file"),
        ("p.txt", b"a\tb\n", r"p\.txt ends in '\.txt', which cannot be read; use one of \.parquet, \.csv"),
    ],
)
def test_files_that_do_not_parse(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        load_pairs(str(path))


def test_csv_text_keeps_line_breaks_and_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    path = tmp_path / "pairs.csv"
    path.write_bytes(b'\xef\xbb\xbfanchor,positive\r\n"two\r\nlines",3.50\r\n\r\n"a ""b""",c\r\n')
    assert load_pairs(str(path)).to_dict() == {"anchor": ["two\r\nlines", 'a "b"'], "positive": ["3.50", "c"]}


@pytest.mark.parametrize(
    "source", ["missing.parquet", "./missing", "/no/such/folder", "~/no-such.csv", "a/b/c", "x.txt"]
)
def test_paths_that_do_not_exist(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.load_dataset", lambda *_, **__: pytest.fail("asked the hub"))
    with pytest.raises(UserError, match=re.escape(f"Data file {source!r} does not exist; give an existing file")):
        load_pairs(source)


def test_hub_ids_carry_a_config(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def load_dataset(*args: Any, **kwargs: Any) -> Dataset:
        asked.append((args, kwargs))
        return Dataset.from_dict(PAIRS)

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    assert load_pairs("owner/name:triplet", split="train[:10]").to_dict() == PAIRS
    load_pairs("owner/name")
    assert asked == [(("owner/name", "triplet"), {"split": "train[:10]"}), (("owner/name", None), {"split": "train"})]


def test_hub_that_cannot_be_reached() -> None:
    with pytest.raises(
        UserError, match="Hub dataset 'no-such/pairs' with split 'train' could not be loaded"
    ) as caught:
        load_pairs("no-such/pairs")
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="did you mean 'docstrings'"):
        load_pairs("docstring")


def test_saved_dataset_folders(tmp_path: Path) -> None:
    DatasetDict({"train": Dataset.from_dict(PAIRS)}).save_to_disk(str(tmp_path / "splits"))
    assert load_pairs(str(tmp_path / "splits")).to_dict() == PAIRS
    with pytest.raises(UserError, match="has no split 'dev'; it has train"):
        load_pairs(str(tmp_path / "splits"), split="dev")


def test_folder_of_parquet_shards(tmp_path: Path) -> None:
    write(tmp_path / "train-00000-of-00002.parquet", PAIRS)
    write(tmp_path / "train-00001-of-00002.parquet", PAIRS)
    assert len(load_pairs(str(tmp_path))) == 4
    with pytest.raises(UserError, match="cannot be read as a dataset with a split 'nope'"):
        load_pairs(str(tmp_path), split="nope")


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_flag_embedding_rows(tmp_path: Path, suffix: str) -> None:
    columns = {"query": ["q1", "q2"], "pos": [["p1", "p2"], ["p3"]], "neg": [["n1", "n2", "n3"], ["n4", "n5"]]}
    assert load_pairs(write(tmp_path / f"pairs.{suffix}", columns)).to_dict() == {
        "anchor": ["q1", "q1", "q2"],
        "positive": ["p1", "p2", "p3"],
        "negative_1": ["n1", "n1", "n4"],
        "negative_2": ["n2", "n2", "n5"],
    }


def test_flag_embedding_rows_without_positives_or_negatives(tmp_path: Path) -> None:
    columns = {"query": ["q1", "q2", "q3"], "pos": [["p1"], [], ["p3"]], "neg": [["n1", "n2"], ["n3"], []]}
    source = write(tmp_path / "pairs.jsonl", columns)
    with pytest.raises(UserError, match=r"2 of 3 rows .*1 missing positive, 1 missing negative; at lines 2, 3"):
        load_pairs(source)
    assert load_pairs(source, bad_rows="drop").to_dict() == {"anchor": ["q1"], "positive": ["p1"], "negative": ["n1"]}
    pairs = write(tmp_path / "no-negatives.jsonl", {"query": ["q"], "pos": [["p"]], "neg": [[]]})
    assert load_pairs(pairs).column_names == ["anchor", "positive"]


def test_repeated_rows_are_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="matryoshka_st")
    columns = {"anchor": ["a", "a", "a", "b"], "positive": ["b", "b", "c", "a"]}
    assert len(load_pairs(write(tmp_path / "pairs.csv", columns))) == 4
    assert "1 of 4 rows repeat an earlier row" in caplog.text


def test_one_source_is_a_dataset_and_several_are_named(tmp_path: Path) -> None:
    (tmp_path / "more").mkdir()
    sources = [write(tmp_path / name, PAIRS) for name in ("faq.csv", "faq.jsonl", "more/faq.csv", "more/web.tsv")]
    assert isinstance(load_training_sets(sources[:1]), Dataset)
    sets = load_training_sets(sources)
    assert isinstance(sets, DatasetDict)
    assert list(sets) == ["faq", "faq-2", "faq-3", "web"]
    with pytest.raises(UserError, match="No training data was named"):
        load_training_sets([])


def test_fewer_rows_than_a_batch() -> None:
    dataset = Dataset.from_dict(PAIRS)
    require_batch(dataset, 2)
    with pytest.raises(UserError, match=r"has 2 rows, less than one batch of 64; .*per_device_train_batch_size to 2"):
        require_batch(dataset, 64)


def test_description_names_roles_and_shows_shortened_rows() -> None:
    dataset = Dataset.from_dict(
        {"anchor": ["first\nquery", "second"], "positive": ["word " * 99, "2"], "negative_1": ["n", "m"]}
    )
    text = describe_columns(dataset)
    assert "2 rows" in text
    assert "1. anchor (the text to find a match for)\n       row 1: first query\n       row 2: second" in text
    assert "2. positive (its match" in text
    assert "word ..." in text
    assert "3. negative_1 (a text that does not match)" in text
    assert max(map(len, text.splitlines())) <= 100


@given(
    pairs=st.lists(
        st.tuples(st.sampled_from("abcdefghij"), st.sampled_from(["a", " B", "x", "y", "Z", "w"])), min_size=2
    ),
    size=st.integers(1, 5),
    seed=st.integers(0, 2**32),
)
def test_no_held_out_text_stays_in_training(pairs: list[tuple[str, str]], size: int, seed: int) -> None:
    dataset = Dataset.from_dict({"anchor": [a for a, _ in pairs], "positive": [p for _, p in pairs]})
    try:
        train, dev = split_holdout(dataset, size, seed)
    except UserError as error:
        assert re.match("Cannot hold out|Every row shares a text", str(error))
        return
    texts = [{normalize_text(text) for name in part.column_names for text in part[name]} for part in (train, dev)]
    assert texts[0].isdisjoint(texts[1])
    assert len(dev) == size
    assert 0 < len(train) <= len(pairs) - size
    again = split_holdout(dataset, size, seed)
    assert [part.to_dict() for part in again] == [train.to_dict(), dev.to_dict()]


def test_seed_chooses_the_held_out_rows() -> None:
    dataset = Dataset.from_dict({"anchor": [f"a{i}" for i in range(100)], "positive": [f"p{i}" for i in range(100)]})
    first, other = (split_holdout(dataset, 10, seed)[1]["anchor"][:] for seed in (1, 2))
    assert first != other


@pytest.mark.parametrize("size", [0, -1, 2, 3])
def test_holdout_size_that_does_not_fit(size: int) -> None:
    with pytest.raises(UserError, match=f"Cannot hold out {size} of 2 rows; hold out 1 to 1"):
        split_holdout(Dataset.from_dict(PAIRS), size, 0)


def test_holdout_that_leaves_nothing() -> None:
    dataset = Dataset.from_dict({"anchor": ["same"] * 3, "positive": ["a", "b", "c"]})
    with pytest.raises(UserError, match="none is left to train on; hold out fewer rows"):
        split_holdout(dataset, 1, 0)


def test_real_pairs(shared_data: Path) -> None:
    dataset = load_pairs(str(shared_data / "pairs" / "quora_duplicates.parquet"))
    assert len(dataset) == 60_187
    train, dev = split_holdout(dataset, 1_000, seed=13)
    assert len(dev) == 1_000
    assert len(train) < 59_187
