from __future__ import annotations

import pytest

from matryoshka_st.errors import UserError
from matryoshka_st.evaluation.pairs_task import pairs_retrieval_task


def test_query_i_is_answered_by_document_i() -> None:
    task = pairs_retrieval_task(["a", "b"], ["x", "y"], name="Held")
    split = task.dataset["default"]["test"]
    assert list(split["queries"]["text"]) == ["a", "b"]
    assert list(split["corpus"]["text"]) == ["x", "y"]
    assert split["relevant_docs"] == {"q0": {"d0": 1}, "q1": {"d1": 1}}
    assert task.data_loaded


def test_equal_texts_become_one() -> None:
    task = pairs_retrieval_task(["a", "b", "a"], ["x", "x", "y"], name="Held")
    split = task.dataset["default"]["test"]
    assert list(split["queries"]["text"]) == ["a", "b"]
    assert list(split["corpus"]["text"]) == ["x", "y"]
    assert split["relevant_docs"] == {"q0": {"d0": 1, "d1": 1}, "q1": {"d0": 1}}


def test_the_revision_follows_the_texts() -> None:
    def revision(*documents: str) -> str:
        return pairs_retrieval_task(["a", "b"], documents, name="Held").metadata.dataset["revision"]

    assert revision("x", "y") == revision("x", "y") != revision("y", "x")


@pytest.mark.parametrize(("queries", "documents"), [([], []), (["a"], ["x", "y"])])
def test_pairs_must_pair(queries: list[str], documents: list[str]) -> None:
    with pytest.raises(UserError, match="give as many of each, at least one"):
        pairs_retrieval_task(queries, documents, name="Held")


@pytest.mark.parametrize("name", ["", "a/b", "a\\b"])
def test_the_name_must_name_a_file(name: str) -> None:
    with pytest.raises(UserError, match="cannot name a task"):
        pairs_retrieval_task(["a"], ["x"], name=name)
