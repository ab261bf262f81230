"""The texts of each type of task, and of no other split, subset or column."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from datasets import Dataset, DatasetDict
from mteb.abstasks.abstask import AbsTask
from mteb.mocks import mock_tasks

from matryoshka_st.evaluation.tasks import find_task
from matryoshka_st.evaluation.texts import evaluation_texts

MakeTask = Callable[[str], AbsTask]


@pytest.mark.parametrize(
    ("kind", "columns"),
    [
        ("STS", ["sentence1", "sentence2"]),
        ("Classification", ["text"]),
        ("Clustering", ["sentences"]),
        ("PairClassification", ["sentence1", "sentence2"]),
    ],
)
def test_every_text_column_of_the_test_split(kind: str, columns: list[str], small_task: MakeTask) -> None:
    task = small_task(kind)
    split = task.dataset["test"]
    assert list(evaluation_texts(task)) == [text for column in columns for text in split[column]]


@pytest.mark.parametrize("kind", ["Retrieval", "Reranking"])
def test_queries_documents_and_titles_without_ids(kind: str, small_task: MakeTask) -> None:
    task = small_task(kind)
    split = task.dataset["default"]["test"]
    expected = {*split["queries"]["text"], *split["corpus"]["text"]} | ({"Title"} if kind == "Reranking" else set())
    assert set(evaluation_texts(task)) == expected


def test_summaries_in_lists() -> None:
    task = mock_tasks.MockSummarizationTask()
    row = {"text": "A long text.", "human_summaries": ["Long.", "A text."], "machine_summaries": ["Text."]}
    task.dataset = DatasetDict(test=Dataset.from_list([{**row, "relevance": [0.5], "id": "d1"}]))
    task.data_loaded = True
    assert list(evaluation_texts(task)) == ["A long text.", "Long.", "A text.", "Text."]


def test_labels_are_no_texts(small_task: MakeTask) -> None:
    task = small_task("Classification")
    rows = {"text": ["When does my card arrive?"], "label": ["a b c d"], "label_text": ["card_arrival_date_asked"]}
    task.dataset = DatasetDict(test=Dataset.from_dict({**rows, "topic": ["bank"]}))
    assert list(evaluation_texts(task)) == ["When does my card arrive?", "bank"]
    task.label_column_name = "topic"
    assert list(evaluation_texts(task)) == ["When does my card arrive?"]


def test_only_the_wanted_subsets() -> None:
    task = find_task(mock_tasks.MockMultilingualSTSTask(), languages=["eng"])
    rows = {
        language: DatasetDict(test=Dataset.from_dict({"sentence1": [language], "sentence2": [language], "score": [1]}))
        for language in ("eng", "fra")
    }
    task.dataset, task.data_loaded = rows, True
    assert set(evaluation_texts(task)) == {"eng"}
