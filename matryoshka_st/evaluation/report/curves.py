"""What the figures draw, as plain numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from matryoshka_st.evaluation.precision import PRECISIONS
from matryoshka_st.evaluation.report.board import Board, Group, pareto_front


@dataclass(frozen=True)
class Curve:
    """The score (0 to 1) at each dim, and that of the full width if it is known."""

    label: str
    scores: Mapping[int, float]
    full: float | None

    @classmethod
    def down_from_the_widest(cls, label: str, scores: Mapping[int, float]) -> Curve:
        """A curve whose widest dim is the full width."""
        return cls(label, scores, scores[max(scores)])

    def shares(self) -> dict[int, float]:
        """The share of the full width's score at each dim."""
        return {dim: score / self.full for dim, score in self.scores.items()} if self.full else {}


@dataclass(frozen=True)
class Spot:
    """One view in the plane of size and score."""

    label: str
    dim: int
    precision: str
    bytes_per_vector: int
    score: float
    on_front: bool


def curves(board: Board, group: Group) -> list[Curve]:
    """A curve per series at its finest precision; without a point where a task is missing."""
    drawn = []
    for series, label in board.labels.items():
        views = [view for view in board.scores if view.series == series]
        finest = min((view.precision for view in views), key=PRECISIONS.index)
        scores = {
            view.dim: score
            for view in views
            if view.precision == finest and (score := board.score(view, group)) is not None
        }
        name = label if finest == PRECISIONS[0] else f"{label} {finest}"
        drawn.append(Curve(name, scores, board.full(series, group)))
    return drawn


def spots(board: Board, group: Group) -> list[Spot]:
    """Every view that has all tasks of the group."""
    front = set(pareto_front(board, group))
    return [
        Spot(board.labels[view.series], view.dim, view.precision, view.bytes_per_vector, score, view in front)
        for view in board.scores
        if (score := board.score(view, group)) is not None
    ]
