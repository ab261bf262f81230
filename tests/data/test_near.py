"""Near-duplicates: what is one, what is none, and that none is missed, against a comparison of all pairs."""

from __future__ import annotations

from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from matryoshka_st.data import near
from matryoshka_st.data.near import NearIndex, within_edits
from matryoshka_st.errors import UserError

SENTENCE = "a small dog runs along the wet beach at dawn"
PASSAGE = "the enzyme binds two copper ions and so protects the cell wall from damage by light"


def is_near(left: str, right: str, threshold: float = 0.8) -> bool:
    return len(NearIndex([right], threshold).near([left])[0]) == 1


def edits(left: tuple[str, ...], right: tuple[str, ...]) -> int:
    @cache
    def first(i: int, j: int) -> int:
        if not i or not j:
            return i + j
        same = first(i - 1, j - 1) + (left[i - 1] != right[j - 1])
        return min(same, first(i - 1, j) + 1, first(i, j - 1) + 1)

    return first(len(left), len(right))


def slow_near(left: str, right: str, threshold: float) -> bool:
    """The definition, without trigrams to look up and without a matrix."""
    words = tuple(left.split()), tuple(right.split())
    shorter, longer = sorted(words, key=len)
    trigrams = [set(zip(text, text[1:], text[2:], strict=False)) for text in words]
    shared = len(trigrams[0] & trigrams[1])
    contained = len(shorter) >= 13 and shared >= threshold * (len(shorter) - 2)
    return contained or (len(shorter) >= 8 and edits(*words) <= (1 - threshold) * len(longer) + 1e-9)


@pytest.mark.parametrize(
    "other",
    [
        "a small cat runs along the wet beach at dawn",
        "a small dog runs along the beach at dawn",
        "a small brown dog runs along the wet beach at dawn",
        "a big dog walks along the wet beach at dawn",
        f"{SENTENCE} today",
    ],
    ids=["one changed", "one gone", "one more", "two changed", "one behind"],
)
def test_a_word_in_five_may_differ(other: str) -> None:
    assert is_near(SENTENCE, other)
    assert is_near(other, SENTENCE)


@pytest.mark.parametrize(
    "other",
    [
        "a big cat walks along the wet beach at dawn",
        "at dawn along the wet beach a small dog runs",
        "two engineers discuss the budget of a bridge over the river",
        "a small dog runs along the wet road while children play with a ball",
    ],
    ids=["three changed", "another order", "unrelated", "same beginning"],
)
def test_other_sentences_are_not_near(other: str) -> None:
    assert not is_near(SENTENCE, other)


def test_the_threshold_moves_the_line() -> None:
    two_changed = "a big dog walks along the wet beach at dawn"
    assert is_near(SENTENCE, two_changed, 0.8)
    assert not is_near(SENTENCE, two_changed, 0.81)


def test_short_texts_are_near_nothing() -> None:
    assert not is_near("what is the capital city of france", "what is the capital city of spain")
    assert is_near("what is the capital city of france today", "what is the capital city of spain today")


def test_a_passage_within_a_longer_text() -> None:
    around = f"we show that in most plants {PASSAGE} which had been a matter of debate for more than ten years"
    assert is_near(PASSAGE, around)
    assert is_near(around, PASSAGE)
    start = " ".join(PASSAGE.split()[:12])
    assert not is_near(start, around)


def test_a_repeated_trigram_is_no_passage() -> None:
    assert not is_near("ha " * 14, f"{PASSAGE} ha ha ha ha")


WORDS = st.lists(st.sampled_from("abcd"), max_size=18).map(" ".join)


@given(st.lists(WORDS, max_size=12), st.lists(WORDS, max_size=12), st.sampled_from([0.8, 0.85, 0.9, 1.0]))
@settings(deadline=None, max_examples=200)
def test_no_pair_is_missed_and_none_is_made_up(texts: list[str], others: list[str], threshold: float) -> None:
    left, right = NearIndex(texts, threshold).near(others)
    expected = [(i, j) for i, a in enumerate(others) for j, b in enumerate(texts) if slow_near(a, b, threshold)]
    assert sorted(zip(left.tolist(), right.tolist(), strict=True)) == expected


@given(st.data(), st.lists(st.sampled_from("abcdefghij"), min_size=8, max_size=40), st.sampled_from([0.8, 0.85, 0.9]))
@settings(deadline=None, max_examples=200)
def test_a_text_edited_within_the_threshold_is_found(data: st.DataObject, words: list[str], threshold: float) -> None:
    changed = list(words)
    for _ in range(int((1 - threshold) * len(words) + 1e-9)):
        changed[data.draw(st.integers(0, len(words) - 1))] = data.draw(st.sampled_from("xyz"))
    assert is_near(" ".join(changed), " ".join(words), threshold)


def test_pieces_of_any_size_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [f"{SENTENCE} number {i} of many" for i in range(30)]
    index = NearIndex(texts, 0.8)
    left, right = index.near(texts)
    assert len(left) == 900
    monkeypatch.setattr(near, "BATCH_TEXTS", 7)
    monkeypatch.setattr(near, "LARGEST_PRODUCT", 50)
    again = index.near(texts)
    assert sorted(zip(left, right, strict=True)) == sorted(zip(*again, strict=True))


@given(st.lists(st.integers(0, 3), max_size=9), st.lists(st.integers(0, 3), max_size=9), st.integers(0, 9))
def test_edits_are_counted(left: list[int], right: list[int], limit: int) -> None:
    distance = edits(tuple(map(str, left)), tuple(map(str, right)))
    assert within_edits(left, right, limit) == (distance <= limit)


@pytest.mark.parametrize("threshold", [0.79, 1.1, float("nan")])
def test_thresholds_that_would_miss_pairs_are_refused(threshold: float) -> None:
    with pytest.raises(UserError, match=rf"near_threshold is {threshold:g}; give 0.8 to 1"):
        NearIndex([SENTENCE], threshold)
