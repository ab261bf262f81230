"""What tune says of a shortlist is what searching with it gives."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from rich.console import Console

from matryoshka_st.errors import UserError
from matryoshka_st.evaluation.scores import per_query_ndcg
from matryoshka_st.retrieval import AdaptiveRetriever, Tuning, tune
from matryoshka_st.retrieval.metrics import by_position, ndcg
from tests.retrieval.oracle import corpus, cut, retrieve

DIMS, LENGTHS = [4, 8, 16], [10, 20, 40, 80]


def judgements(exact: np.ndarray) -> list[dict[str, float]]:
    """Some of the nearest 20 documents of each query, and one that is far or not there."""
    random = np.random.default_rng(3)
    near = [random.choice(row[:20], 4, replace=False) for row in exact]
    return [{**{f"d{j}": float(random.integers(1, 4)) for j in row}, "elsewhere": 1.0} for row in near]


@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_recall_and_ndcg_are_those_of_numpy(precision: str) -> None:
    documents, asked = corpus()
    ranking = np.argsort(-(cut(asked, 48, "cosine") @ cut(documents, 48, "cosine").T), axis=1)
    ids, exact, qrels = [f"d{i}" for i in range(400)], ranking[:, :5], judgements(ranking)
    found = tune(
        documents, asked, ids=ids, qrels=qrels, k=5, dims=DIMS, lengths=LENGTHS, precisions=[precision], target=0.5
    )
    whole = ndcg(np.array(ids)[exact], qrels).mean()
    assert found.exact_ndcg == pytest.approx(whole)
    assert len(found.trade_offs) == len(DIMS) * len(LENGTHS)
    for one in found.trade_offs:
        hits, _ = retrieve(documents, asked, [one.shortlist_dim, 48], [one.shortlist], 5, "cosine", precision)
        recall = np.mean([np.isin(row, best).mean() for row, best in zip(hits, exact, strict=True)])
        assert one.recall == pytest.approx(recall)
        assert one.ndcg_share == pytest.approx(ndcg(np.array(ids)[hits], qrels).mean() / whole)
        assert one.operations == (400 * one.shortlist_dim + one.shortlist * 48, 0)
        assert one.ratio == pytest.approx(400 * 48 / one.operations.total)


@pytest.mark.parametrize("index", ["flat", "hnsw"])
def test_the_best_reaches_the_target_with_the_fewest_operations(index: str) -> None:
    documents, asked = corpus()
    found = tune(
        documents, asked, target=0.9, dims=DIMS, lengths=LENGTHS, precisions=["float32", "binary"], index=index
    )
    assert found.best.recall >= 0.9
    good = [one.operations.total for one in found.trade_offs if one.recall >= 0.9]
    assert found.best.operations.total == min(good)
    retriever = AdaptiveRetriever.build(documents, **found.options)
    exact = AdaptiveRetriever.build(documents, shortlist_dim=4, shortlist=400).search(asked, 10)
    hits = retriever.search(asked, 10)
    assert np.mean(hits.scores >= exact.scores[:, -1:] - 1e-6) == pytest.approx(found.best.recall, abs=0.02)


def test_a_graph_costs_what_it_visits() -> None:
    documents, asked = corpus(2000)
    flat, graph = (tune(documents, asked, dims=[16], lengths=[20], index=index) for index in ("flat", "hnsw"))
    assert 20 * 16 + 20 * 48 < graph.trade_offs[0].operations.total < flat.trade_offs[0].operations.total


def test_equal_documents_do_not_cost_recall() -> None:
    documents, asked = corpus(100)
    twice = np.concatenate([documents, documents])
    found = tune(twice, asked, k=5, dims=[16], lengths=[200])
    assert found.trade_offs[0].recall == 1


def test_the_table_shows_every_dim_and_length() -> None:
    documents, asked = corpus()
    found = tune(documents, asked, target=0.9, dims=DIMS, lengths=LENGTHS)
    console = Console(width=140, record=True)
    console.print(found.table("trade-off"))
    text = console.export_text()
    assert all(f" {number} " in text for number in [*DIMS, *LENGTHS])
    assert all(f"{one.recall:.4f} ({one.ratio:.1f}x)" in text for one in found.trade_offs)


def test_defaults_are_the_usual_ladder_and_lengths_up_to_the_corpus() -> None:
    documents, asked = corpus()
    found = tune(documents, asked, precisions=["float32", "binary"])
    tried = {(one.precision, one.shortlist_dim) for one in found.trade_offs}
    assert tried == {("float32", dim) for dim in (8, 16, 32)} | {("binary", dim) for dim in (8, 16, 32, 48)}
    assert sorted({one.shortlist for one in found.trade_offs}) == [10, 20, 50, 100, 200, 400]


def test_ndcg_is_that_of_trec_eval() -> None:
    random = np.random.default_rng(0)
    ids = np.array([f"d{i}" for i in range(30)])
    qrels = [{f"d{j}": int(random.integers(0, 4)) for j in random.choice(40, 8, replace=False)} for _ in range(20)]
    ranking = np.array([random.permutation(30)[:10] for _ in range(20)])
    results = {str(i): {ids[j]: 1.0 - r / 10 for r, j in enumerate(row)} for i, row in enumerate(ranking)}
    expected = per_query_ndcg(results, {str(i): judged for i, judged in enumerate(qrels)})
    assert ndcg(ids[ranking], qrels) == pytest.approx([expected[str(i)] for i in range(20)])
    assert ndcg(ranking, by_position(qrels, ids)) == pytest.approx([expected[str(i)] for i in range(20)])


def test_ndcg_without_gains_is_zero_and_missing_documents_count_nothing() -> None:
    assert ndcg(np.array([[-1, 0]]), by_position([{"b": 1.0, "elsewhere": 1.0}], np.array(["a", "b"]))).tolist() == [0]
    assert ndcg(np.array([[0, 1]]), [{}]).tolist() == [0]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"queries": np.ones((0, 48))},
            r"There are no queries to tune on; give some that results are not reported",
        ),
        ({"queries": np.ones((3, 40))}, r"Query vectors have 40 dims, but the index has 48\."),
        ({"k": 401}, r"k is 401, but there are 400 vectors; use 1 to 400\."),
        ({"target": 1.5}, r"target is 1\.5; give a share above 0 and up to 1\."),
        ({"lengths": [5]}, r"A shortlist of 5 is shorter than k = 10; use 10 or more\."),
        ({"dims": [64]}, r"The vectors have 48 dims, so 64 is no prefix of them; use 1 to 48\."),
        ({"qrels": [{0: 1}]}, r"There are 1 judgements for 23 queries; give one mapping per query\."),
        ({"qrels": [{"nowhere": 1}] * 23}, r"Exact search finds no relevant document, so there is no nDCG to keep; "),
        ({"qrels": [{}] * 23}, r"Exact search finds no relevant document, so there is no nDCG to keep; leave"),
        ({"lengths": []}, r"lengths is empty; give at least one\."),
        ({"precisions": []}, r"precisions is empty; give at least one\."),
    ],
)
def test_bad_input(given: dict[str, Any], message: str) -> None:
    documents, asked = corpus()
    options = {"queries": asked, **given}
    with pytest.raises(UserError, match=message):
        tune(documents, options.pop("queries"), **options)


def test_a_target_out_of_reach_names_what_comes_nearest() -> None:
    documents, asked = corpus()
    found = tune(documents, asked, target=1.0, dims=[4], lengths=[10, 20])
    assert isinstance(found, Tuning)
    with pytest.raises(UserError, match=r"No shortlist reaches 1; the best is 0\.\d+, with 20 candidates by 4 dims"):
        _ = found.best
