from __future__ import annotations

import pytest

from matryoshka_st.errors import UserError
from matryoshka_st.retrieval import AdaptiveRetriever, FunnelRetriever, Operations, count_operations
from tests.retrieval.oracle import corpus


@pytest.mark.parametrize(
    ("count", "dims", "shortlists", "precision", "visited", "expected"),
    [
        (1000, [16, 384], [50], "float32", None, Operations(16_000 + 50 * 384, 0)),
        (1000, [16, 384], [50], "int8", None, Operations(16_000 + 50 * 384, 0)),
        (1000, [16, 32, 384], [100, 10], "float16", None, Operations(16_000 + 3200 + 3840, 0)),
        (1000, [65, 384], [50], "binary", None, Operations(50 * 384, 2000)),
        (1000, [64, 384], [50], "float32", 200, Operations(12_800 + 50 * 384, 0)),
        (10, [16, 384], [50], "float32", None, Operations(160 + 10 * 384, 0)),
    ],
)
def test_operations(
    count: int, dims: list[int], shortlists: list[int], precision: str, visited: int | None, expected: Operations
) -> None:
    assert count_operations(count, dims, shortlists, precision, visited=visited) == expected  # type: ignore[arg-type]


def test_the_papers_funnel() -> None:
    """Table and figure of section 4.3.1: 128 times fewer operations than 2048 dims on ImageNet-1K's 1.3 M images."""
    cost = count_operations(1_300_000, [16, 2048], [200], "float32")
    assert 120 < 1_300_000 * 2048 / cost.total < 128


def test_a_retriever_counts_its_own() -> None:
    funnel = FunnelRetriever.build(corpus()[0], dims=[6, 12, 48], shortlists=[100, 30], precision="binary")
    assert funnel.operations() == Operations(100 * 12 + 30 * 48, 400)
    assert funnel.operations().total == 100 * 12 + 30 * 48 + 400
    graph = AdaptiveRetriever.build(corpus()[0], shortlist_dim=12, shortlist=30, index="hnsw")
    assert graph.operations(visited=90) == Operations(90 * 12 + 30 * 48, 0)
    with pytest.raises(UserError, match=r"What a graph costs depends on how far it walks; pass visited, or see what"):
        graph.operations()
