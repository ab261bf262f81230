"""Labelled texts: which columns, which classes, what is held out, and one sentence for what is wrong."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from matryoshka_st.data.labelled import class_names, class_numbers, load_labelled, split_labelled
from matryoshka_st.errors import UserError


def written(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("\n".join(map(json.dumps, rows)))
    return str(path)


def test_names_are_taken_before_numbers(tmp_path: Path) -> None:
    rows = [{"text": "my card", "label": 3, "label_text": "card"}, {"text": "my pin", "label": 1, "label_text": "pin"}]
    path = written(tmp_path / "a.jsonl", rows)
    assert load_labelled(path).to_dict() == {"text": ["my card", "my pin"], "label": ["card", "pin"]}
    assert load_labelled(path, label_column="label")["label"][:] == ["3", "1"]
    (tmp_path / "a.csv").write_text("utterance,intent\nmy card,7\nmy pin,10\n")
    assert load_labelled(str(tmp_path / "a.csv"))["label"][:] == ["7", "10"]
    Dataset.from_list(rows).to_parquet(tmp_path / "a.parquet")
    assert load_labelled(str(tmp_path / "a.parquet"))["label"][:] == ["card", "pin"]


def test_a_folder_of_the_hub_s_layout_has_splits(tmp_path: Path) -> None:
    for split in ("train", "test"):
        Dataset.from_dict({"text": [f"{split} text"], "label": ["a"]}).to_parquet(tmp_path / f"{split}.parquet")
    assert load_labelled(str(tmp_path), split="test")["text"][:] == ["test text"]


@pytest.mark.parametrize(
    ("rows", "options", "sentence"),
    [
        ([{"body": "x", "label": "a"}], {}, r"has the columns 'body', 'label', none of which is known to be the text"),
        ([{"text": "x", "mark": "a"}], {}, r"known to be the label; name it with --label_column"),
        ([{"text": "x", "label": "a"}], {"text_column": "tex"}, r"has no column 'tex'; did you mean 'text'\?"),
        ([{"text": "x", "label": "a"}, {"text": "y"}], {}, r"1 of 2 rows .* \(1 missing label; at line 2\)"),
        ([{"text": "x", "label": "a"}, {"text": " ", "label": "a"}], {}, r"1 empty text; at line 2"),
        ([{"text": "x", "label": "a"}, {"text": "\ud83d", "label": "a"}], {}, r"1 half a character .* in text"),
        ([{"text": "x", "label": "a"}, {"text": "y", "label": 0.5}], {}, r"1 float as label"),
        ([{"text": "x", "label": "a"}, {"text": "y", "label": True}], {}, r"1 bool as label"),
        ([{"text": "x", "label": "a"}], {"bad_rows": "keep"}, "bad_rows is 'keep'; use 'error' or 'drop'"),
    ],
)
def test_rows_that_will_not_do(tmp_path: Path, rows: Any, options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        load_labelled(written(tmp_path / "a.jsonl", rows), **options)


def test_bad_rows_can_be_dropped(tmp_path: Path) -> None:
    path = written(tmp_path / "a.jsonl", [{"text": "x", "label": "a"}, {"text": "y", "label": None}])
    assert len(load_labelled(path, bad_rows="drop")) == 1


def test_classes_are_numbered_in_the_order_of_their_names() -> None:
    names = class_names(["10", "9", "-1"])
    assert names == ("-1", "9", "10")
    assert class_numbers(["9", "10", "9"], names, "x") == [1, 2, 1]
    with pytest.raises(UserError, match=r"test\.csv has the label 'cars', .* has not; did you mean 'card'\?"):
        class_numbers(["card", "cars"], ["card", "pin"], "test.csv")


def rows(count: int) -> Dataset:
    return Dataset.from_dict(
        {"text": [f"text {i}" for i in range(count)], "label": ["ab"[i % 3 > 0] for i in range(count)]}
    )


def test_every_class_is_held_out_alike() -> None:
    train, held_out = split_labelled(rows(300), 60, seed=1)
    assert Counter(held_out["label"]) == {"b": 40, "a": 20} and len(train) == 240
    assert set(train["text"]).isdisjoint(held_out["text"])
    assert split_labelled(rows(300), 60, seed=1)[1].to_dict() == held_out.to_dict()
    assert split_labelled(rows(300), 60, seed=2)[1].to_dict() != held_out.to_dict()


@pytest.mark.parametrize(
    ("sizes", "size", "held_out"),
    [
        ([10] * 77, 40, [1] * 40),
        ([4] * 500, 200, [1] * 200),
        ([5, 4, 3, 2, 1], 3, [1, 1, 1]),
        ([100] * 3, 10, [4, 3, 3]),
        ([1000] + [2] * 50, 60, [10] + [1] * 50),
        ([60, 30, 9, 1], 10, [6, 3, 1]),
        ([3, 1, 1, 1], 5, [2]),
    ],
)
def test_no_more_is_held_out_than_asked_for_and_of_as_many_classes_as_can_be(
    sizes: list[int], size: int, held_out: list[int]
) -> None:
    labels = [f"class {i}" for i, count in enumerate(sizes) for _ in range(count)]
    texts = Dataset.from_dict({"text": [f"text {i}" for i in range(len(labels))], "label": labels})
    counts = [Counter(split_labelled(texts, size, seed)[1]["label"]) for seed in (1, 1, 2)]
    assert counts[0] == counts[1]
    assert all(sorted(found.values(), reverse=True) == held_out for found in counts)


def test_a_held_out_text_is_in_no_training_row() -> None:
    texts = [f"Text {i % 50}" if i < 50 else f"text  {i % 50}" for i in range(100)]
    train, held_out = split_labelled(Dataset.from_dict({"text": texts, "label": ["a", "b"] * 50}), 20, seed=1)
    clean = [{" ".join(text.lower().split()) for text in part["text"]} for part in (train, held_out)]
    assert clean[0].isdisjoint(clean[1])


def test_a_class_is_never_held_out_whole() -> None:
    few = Dataset.from_dict({"text": ["a", "b", "c", "d"], "label": ["x", "x", "x", "rare"]})
    train, held_out = split_labelled(few, 2, seed=1)
    assert "rare" in train["label"][:] and len(held_out) == 2
    with pytest.raises(UserError, match="Cannot hold out 4 of 4 rows; hold out 1 to 3"):
        split_labelled(few, 4, seed=1)
    same = Dataset.from_dict({"text": ["a", "A", "b", "c"], "label": ["x", "x", "y", "y"]})
    with pytest.raises(UserError, match="every text of the class 'x' would be held out"):
        split_labelled(same, 2, seed=1)
