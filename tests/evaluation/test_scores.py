from __future__ import annotations

import math
import sys

import pytest
from rich.console import Console

from matryoshka_st.errors import OptionalDependencyError
from matryoshka_st.evaluation.scores import DimScore, per_query_ndcg, score_table


def rows(*scores: DimScore) -> list[list[str]]:
    console = Console(width=100)
    with console.capture() as capture:
        console.print(score_table(scores))
    lines = [line for line in capture.get().splitlines() if any(sign.isalnum() for sign in line)]
    return [line.replace("┃", "│").strip("│ ").replace(" ", "").split("│") for line in lines]


def score(task: str, dim: int, value: float) -> DimScore:
    return DimScore(task=task, task_type="STS", metric="cosine_spearman", dim=dim, score=value)


def test_one_task_has_no_mean() -> None:
    assert rows(score("A", 8, 0.5), score("A", 16, 0.61234)) == [["task", "16", "8"], ["A", "61.23", "50.00"]]


def test_means_cover_dims_that_every_task_has() -> None:
    table = rows(score("A", 16, 0.6), score("B", 16, 0.8), score("A", 8, 0.5))
    assert table == [["task", "16", "8"], ["A", "60.00", "50.00"], ["B", "80.00", "-"], ["mean", "70.00", "-"]]


def test_ndcg_by_hand() -> None:
    results = {"q0": {"d0": 0.9, "d1": 0.8, "d2": 0.1}, "q1": {"d0": 0.1, "d1": 0.9}}
    qrels = {"q0": {"d1": 1, "d2": 1}, "q1": {"d1": 1}}
    ideal = 1 + 1 / math.log2(3)
    assert per_query_ndcg(results, qrels) == pytest.approx({"q0": (1 / math.log2(3) + 1 / 2) / ideal, "q1": 1.0})
    assert per_query_ndcg(results, qrels, k=2)["q0"] == pytest.approx(1 / math.log2(3) / ideal)


def test_without_pytrec_eval_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pytrec_eval", None)
    with pytest.raises(OptionalDependencyError, match=r"matryoshka-st\[eval\]"):
        per_query_ndcg({}, {})
