"""Small tasks of every type in memory, mteb's own way to score a prefix, and a machine without a network."""

from __future__ import annotations

import random
import socket
import warnings
from collections.abc import Callable

import mteb
import pytest
from datasets import Dataset, DatasetDict
from mteb.abstasks.abstask import AbsTask
from mteb.abstasks.retrieval_dataset_loaders import RetrievalSplitData
from mteb.mocks import mock_tasks
from mteb.mocks.mock_tasks.clustering import MockClusteringTask
from mteb.models import SentenceTransformerEncoderWrapper
from sentence_transformers import SentenceTransformer

from matryoshka_st.evaluation.pairs_task import pairs_retrieval_task

TOPICS = [
    ["river", "boat", "water", "fish", "bridge"],
    ["oven", "bread", "flour", "butter", "salt"],
    ["rocket", "moon", "orbit", "engine", "star"],
]


def sentences(count: int, seed: int) -> list[str]:
    """Sentence ``i`` is about topic ``i % 3``."""
    draw = random.Random(seed)
    words = [word for topic in TOPICS for word in topic]
    return [" ".join(draw.choices(TOPICS[i % 3], k=5) + draw.choices(words, k=2)) for i in range(count)]


def _sts() -> AbsTask:
    task = mock_tasks.MockSTSTask()
    columns = {"sentence1": sentences(40, 1), "sentence2": sentences(40, 2)[::-1]}
    scores = [random.Random(3 + i).random() for i in range(40)]
    task.dataset = DatasetDict(test=Dataset.from_dict({**columns, "score": scores}))
    return task


def _classification() -> AbsTask:
    task = mock_tasks.MockClassificationTask()
    labels = [i % 3 for i in range(60)]
    task.dataset = DatasetDict(
        train=Dataset.from_dict({"text": sentences(60, 4), "label": labels}),
        test=Dataset.from_dict({"text": sentences(60, 5), "label": labels}),
    )
    return task


def _clustering() -> AbsTask:
    task = mock_tasks.LegacyMockClusteringFastTask()
    columns = {"sentences": sentences(60, 6), "labels": [i % 3 for i in range(60)]}
    task.dataset = DatasetDict(test=Dataset.from_dict(columns))
    return task


def _legacy_clustering() -> AbsTask:
    task = MockClusteringTask()
    sets = [(sentences(30, seed), [i % 3 for i in range(30)]) for seed in (14, 15)]
    task.dataset = DatasetDict(
        test=Dataset.from_dict({"sentences": [texts for texts, _ in sets], "labels": [labels for _, labels in sets]})
    )
    return task


def _summarization() -> AbsTask:
    task = mock_tasks.MockSummarizationTask()
    draw = random.Random(16)
    written, generated = sentences(40, 17), sentences(40, 18)
    columns = {
        "text": sentences(10, 19),
        "human_summaries": [written[4 * i : 4 * i + 4] for i in range(10)],
        "machine_summaries": [generated[4 * i : 4 * i + 4] for i in range(10)],
        "relevance": [[draw.random() for _ in range(4)] for _ in range(10)],
    }
    task.dataset = DatasetDict(test=Dataset.from_dict(columns))
    return task


def _bitext_mining() -> AbsTask:
    task = mock_tasks.MockBitextMiningTask()
    columns = {"sentence1": sentences(40, 20), "sentence2": sentences(40, 21)}
    task.dataset = DatasetDict(test=Dataset.from_dict(columns))
    return task


def _pair_classification() -> AbsTask:
    task = mock_tasks.MockPairClassificationTask()
    columns = {"sentence1": sentences(40, 7), "sentence2": sentences(41, 8)[1:]}
    task.dataset = DatasetDict(test=Dataset.from_dict({**columns, "labels": [int(i % 5 == 0) for i in range(40)]}))
    return task


def _reranking() -> AbsTask:
    task = mock_tasks.MockRerankingTask()
    queries, documents = sentences(12, 9), sentences(36, 10)
    draw = random.Random(11)
    split = RetrievalSplitData(
        queries=Dataset.from_dict({"id": [f"q{i}" for i in range(12)], "text": queries}),
        corpus=Dataset.from_dict({"id": [f"d{i}" for i in range(36)], "text": documents, "title": ["Title"] * 36}),
        relevant_docs={f"q{i}": {f"d{i}": 1, f"d{i + 3}": 1} for i in range(12)},
        top_ranked={f"q{i}": [f"d{j}" for j in {i, i + 3, *draw.sample(range(36), 10)}] for i in range(12)},
    )
    task.dataset = {"default": {"test": split}}
    return task


def _retrieval() -> AbsTask:
    return pairs_retrieval_task(sentences(30, 12), sentences(30, 13), name="HeldOut")


TASKS: dict[str, Callable[[], AbsTask]] = {
    "STS": _sts,
    "Classification": _classification,
    "Clustering": _clustering,
    "Clustering, first version": _legacy_clustering,
    "Summarization": _summarization,
    "BitextMining": _bitext_mining,
    "PairClassification": _pair_classification,
    "Reranking": _reranking,
    "Retrieval": _retrieval,
}


MakeTask = Callable[[str], AbsTask]


@pytest.fixture
def small_task() -> MakeTask:
    """Makes a new task of a type, with its data loaded."""

    def make(kind: str) -> AbsTask:
        task = TASKS[kind]()
        task.data_loaded = True
        return task

    return make


@pytest.fixture
def own_score() -> Callable[[SentenceTransformer, AbsTask], float]:
    """mteb's score of a model, by its own wrapper; vectors are normalised after any truncation."""

    def score(model: SentenceTransformer, task: AbsTask) -> float:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # mteb and its metrics use deprecated names
            wrapper = SentenceTransformerEncoderWrapper(model)
            kwargs = {"batch_size": 32, "show_progress_bar": False, "normalize_embeddings": True}
            results = mteb.evaluate(wrapper, task, cache=None, encode_kwargs=kwargs, co2_tracker=False)
        return float(results.task_results[0].get_score())

    return score


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any attempt to open a connection fails the test, and no offline switch prevents the attempt."""

    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError(f"a connection was opened: {args}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", False)
