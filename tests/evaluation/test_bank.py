from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from datasets import Dataset
from mteb.abstasks.abstask import AbsTask
from mteb.mocks.mock_tasks import MockRetrievalTask
from mteb.types import PromptType
from sentence_transformers import SentenceTransformer
from torch.utils.data import DataLoader

from matryoshka_st.errors import UserError
from matryoshka_st.evaluation.bank import Bank
from matryoshka_st.evaluation.prefix_view import Cut, PrefixView

DIMS = (32, 16, 8)
METADATA = MockRetrievalTask.metadata
MakeTask = Callable[[str], AbsTask]


def loader(texts: list[str]) -> DataLoader[Any]:
    return DataLoader(Dataset.from_dict({"text": texts}), batch_size=4)


def views_of(bank: Bank) -> list[PrefixView]:
    return [PrefixView(bank, Cut(dim), name="local/tiny", revision="1") for dim in DIMS]


@pytest.fixture
def forwarded(tiny_model: SentenceTransformer, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every text that reaches the transformer, with its prompt in front."""
    seen: list[str] = []
    preprocess = tiny_model.preprocess

    def record(inputs: list[str], prompt: str | None = None, **kwargs: Any) -> Any:
        seen.extend((prompt or "") + text for text in inputs)
        return preprocess(inputs, prompt=prompt, **kwargs)

    monkeypatch.setattr(tiny_model, "preprocess", record)
    return seen


def encode(bank: Bank, texts: list[str], prompt_type: PromptType | None = None) -> torch.Tensor:
    return bank.encode(
        loader(texts), task_metadata=METADATA, prompt_type=prompt_type, hf_split="test", hf_subset="default"
    )


def test_a_text_is_encoded_once_and_comes_back_in_its_places(
    tiny_model: SentenceTransformer, forwarded: list[str]
) -> None:
    bank = Bank(tiny_model)
    first = encode(bank, ["a b", "c", "a b"])
    second = encode(bank, ["c", "d"])
    assert sorted(forwarded) == ["a b", "c", "d"]
    assert bank.encoded == 3
    assert torch.equal(first[0], first[2])
    assert torch.equal(first[1], second[0])
    assert first.dtype == torch.float32
    expected = torch.from_numpy(tiny_model.encode(["a b", "c", "a b"]))
    torch.testing.assert_close(first, expected)


def test_the_prompt_belongs_to_the_text(tiny_model: SentenceTransformer, forwarded: list[str]) -> None:
    tiny_model.prompts = {"query": "find: ", "document": ""}
    bank = Bank(tiny_model)
    as_query = encode(bank, ["a"], PromptType.query)
    as_document = encode(bank, ["a"], PromptType.document)
    assert forwarded == ["find: a", "a"]
    assert not torch.allclose(as_query, as_document)


def test_a_new_task_starts_from_nothing(tiny_model: SentenceTransformer, forwarded: list[str]) -> None:
    bank = Bank(tiny_model)
    encode(bank, ["a"])
    bank.begin([])
    encode(bank, ["a"])
    assert bank.encoded == len(forwarded) == 2


def search(bank: Bank, view: PrefixView, task: AbsTask, **kwargs: Any) -> dict[str, dict[str, float]]:
    split = task.dataset["default"]["test"]
    return bank.search(
        view,
        split["corpus"],
        split["queries"],
        task_metadata=task.metadata,
        hf_split="test",
        hf_subset="default",
        encode_kwargs={"batch_size": 8},
        top_ranked=split["top_ranked"],
        **kwargs,
    )


@pytest.mark.parametrize("kind", ["Retrieval", "Reranking"])
def test_one_pass_serves_all_views(
    tiny_model: SentenceTransformer, forwarded: list[str], small_task: MakeTask, kind: str
) -> None:
    task = small_task(kind)
    split = task.dataset["default"]["test"]
    distinct = len(set(split["queries"]["text"])) + len(set(split["corpus"]["text"]))
    bank = Bank(tiny_model)
    views = views_of(bank)
    bank.begin(views)
    rankings = [search(bank, view, task, top_k=5) for view in views]
    assert bank.encoded == len(forwarded) == distinct
    assert rankings[0] != rankings[1] != rankings[2]
    assert all(len(documents) == 5 for ranking in rankings for documents in ranking.values())


@pytest.mark.parametrize("kind", ["Retrieval", "Reranking"])
def test_the_chunk_size_does_not_matter(tiny_model: SentenceTransformer, small_task: MakeTask, kind: str) -> None:
    def ranked(chunk_size: int) -> Iterator[dict[str, dict[str, float]]]:
        bank = Bank(tiny_model, chunk_size=chunk_size)
        return (search(bank, view, small_task(kind), top_k=7) for view in views_of(bank))

    for in_one, in_many in zip(ranked(50_000), ranked(4), strict=True):
        for query, documents in in_one.items():
            assert in_many[query] == pytest.approx(documents, abs=1e-6)


def test_equal_documents_are_encoded_once_and_tie(tiny_model: SentenceTransformer) -> None:
    bank = Bank(tiny_model)
    corpus = Dataset.from_dict({"id": ["d0", "d1", "d2"], "text": ["same", "same", "other"]})
    queries = Dataset.from_dict({"id": ["q"], "text": ["same"]})
    ranking = bank.search(
        views_of(bank)[0],
        corpus,
        queries,
        task_metadata=METADATA,
        hf_split="test",
        hf_subset="default",
        top_k=1,
        encode_kwargs={},
    )
    assert bank.encoded == 3
    assert list(ranking["q"]) == ["d1"]
    assert ranking["q"]["d1"] == pytest.approx(1.0)


def test_titles_are_joined_once(tiny_model: SentenceTransformer, forwarded: list[str], small_task: MakeTask) -> None:
    bank = Bank(tiny_model)
    search(bank, views_of(bank)[0], small_task("Reranking"), top_k=5)
    documents = [text for text in forwarded if "Title" in text]
    assert len(documents) == 36
    assert all(text.count("Title") == 1 for text in documents)


def test_a_broken_model_is_named(tiny_model: SentenceTransformer) -> None:
    with torch.no_grad():
        next(tiny_model.parameters()).fill_(float("nan"))
    with pytest.raises(UserError, match="NaN or infinity on task 'MockRetrievalTask'"):
        encode(Bank(tiny_model), ["a"])
