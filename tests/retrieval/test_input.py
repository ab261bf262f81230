"""Bad input is one sentence that says what was wrong and what is allowed."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest

from matryoshka_st.errors import OptionalDependencyError, UserError
from matryoshka_st.retrieval import AdaptiveRetriever, FunnelRetriever
from tests.retrieval.oracle import corpus

WITH_NAN = np.where(np.arange(400)[:, None] == 7, np.nan, 1.0) * np.ones((400, 48))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"shortlist_dim": 0}, r"The vectors have 48 dims, so 0 is no prefix of them; use 1 to 48\."),
        ({"shortlist_dim": 49}, r"The vectors have 48 dims, so 49 is no prefix of them; use 1 to 48\."),
        ({"rerank_dim": 64}, r"The vectors have 48 dims, so 64 is no prefix of them; use 1 to 48\."),
        ({"shortlist_dim": 48}, r"dims is \[48, 48\], but each has to be larger than the one before\."),
        ({"rerank_dim": 8}, r"dims is \[12, 8\], but each has to be larger than the one before\."),
        ({"shortlist_dim": 12.0}, r"12\.0 is no dim; give a whole number\."),
        ({"shortlist": 0}, r"shortlists is \[0\]; lengths are 1 or more and fall, for example 400"),
        ({"shortlist": True}, r"True is no length of a shortlist; give a whole number\."),
        ({"metric": "cosin"}, r"There is no metric 'cosin'; did you mean 'cosine'\?; use cosine or dot\."),
        (
            {"precision": "int4"},
            r"There is no precision 'int4'; did you mean 'int8'\?; use float32, float16, int8",
        ),
        ({"index": "ivf"}, r"There is no index 'ivf'; use flat or hnsw\."),
        (
            {"vectors": np.ones(48)},
            r"Document vectors have shape \[48\] and type float64; give numbers of shape",
        ),
        ({"vectors": np.array([["a"]])}, r"Document vectors have shape \[1, 1\] and type <U1; give numbers of shape"),
        ({"vectors": np.ones((0, 48))}, r"There are no vectors to index; give at least one\."),
        (
            {"vectors": WITH_NAN},
            r"Document vector 7 of 400 holds NaN, infinity or values beyond float32; leave",
        ),
        ({"vectors": np.full((2, 48), 1e30)}, r"Document vector 0 of 2 holds NaN, infinity or values beyond float32"),
        ({"ids": [1, 2]}, r"There are 2 ids for 400 vectors; give one id per vector\."),
        ({"ids": [5] * 400}, r"Id 5 is given more than once; ids have to differ\."),
        ({"ids": [2**63] * 400}, r"Id 9223372036854775808 is above 2\^63 - 1, the largest whole number an id"),
        ({"ids": np.arange(400, dtype=np.uint64) + np.uint64(2**63)}, r"Id 9223372036854776207 is above 2\^63 - 1,"),
        ({"ids": np.ones((400, 1), dtype=int)}, r"ids are neither all whole numbers nor all texts; give a flat list"),
    ],
)
def test_an_index_that_cannot_be(given: dict[str, Any], message: str) -> None:
    options = {"vectors": corpus()[0], "shortlist_dim": 12, "shortlist": 40, **given}
    with pytest.raises(UserError, match=message):
        AdaptiveRetriever.build(options.pop("vectors"), **options)


@pytest.mark.parametrize(
    ("dims", "shortlists", "message"),
    [
        ([12], [], r"dims is \[12\]; give at least two, for example 64 384\."),
        ([12, 24, 48], [40], r"There are 1 shortlists for 3 dims; give one length per dim but the last, for example"),
        (
            [12, 24, 48],
            [40, 50],
            r"shortlists is \[40, 50\]; lengths are 1 or more and fall, for example 400",
        ),
        ([12, 24, 24], [40, 20], r"dims is \[12, 24, 24\], but each has to be larger than the one before\."),
    ],
)
def test_a_funnel_that_cannot_be(dims: list[int], shortlists: list[int], message: str) -> None:
    with pytest.raises(UserError, match=message):
        FunnelRetriever.build(corpus()[0], dims=dims, shortlists=shortlists)


@pytest.mark.parametrize(
    ("queries", "k", "message"),
    [
        (np.ones((2, 47)), 5, r"Query vectors have 47 dims, but the index has 48\."),
        (
            np.ones(48),
            5,
            r"Query vectors have shape \[48\] and type float64; give numbers of shape \[n, 48\], one",
        ),
        (WITH_NAN, 5, r"Query vector 7 of 400 holds NaN, infinity or values beyond float32; leave it out or repair"),
        (np.ones((2, 48)), 401, r"k is 401, but the index holds 400 vectors; use 1 to 400\."),
        (np.ones((2, 48)), 0, r"k is 0, but the index holds 400 vectors; use 1 to 400\."),
        (np.ones((2, 48)), 2.5, r"k is 2\.5, but the index holds 400 vectors; use 1 to 400\."),
        (np.ones((2, 48)), 41, r"k is 41, but the last shortlist keeps only 40; ask for fewer or pass longer shortl"),
    ],
)
def test_a_search_that_cannot_be(queries: np.ndarray, k: Any, message: str) -> None:
    retriever = AdaptiveRetriever.build(corpus()[0], shortlist_dim=12, shortlist=40)
    with pytest.raises(UserError, match=message):
        retriever.search(queries, k)


def test_other_lengths_are_checked_too() -> None:
    retriever = AdaptiveRetriever.build(corpus()[0], shortlist_dim=12, shortlist=40)
    with pytest.raises(UserError, match=r"There are 2 shortlists for 2 dims; give one length per dim but the last"):
        retriever.search(corpus()[1], 5, shortlists=[40, 20])


@pytest.mark.parametrize("vectors", [np.float64, np.float16, np.int32, list])
def test_any_kind_of_numbers_can_be_indexed(vectors: Any) -> None:
    documents, asked = (np.round(x * 4) for x in corpus())
    documents[(documents == 0).all(axis=1)] = 1
    given = documents.tolist() if vectors is list else documents.astype(vectors)
    expected = AdaptiveRetriever.build(documents, shortlist_dim=12, shortlist=40).search(asked, 5)
    found = AdaptiveRetriever.build(given, shortlist_dim=12, shortlist=40).search(asked, 5)
    np.testing.assert_array_equal(found.scores, expected.scores)


def test_without_faiss_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(OptionalDependencyError, match=r"pip install 'matryoshka-st\[retrieval\]'"):
        AdaptiveRetriever.build(corpus()[0], shortlist_dim=12)
