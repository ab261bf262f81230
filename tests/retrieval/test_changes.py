"""Adding and deleting: what is left is searched as if it had been indexed alone."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from matryoshka_st.errors import UserError
from matryoshka_st.retrieval import AdaptiveRetriever, FunnelRetriever
from tests.retrieval.oracle import corpus

OPTIONS = {"shortlist_dim": 12, "shortlist": 40}


@pytest.mark.parametrize("precision", ["float32", "float16", "binary"])
def test_added_in_parts_is_built_at_once(precision: str) -> None:
    documents, asked = corpus()
    whole = AdaptiveRetriever.build(documents, precision=precision, **OPTIONS)
    parts = AdaptiveRetriever.build(documents[:150], precision=precision, **OPTIONS)
    for start in range(150, 400, 50):
        parts.add(documents[start : start + 50])
    assert len(parts) == 400
    found, expected = parts.search(asked, 10), whole.search(asked, 10)
    np.testing.assert_array_equal(found.ids, expected.ids)
    np.testing.assert_allclose(found.scores, expected.scores, atol=1e-6)


@pytest.mark.parametrize("index", ["flat", "hnsw"])
@pytest.mark.parametrize("precision", ["float32", "float16", "int8", "binary"])
def test_deleted_vectors_are_never_found(index: str, precision: str) -> None:
    documents, asked = corpus()
    retriever = AdaptiveRetriever.build(documents, index=index, precision=precision, **OPTIONS)
    nearest = np.unique(retriever.search(asked, 3).ids)
    retriever.delete(nearest)
    assert len(retriever) == 400 - len(nearest)
    assert not np.isin(retriever.search(asked, 10).ids, nearest).any()
    assert not np.isin(retriever.ids, nearest).any()


@pytest.mark.parametrize("index", ["flat", "hnsw"])
def test_deleting_and_adding_again_finds_them_again(index: str) -> None:
    documents, asked = corpus()
    options = {"index": index, "shortlist_dim": 24, "shortlist": 100}
    retriever = AdaptiveRetriever.build(documents, **options)
    before = retriever.search(asked, 5).ids
    retriever.delete(np.arange(0, 400, 5))
    retriever.add(documents[::5], np.arange(0, 400, 5))
    assert (retriever.search(asked, 5).ids == before).mean() > 0.97


def test_a_graph_with_many_gaps_is_built_anew_and_forgets_them() -> None:
    documents, asked = corpus()
    retriever = AdaptiveRetriever.build(documents, index="hnsw", **OPTIONS)
    retriever.delete(np.arange(100))
    with_gaps = retriever.ram_bytes
    retriever.delete(np.arange(100, 110))
    assert retriever.ram_bytes < 0.85 * with_gaps
    fresh = AdaptiveRetriever.build(documents[110:], np.arange(110, 400), index="hnsw", **OPTIONS)
    np.testing.assert_array_equal(retriever.search(asked, 10).ids, fresh.search(asked, 10).ids)


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.tuples(st.booleans(), st.integers(1, 15)), min_size=1, max_size=8), st.randoms(use_true_random=False)
)
def test_any_sequence_of_changes_equals_a_fresh_index(changes: list[tuple[bool, int]], random: object) -> None:
    documents, asked = corpus(200, 16, 5)
    retriever = FunnelRetriever.build(documents[:40], dims=[4, 8, 16], shortlists=[20, 10])
    alive, following = list(range(40)), 40
    for add, count in changes:
        if add:
            retriever.add(documents[following : following + count], range(following, following + count))
            alive += range(following, following + count)
            following += count
        else:
            gone = random.sample(alive, min(count, len(alive) - 10))  # type: ignore[attr-defined]
            retriever.delete(gone)
            alive = [one for one in alive if one not in gone]
    assert retriever.ids.tolist() == alive
    fresh = FunnelRetriever.build(documents[alive], alive, dims=[4, 8, 16], shortlists=[20, 10])
    found, expected = retriever.search(asked, 5), fresh.search(asked, 5)
    np.testing.assert_array_equal(found.ids, expected.ids)
    np.testing.assert_allclose(found.scores, expected.scores, atol=1e-6)


def test_texts_are_ids_too() -> None:
    documents, asked = corpus()
    names = [f"paper {i}" for i in range(400)]
    retriever = AdaptiveRetriever.build(documents[:399], names[:399], **OPTIONS)
    retriever.delete(["paper 7", "paper 200"])
    retriever.add(documents[399:], ["a much longer name than all the others"])
    assert retriever.ids[-1] == "a much longer name than all the others"
    assert retriever.search(documents[399:], 1).ids.tolist() == [["a much longer name than all the others"]]
    assert retriever.search(asked, 10).ids.dtype.kind == "U"


def test_an_index_can_be_emptied_and_filled_again() -> None:
    documents, asked = corpus()
    retriever = AdaptiveRetriever.build(documents, **OPTIONS)
    retriever.delete(np.arange(400))
    assert len(retriever) == 0
    with pytest.raises(UserError, match=r"The index is empty; add vectors before searching\."):
        retriever.search(asked, 1)
    retriever.add(documents, np.arange(400))
    fresh = AdaptiveRetriever.build(documents, **OPTIONS)
    np.testing.assert_array_equal(retriever.search(asked, 10).ids, fresh.search(asked, 10).ids)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r, x: r.add(x, [0, 1000]), r"Id 0 is in the index already; delete it first\."),
        (lambda r, x: r.add(x, [1000, 1000]), r"Id 1000 is given more than once; ids have to differ\."),
        (lambda r, x: r.add(x, [1000]), r"There are 1 ids for 2 vectors; give one id per vector\."),
        (lambda r, x: r.add(x, ["a", "b"]), r"Id 'a' is of another kind than those of the index, which are whole"),
        (lambda r, x: r.add(x, [1.5, 2.5]), r"ids are neither all whole numbers nor all texts"),
        (lambda r, x: r.add(x, [1000, "b"]), r"ids are neither all whole numbers nor all texts"),
        (lambda r, x: r.add(x[:, :20], [1000, 1001]), r"Document vectors have 20 dims, but the index has 48\."),
        (lambda r, x: r.add(np.full_like(x, np.nan)), r"Document vector 0 of 2 holds NaN, infinity or values beyond"),
        (lambda r, x: r.delete([3, 4000]), r"Id 4000 is not in the index\."),
        (lambda r, x: r.delete("abc"), r"ids is 'abc'; give a list of ids\."),
    ],
)
def test_a_change_that_fails_changes_nothing(change: object, message: str) -> None:
    documents, asked = corpus()
    retriever = AdaptiveRetriever.build(documents, **OPTIONS)
    before = retriever.search(asked, 10)
    with pytest.raises(UserError, match=message):
        change(retriever, documents[:2])  # type: ignore[operator]
    after = retriever.search(asked, 10)
    assert len(retriever) == 400
    np.testing.assert_array_equal(after.ids, before.ids)
    np.testing.assert_array_equal(after.scores, before.scores)
