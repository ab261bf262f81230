"""In-training evaluators: one encoding, every dim, names the trainer can select on."""

from __future__ import annotations

import random
from typing import Any

import pytest
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.evaluation import (
    EmbeddingSimilarityEvaluator,
    InformationRetrievalEvaluator,
)

from matryoshka_st.errors import UserError
from matryoshka_st.evaluation.evaluator import MatryoshkaRetrievalEvaluator, MatryoshkaSTSEvaluator

WORDS = ["red", "green", "fish", "tree", "runs", "sleeps", "house", "old", "new", "sea"]


def sentences(count: int, seed: int) -> list[str]:
    rng = random.Random(seed)
    return [f"{' '.join(rng.choices(WORDS, k=5))} {i}" for i in range(count)]


class Counting:
    """Counts the texts that pass through the model's own forward."""

    def __init__(self, model: SentenceTransformer) -> None:
        self.rows = 0
        model[0].register_forward_pre_hook(self._count)

    def _count(self, module: Any, arguments: tuple[dict, ...]) -> None:
        self.rows += len(arguments[0]["input_ids"])


def test_sts_equals_sentence_transformers_at_each_dim_and_encodes_each_text_once(
    tiny_model: SentenceTransformer,
) -> None:
    a, b = sentences(20, 1), sentences(20, 2)
    gold = [float(i % 7) for i in range(20)]
    counting = Counting(tiny_model)
    ours = MatryoshkaSTSEvaluator(a, b, gold, dims=[32, 8], name="sts")(tiny_model)
    assert counting.rows == len({*a, *b})
    for dim in (8, 32):
        theirs = EmbeddingSimilarityEvaluator(a, b, gold, truncate_dim=dim, name="x", write_csv=False)(tiny_model)
        assert ours[f"sts-{dim}_spearman_cosine"] == pytest.approx(theirs["x_spearman_cosine"], abs=1e-6)
    assert ours["sts-mean_spearman_cosine"] == pytest.approx(
        (ours["sts-8_spearman_cosine"] + ours["sts-32_spearman_cosine"]) / 2
    )


def test_retrieval_equals_sentence_transformers_at_each_dim_and_encodes_each_text_once(
    tiny_model: SentenceTransformer,
) -> None:
    queries, positives = sentences(40, 3), sentences(40, 4)
    queries[1] = queries[0]
    counting = Counting(tiny_model)
    evaluator = MatryoshkaRetrievalEvaluator(queries, positives, dims=[32, 4], name="dev")
    ours = evaluator(tiny_model)
    assert counting.rows == len(set(queries)) + len(positives)
    relevant = {q: {p for query, p in zip(queries, positives, strict=True) if query == q} for q in queries}
    for dim in (4, 32):
        theirs = InformationRetrievalEvaluator(
            {q: q for q in relevant}, {p: p for p in positives}, relevant, truncate_dim=dim, name="x", write_csv=False
        )(tiny_model)
        assert ours[f"dev-{dim}_cosine_ndcg@10"] == pytest.approx(theirs["x_cosine_ndcg@10"], abs=1e-6)
    assert evaluator.primary_metric in ours


def test_scores_are_kept_for_the_model_card(tiny_model: SentenceTransformer) -> None:
    evaluator = MatryoshkaRetrievalEvaluator(["a", "b"], ["c", "d"], dims=[8])
    evaluator(tiny_model)
    assert evaluator in tiny_model.model_card_data.eval_results_dict


def test_lengths_must_agree() -> None:
    with pytest.raises(UserError, match=r"as many first sentences \(1\) as second \(2\) and scores \(2\)"):
        MatryoshkaSTSEvaluator(["a"], ["b", "c"], [1.0, 2.0], dims=[8])
    with pytest.raises(UserError, match=r"as many queries \(0\) as positives \(0\), one or more"):
        MatryoshkaRetrievalEvaluator([], [], dims=[8])
