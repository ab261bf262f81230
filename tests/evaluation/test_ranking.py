from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from matryoshka_st.evaluation import ranking
from matryoshka_st.evaluation.ranking import score_pairs, search_chunks


def chunked(documents: Tensor, size: int) -> Iterator[tuple[int, Tensor]]:
    return ((start, documents[start : start + size]) for start in range(0, len(documents), size))


def brute_force(queries: Tensor, documents: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
    """Sort everything; equal scores: the later document first."""
    scores = queries @ documents.T
    positions = scores.flip(1).argsort(dim=1, descending=True, stable=True)[:, :top_k]
    positions = documents.shape[0] - 1 - positions
    return scores.gather(1, positions), positions


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 10_000), documents=st.integers(1, 40), chunk=st.integers(1, 41), top_k=st.integers(1, 45))
def test_search_equals_sorting_all_scores_for_any_chunk_size(
    seed: int, documents: int, chunk: int, top_k: int
) -> None:
    draw = torch.Generator().manual_seed(seed)
    # Small whole numbers: exact arithmetic, many ties, negative scores and zeros of both signs.
    queries = torch.randint(-2, 3, (5, 4), generator=draw).float()
    corpus = torch.randint(-2, 3, (documents, 4), generator=draw).float()
    cuts = [lambda x: x, lambda x: x[:, :2]]
    found = search_chunks(queries, chunked(corpus, chunk), cuts, top_k)
    for (scores, positions), cut in zip(found, cuts, strict=True):
        expected_scores, expected_positions = brute_force(cut(queries), cut(corpus), top_k)
        assert torch.equal(scores, expected_scores)
        assert torch.equal(positions, expected_positions)


def test_scores_survive_packing_bit_for_bit() -> None:
    scores = torch.tensor([[1.0, -1.0, 0.0, 1e-40, -1e-40, 3.4e38, -3.4e38, 0.1234567]])
    keys = ranking._keys(scores, start=2**31)
    assert torch.equal(ranking._score_of(keys), scores)
    assert ranking._position_of(keys).tolist() == [list(range(2**31, 2**31 + 8))]
    assert keys.argsort(dim=1).tolist() == scores.argsort(dim=1).tolist()


def test_both_zeros_tie() -> None:
    keys = ranking._keys(torch.tensor([[0.0, -0.0]]), start=0)
    assert keys[0, 1] - keys[0, 0] == 1


def test_queries_are_scored_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    queries, documents = torch.randn(9, 4), torch.randn(7, 4)
    whole = search_chunks(queries, chunked(documents, 7), [lambda x: x], 3)
    monkeypatch.setattr(ranking, "_BLOCK", 16)
    in_blocks = search_chunks(queries, chunked(documents, 7), [lambda x: x], 3)
    assert torch.equal(whole[0][1], in_blocks[0][1])
    torch.testing.assert_close(whole[0][0], in_blocks[0][0])


@pytest.mark.parametrize("chunk", [1, 4, 50])
def test_pairs_get_the_score_of_their_own_documents(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranking, "_BLOCK", 12)
    queries, documents = torch.randn(3, 4), torch.randn(10, 4)
    pairs = torch.tensor([[0, 9], [2, 0], [0, 3], [1, 3]])
    (scores,) = score_pairs(queries, chunked(documents, chunk), [lambda x: x[:, :3]], pairs)
    expected = (queries[:, :3] @ documents[:, :3].T)[pairs[:, 0], pairs[:, 1]]
    torch.testing.assert_close(scores, expected)
