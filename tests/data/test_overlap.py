"""Rows that hold evaluation texts: word for word, nearly, on both sides, and not by chance."""

from __future__ import annotations

import numpy as np
import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from matryoshka_st.data.overlap import Match, OverlapIndex
from matryoshka_st.data.words import only_words

TASKS = {
    "Dogs": ["A small dog runs along the wet beach at dawn.", "Two dogs play with a ball.", "yes"],
    "Cooks": ["The cook cuts an onion into thin slices.", "Two dogs play with a ball."],
}


@pytest.fixture
def index() -> OverlapIndex:
    return OverlapIndex(TASKS, 0.8)


def pairs(*rows: tuple[str, ...]) -> Dataset:
    names = ["anchor", "positive", "negative"]
    return Dataset.from_dict(dict(zip(names, map(list, zip(*rows, strict=True)), strict=False)))


@pytest.mark.parametrize(
    "text",
    ["two dogs play with a ball", "TWO DOGS, play - with a 'ball'?!", "\uff34wo\u00a0dogs\n play with a ball"],
    ids=["plain", "case and punctuation", "width and spaces"],
)
def test_exact_whatever_the_spelling(index: OverlapIndex, text: str) -> None:
    overlap = index.compare(pairs((text, "something else"), ("another text of a row", "without a match")))
    assert overlap.exact.tolist() == [[True, True], [False, False]]
    assert not overlap.near.any()
    assert overlap.clean.tolist() == [False, True]
    assert overlap.matches == [
        Match("two dogs play with a ball", "two dogs play with a ball", ("Dogs", "Cooks"), True)
    ]


def test_near_is_not_exact(index: OverlapIndex) -> None:
    changed = "A small cat runs along the wet beach at dawn"
    overlap = index.compare(pairs((changed, "unrelated"), (TASKS["Dogs"][0], changed)))
    assert overlap.exact[:, 0].tolist() == [False, True]
    assert overlap.near[:, 0].tolist() == [True, False]
    assert not overlap.exact[:, 1].any() and not overlap.near[:, 1].any()
    assert [match.exact for match in overlap.matches] == [False, True]


def test_short_texts_match_nothing(index: OverlapIndex) -> None:
    overlap = index.compare(pairs(("yes", "Yes!"), ("Two dogs play", "with a ball")))
    assert overlap.clean.all()
    assert index.too_short == [1, 0]
    assert index.texts_of_tasks() == [2, 2]


def test_both_sides_are_of_one_task(index: OverlapIndex) -> None:
    beach, dogs = TASKS["Dogs"][:2]
    onion = TASKS["Cooks"][0]
    overlap = index.compare(pairs((beach, dogs), (beach, onion), (onion, dogs), (dogs, "nothing")))
    assert overlap.both.tolist() == [[True, False], [False, False], [False, True], [False, False]]


def test_negatives_count_too(index: OverlapIndex) -> None:
    overlap = index.compare(pairs(("an anchor", "a positive", TASKS["Cooks"][0])))
    assert overlap.exact.tolist() == [[False, True]]
    assert not overlap.both.any()


def test_evaluation_texts_are_counted_once(index: OverlapIndex) -> None:
    dogs = TASKS["Dogs"][1]
    overlap = index.compare(pairs((dogs, dogs.upper()), (dogs, "again")))
    assert len(overlap.hit) == 1
    assert index.texts_of_tasks(overlap.hit) == [1, 1]


def test_unrelated_text_is_clean(index: OverlapIndex) -> None:
    overlap = index.compare(pairs(("The quarterly report shows higher costs than planned.", "Costs rose.")))
    assert overlap.clean.all() and not len(overlap.hit) and not overlap.matches


def test_a_task_without_a_text_that_counts() -> None:
    overlap = OverlapIndex({"Words": ["yes", "no"]}, 0.8).compare(pairs(("yes", "a text of five words")))
    assert overlap.clean.all()


SENTENCES = st.lists(st.sampled_from("abcdef"), min_size=1, max_size=12).map(" ".join)


@given(st.lists(st.tuples(SENTENCES, SENTENCES), min_size=1, max_size=8), st.lists(SENTENCES, max_size=8))
@settings(deadline=None, max_examples=100)
def test_what_is_left_is_clean(rows: list[tuple[str, str]], texts: list[str]) -> None:
    index = OverlapIndex({"Task": texts}, 0.8)
    dataset = pairs(*rows)
    clean = index.compare(dataset).clean
    for row, is_clean in zip(rows, clean, strict=True):
        long_enough = [text for text in row if len(text.split()) >= 4]
        assert not is_clean or not set(long_enough) & set(texts)
    kept = dataset.select(np.flatnonzero(clean))
    assert len(kept) == 0 or index.compare(kept).clean.all()


def test_words_of_other_scripts() -> None:
    assert only_words("हिन्दी भाषा।") == "हिन्दी भाषा"
    assert only_words("Straße") == only_words("STRASSE")
    assert len(only_words("東京に行きたい").split()) == 7
