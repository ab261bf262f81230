"""Searches beside the same cascade in plain numpy, and beside faiss's own exact search."""

from __future__ import annotations

import faiss
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from matryoshka_st.retrieval import AdaptiveRetriever, FunnelRetriever, rerank
from tests.retrieval.oracle import corpus, cut, first_stage, retrieve

COUNT, WIDTH = 400, 48
PRECISIONS = ["float32", "float16", "int8", "binary"]


def exact(vectors: np.ndarray, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    index = faiss.IndexFlatIP(vectors.shape[1])
    index.add(vectors)
    scores, positions = index.search(queries, k)
    return positions, scores


def unit(x: np.ndarray) -> np.ndarray:
    return (x / np.linalg.norm(x.astype(np.float64), axis=1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize("metric", ["cosine", "dot"])
@pytest.mark.parametrize("precision", ["float32", "float16", "int8"])
@pytest.mark.parametrize("queries", [1, 23])
def test_two_stages_are_those_of_numpy(metric: str, precision: str, queries: int) -> None:
    documents, asked = corpus(COUNT, WIDTH, queries)
    retriever = AdaptiveRetriever.build(documents, shortlist_dim=12, shortlist=30, metric=metric, precision=precision)
    ids, scores = retrieve(documents, asked, [12, WIDTH], [30], 10, metric, precision)
    hits = retriever.search(asked, 10)
    np.testing.assert_array_equal(hits.ids, ids)
    np.testing.assert_allclose(hits.scores, scores, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("metric", ["cosine", "dot"])
@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_a_funnel_is_that_of_numpy(metric: str, precision: str) -> None:
    documents, asked = corpus(COUNT, WIDTH)
    dims, shortlists = [6, 12, 24, 40], [120, 50, 20]
    retriever = FunnelRetriever.build(documents, dims=dims, shortlists=shortlists, metric=metric, precision=precision)
    ids, scores = retrieve(documents, asked, dims, shortlists, 8, metric, precision)
    hits = retriever.search(asked, 8)
    np.testing.assert_array_equal(hits.ids, ids)
    np.testing.assert_allclose(hits.scores, scores, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dim", [5, 12, 40, WIDTH])
def test_binary_candidates_are_nearest_by_signs(dim: int) -> None:
    documents, asked = corpus(COUNT, WIDTH)
    retriever = AdaptiveRetriever.build(documents, shortlist_dim=dim, shortlist=60, precision="binary")
    agreement = first_stage(documents, asked, dim, "cosine", "binary")
    cosines = cut(asked, WIDTH, "cosine") @ cut(documents, WIDTH, "cosine").T
    last = -np.sort(-agreement, axis=1)[:, 59:60]
    certain = np.where(agreement > last, cosines, -np.inf)  # of those tied with the last one, any may be taken
    at_least = -np.sort(-certain, axis=1)[:, :10]
    hits = retriever.search(asked, 10)
    assert (np.take_along_axis(agreement, hits.ids, axis=1) >= last).all()
    assert (hits.scores >= at_least - 1e-6).all()
    np.testing.assert_allclose(hits.scores, np.take_along_axis(cosines, hits.ids, axis=1), atol=1e-6)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_graph_finds_what_the_flat_shortlist_finds(precision: str) -> None:
    documents, asked = corpus(COUNT, WIDTH)
    options = {"shortlist_dim": 24, "shortlist": 100, "precision": precision}
    flat = AdaptiveRetriever.build(documents, **options).search(asked, 5)
    graph = AdaptiveRetriever.build(documents, index="hnsw", **options).search(asked, 5)
    assert (flat.ids == graph.ids).mean() > 0.95


@pytest.mark.parametrize("queries", [1, 19, 20, 64])
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("shortlist", [COUNT, 10 * COUNT])
def test_a_shortlist_of_the_whole_corpus_is_faiss_exact(queries: int, precision: str, shortlist: int) -> None:
    documents, asked = corpus(COUNT, WIDTH, queries)
    documents = unit(np.concatenate([documents[:300], documents[:100]]))  # every tie that equal texts make
    asked = unit(asked)
    retriever = AdaptiveRetriever.build(documents, shortlist_dim=12, shortlist=shortlist, precision=precision)
    positions, scores = exact(documents, asked, 25)
    hits = retriever.search(asked, 25)
    np.testing.assert_array_equal(hits.ids, positions)
    np.testing.assert_array_equal(hits.scores, scores)


def test_exact_after_adding_deleting_and_across_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rerank, "BLOCK", 1024)
    documents, asked = corpus(3000, 16, 30)
    documents, asked = unit(documents), unit(asked)
    retriever = AdaptiveRetriever.build(documents[:2500], shortlist_dim=4, shortlist=3000)
    retriever.add(documents[2500:])
    np.testing.assert_array_equal(retriever.search(asked, 20).ids, exact(documents, asked, 20)[0])
    retriever.delete(np.arange(0, 3000, 3))
    left = np.flatnonzero(np.arange(3000) % 3)
    np.testing.assert_array_equal(retriever.search(asked, 20).ids, left[exact(documents[left], asked, 20)[0]])


@settings(deadline=None, max_examples=60)
@given(
    documents=hnp.arrays(np.int8, st.tuples(st.integers(1, 40), st.just(4)), elements=st.integers(-2, 2)),
    queries=hnp.arrays(np.int8, st.tuples(st.integers(1, 25), st.just(4)), elements=st.integers(-2, 2)),
    k=st.integers(1, 40),
)
def test_ties_of_the_whole_corpus_are_those_of_faiss(documents: np.ndarray, queries: np.ndarray, k: int) -> None:
    k = min(k, len(documents))
    retriever = AdaptiveRetriever.build(documents, shortlist_dim=2, shortlist=max(k, len(documents)), metric="dot")
    positions, scores = exact(documents.astype(np.float32), queries.astype(np.float32), k)
    hits = retriever.search(queries, k)
    np.testing.assert_array_equal(hits.ids, positions)
    np.testing.assert_array_equal(hits.scores, scores)


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 2**32 - 1), length=st.integers(10, 60), precision=st.sampled_from(PRECISIONS))
def test_a_longer_shortlist_never_scores_lower(seed: int, length: int, precision: str) -> None:
    documents, asked = corpus(60, 16, 4, seed)
    retriever = AdaptiveRetriever.build(documents, shortlist_dim=8, shortlist=length, precision=precision)
    short, long = retriever.search(asked, 10), retriever.search(asked, 10, shortlists=[60])
    assert (long.scores >= short.scores - 1e-6).all()


def test_leading_stages_as_long_as_the_corpus_are_skipped() -> None:
    documents, asked = corpus(COUNT, WIDTH)
    funnel = FunnelRetriever.build(documents, dims=[6, 12, WIDTH], shortlists=[COUNT, 30], precision="binary")
    ids, _ = retrieve(documents, asked, [12, WIDTH], [30], 10, "cosine", "float32")
    np.testing.assert_array_equal(funnel.search(asked, 10).ids, ids)


def test_batches_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    documents, asked = corpus(COUNT, WIDTH)
    retriever = AdaptiveRetriever.build(documents, shortlist_dim=12, shortlist=30)
    whole = retriever.search(asked, 10)
    monkeypatch.setattr("matryoshka_st.retrieval.cascade._CANDIDATES", 5 * 30)
    np.testing.assert_array_equal(retriever.search(asked, 10).ids, whole.ids)


def test_the_last_dim_ranks() -> None:
    documents, asked = corpus(COUNT, WIDTH)
    retriever = AdaptiveRetriever.build(documents, shortlist_dim=12, shortlist=COUNT, rerank_dim=24)
    positions, scores = exact(unit(documents[:, :24]), unit(asked[:, :24]), 10)
    hits = retriever.search(asked, 10)
    np.testing.assert_array_equal(hits.ids, positions)
    np.testing.assert_allclose(hits.scores, scores, atol=1e-6)


def test_no_queries_find_nothing_and_zero_vectors_do_not_break() -> None:
    documents, _ = corpus(COUNT, WIDTH)
    documents[3] = 0
    retriever = AdaptiveRetriever.build(documents, shortlist_dim=12, shortlist=30)
    for shortlists in ([30], [COUNT]):
        assert retriever.search(np.empty((0, WIDTH)), 7, shortlists=shortlists).ids.shape == (0, 7)
    assert (retriever.search(np.zeros((2, WIDTH)), 7).scores == 0).all()


def test_numbers_of_numpy_are_numbers() -> None:
    documents, asked = corpus(COUNT, WIDTH)
    retriever = AdaptiveRetriever.build(documents, shortlist_dim=np.int64(12), shortlist=np.int32(30))
    assert retriever.search(asked, np.int64(7)).ids.shape == (23, 7)
