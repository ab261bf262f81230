"""Published scores: complete, unique, known to mteb, and their means are the published ones."""

from __future__ import annotations

from collections import Counter
from statistics import fmean

import mteb
import pytest

from matryoshka_st.evaluation.published import PublishedScore, published_averages, published_scores

V1 = {task.metadata.name for task in mteb.get_benchmark("MTEB(eng, v1)").tasks}
V2 = {task.metadata.name for task in mteb.get_benchmark("MTEB(eng, v2)").tasks}
ADA, SMALL, LARGE = (f"openai/text-embedding-{name}" for name in ("ada-002", "3-small", "3-large"))
NOMIC, GECKO = "nomic-ai/nomic-embed-text-v1.5", "google/text-embedding-004"


def of(model: str, dim: int, tasks: set[str], *, newest: bool = False) -> list[PublishedScore]:
    scores = published_scores(newest=newest)
    return [score for score in scores if (score.model, score.dim) == (model, dim) and score.task in tasks]


@pytest.mark.parametrize(
    ("model", "dim", "published"),
    [
        (ADA, 1536, 60.99),
        (SMALL, 1536, 62.26),
        (LARGE, 3072, 64.59),
        (LARGE, 256, 62.00),
        (NOMIC, 768, 62.28),
        (NOMIC, 512, 61.96),
        (NOMIC, 256, 61.04),
        (NOMIC, 128, 59.34),
        (NOMIC, 64, 56.10),
        (GECKO, 768, 66.31),
        (GECKO, 256, 64.37),
        ("mixedbread-ai/mxbai-embed-large-v1", 1024, 64.68),
        ("sentence-transformers/all-MiniLM-L6-v2", 384, 56.26),
        ("sentence-transformers/all-mpnet-base-v2", 768, 57.77),
        ("BAAI/bge-small-en-v1.5", 384, 62.17),
        ("google-bert/bert-base-uncased", 768, 38.33),
        ("minishlab/potion-base-8M", 256, 49.69),
    ],
)
def test_the_means_over_mteb_eng_v1_are_the_published_ones(model: str, dim: int, published: float) -> None:
    scores = of(model, dim, V1)
    assert len(scores) == len(V1) == 56
    assert round(fmean(score.score for score in scores), 2) == published


@pytest.mark.parametrize(
    ("model", "dim", "published"),
    [("google/embeddinggemma-300m", 768, 69.67), (LARGE, 3072, 66.43), ("Qwen/Qwen3-Embedding-8B", 4096, 75.23)],
)
def test_the_means_over_mteb_eng_v2_are_the_published_ones(model: str, dim: int, published: float) -> None:
    scores = of(model, dim, V2, newest=True)
    assert len(scores) == len(V2) == 41
    assert round(fmean(score.score for score in scores), 2) == published


def test_averages_agree_with_the_tasks_where_both_are_published() -> None:
    whole = [one for one in published_averages() if (one.benchmark, one.over) == ("MTEB(eng, v1)", "56 tasks")]
    for average in whole:
        if len(scores := of(average.model, average.dim, V1)) == 56:
            assert fmean(score.score for score in scores) == pytest.approx(average.score, abs=0.051)
    assert {(one.model, one.dim) for one in whole} >= {(SMALL, 512), (LARGE, 1024), (LARGE, 256), (NOMIC, 64)}


def test_a_key_has_one_score_between_0_and_100() -> None:
    scores = published_scores()
    assert max(Counter((score.model, score.dim, score.task) for score in scores).values()) == 1
    assert all(0 < score.score < 100 and score.source.startswith("results@") for score in scores)


def test_mteb_knows_every_task() -> None:
    assert {mteb.get_task(score.task).metadata.name for score in published_scores()} >= V1 | V2


def test_the_newest_value_replaces_the_old_one() -> None:
    toxic = {"ToxicConversationsClassification"}
    model = "sentence-transformers/all-MiniLM-L6-v2"
    assert [round(score.score, 2) for score in of(model, 384, toxic)] == [66.99]
    assert [round(score.score, 2) for score in of(model, 384, toxic, newest=True)] == [62.09]
    assert of(ADA, 1536, toxic, newest=True) == of(ADA, 1536, toxic)
    assert len(published_scores(newest=True)) == len(published_scores())
