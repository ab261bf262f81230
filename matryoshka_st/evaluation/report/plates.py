"""The figures of a report with the numbers behind them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from matryoshka_st.evaluation.precision import PRECISIONS
from matryoshka_st.evaluation.report.board import MEAN, Board, Group, pareto_front
from matryoshka_st.evaluation.report.curves import Curve, Spot
from matryoshka_st.evaluation.report.figures import Drawing, scores_drawing, size_drawing
from matryoshka_st.evaluation.report.svg import inline_svg
from matryoshka_st.evaluation.report.tables import hundredths, to_csv


@dataclass(frozen=True)
class Plate:
    """A figure of the report.

    Attributes:
        name: Of its files.
        label: Read out instead of it.
        drawing: The figure.
        data: The numbers, as comma-separated values.
    """

    name: str
    label: str
    drawing: Drawing
    data: str

    def files(self) -> dict[str, bytes | str]:
        """PNG, SVG and CSV by path."""
        stem = f"figures/{self.name}"
        return {f"{stem}.png": self.drawing.png(), f"{stem}.svg": self.drawing.svg, f"{stem}.csv": self.data}

    def html(self) -> str:
        """The figure for the page."""
        return inline_svg(self.drawing, self.name, self.label)


def dims_plate(board: Board, group: Group) -> Plate | None:
    """Score and retained share against dim, if any view has all tasks of the group."""
    drawn = curves(board, group)
    if not any(curve.scores for curve in drawn):
        return None
    return Plate(
        name=f"dims-{_slug(group.name)}",
        label=f"{group.name}: score, and share of the full width, against dimensions kept; the table has the numbers",
        drawing=scores_drawing(drawn, _metric(board, group), _title(group)),
        data=to_csv(["model", "dims", "score", "% of full width"], _curve_rows(drawn)),
    )


def size_plate(board: Board, group: Group) -> Plate | None:
    """Score against bytes per vector, if any view has all tasks of the group."""
    drawn = spots(board, group)
    if not drawn:
        return None
    labels = list(board.labels.values())
    return Plate(
        name=f"size-{_slug(group.name)}",
        label=f"{group.name}: score against bytes per vector, with the Pareto front; the table has the numbers",
        drawing=size_drawing(drawn, labels, _metric(board, group), _title(group)),
        data=to_csv(["model", "dims", "precision", "bytes", "score", "on front"], map(_spot_row, drawn)),
    )


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


def _curve_rows(curves: Sequence[Curve]) -> Iterable[list[object]]:
    for curve in curves:
        shares = curve.shares()
        for dim, score in curve.scores.items():
            yield [curve.label, dim, hundredths(score).text, hundredths(shares.get(dim)).text]


def _spot_row(spot: Spot) -> list[object]:
    score = hundredths(spot.score).text
    return [spot.label, spot.dim, spot.precision, spot.bytes_per_vector, score, "yes" if spot.on_front else "no"]


def _metric(board: Board, group: Group) -> str:
    metrics = {board.metrics[task] for task in group.tasks}
    return metrics.pop() if len(metrics) == 1 else "mean score"


def _title(group: Group) -> str:
    count = len(group.tasks)
    return (
        f"{group.name} of {count} tasks" if group.name == MEAN else f"{group.name} ({count} task{'s' * (count > 1)})"
    )


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
