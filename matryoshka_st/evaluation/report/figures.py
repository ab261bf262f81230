"""The two figures: score and retained share against dim, and score against bytes with the Pareto front."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from matryoshka_st.errors import OptionalDependencyError
from matryoshka_st.evaluation.precision import PRECISIONS
from matryoshka_st.evaluation.report.curves import Curve, Spot

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# each at least 3 : 1 against white and against the page's dark background
COLOURS = ("#7b828c", "#c4760c", "#1f77c9", "#2f8f55", "#c0504d", "#8b63c7", "#23908f", "#c2559a", "#8a6d3b")
DASHES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (2, 0.8)), (0, (6, 1.5, 1.5, 1.5)))
MARKERS: dict[str, str] = dict(zip(PRECISIONS, ("o", "s", "^", "D"), strict=True))
LINE = "#7b828c"
TICKS = 8
TIP = "tip-"
LEGEND_LETTERS = 18  # of a label with room for a second one beside it
LEGEND_INCHES = 0.19  # for each row of the legend
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "matryoshka-st",  # the same figure is the same file
    "font.size": 10,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "lines.linewidth": 1.7,
    "axes.edgecolor": LINE,
    "xtick.color": LINE,
    "ytick.color": LINE,
    "xtick.labelcolor": "#1d2733",
    "ytick.labelcolor": "#1d2733",
    "text.color": "#1d2733",
    "axes.labelcolor": "#1d2733",
    "axes.labelpad": 6,
}


@dataclass(frozen=True)
class Drawing:
    """A figure, and the text of each of its points: point ``i`` has the SVG id ``tip-<i>``."""

    figure: Figure
    tips: list[str] = field(default_factory=list)

    def add_tip(self, axes: Axes, x: float, y: float, text: str) -> None:
        """An invisible, finger-sized spot that carries the text."""
        axes.plot([x], [y], marker="o", markersize=12, alpha=0, gid=f"{TIP}{len(self.tips)}")
        self.tips.append(text)

    def png(self) -> bytes:
        """The figure as PNG."""
        return self._saved(format="png", dpi=200)

    @cached_property
    def svg(self) -> bytes:
        """The figure as SVG, without the date; drawn once for file and page."""
        return self._saved(format="svg", metadata={"Date": None})

    def _saved(self, **options: Any) -> bytes:
        import matplotlib as mpl

        file = io.BytesIO()
        with mpl.rc_context(_STYLE):
            self.figure.savefig(file, **options)
        return file.getvalue()


def scores_drawing(curves: Sequence[Curve], metric: str, title: str | None = None) -> Drawing:
    """Score against dim (log2), and below it the share of each curve's full width.

    Args:
        curves: A curve without scores is not drawn, but keeps its colour.
        metric: Name of the score's axis.
        title: A line above the figure.

    Raises:
        OptionalDependencyError: If matplotlib is not installed.
    """

    def draw(drawing: Drawing) -> None:
        above, below = drawing.figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
        for i, curve in enumerate(curves):
            if curve.scores:
                _draw_curve(drawing, above, below, i, curve)
        dims = sorted({dim for curve in curves for dim in curve.scores})
        _log2_axis(below, dims, "dimensions kept")
        above.set_ylabel(f"{metric} x100")
        below.set_ylabel("% of full width")
        _finish(drawing.figure, above, below)

    return _drawn(draw, title, height=5.0)


def size_drawing(spots: Sequence[Spot], labels: Sequence[str], metric: str, title: str | None = None) -> Drawing:
    """Score against bytes per vector (log2), with the Pareto front: the best score for at most so many bytes.

    Args:
        spots: What to draw.
        labels: Of all curves in the order of their colours.
        metric: Name of the score's axis.
        title: A line above the figure.

    Raises:
        OptionalDependencyError: If matplotlib is not installed.
    """

    def draw(drawing: Drawing) -> None:
        axes = drawing.figure.subplots()
        front = sorted({(spot.bytes_per_vector, 100 * spot.score) for spot in spots if spot.on_front})
        axes.step(*zip(*front, strict=True), where="post", color=LINE, linewidth=1.2, label="Pareto front")
        for spot in spots:
            colour = COLOURS[labels.index(spot.label) % len(COLOURS)]
            x, y = spot.bytes_per_vector, 100 * spot.score
            axes.plot(
                [x],
                [y],
                marker=MARKERS[spot.precision],
                color=colour,
                markerfacecolor=colour if spot.on_front else "none",
                markersize=7 if spot.on_front else 5,
            )
            drawing.add_tip(axes, x, y, f"{_what(spot)}: {y:.2f}{' (Pareto front)' if spot.on_front else ''}")
        for label in dict.fromkeys(spot.label for spot in spots):
            axes.plot([], [], color=COLOURS[labels.index(label) % len(COLOURS)], linewidth=4, label=label)
        for precision in sorted({spot.precision for spot in spots}, key=PRECISIONS.index):
            axes.plot([], [], color=LINE, marker=MARKERS[precision], linestyle="none", label=precision)
        _log2_axis(axes, _powers_of_two([spot.bytes_per_vector for spot in spots]), "bytes per vector")
        axes.set_ylabel(f"{metric} x100")
        _finish(drawing.figure, axes)

    return _drawn(draw, title, height=3.5)


def _draw_curve(drawing: Drawing, above: Axes, below: Axes, i: int, curve: Curve) -> None:
    style = {
        "color": COLOURS[i % len(COLOURS)],
        "linestyle": DASHES[i % len(DASHES)],
        "marker": "o",
        "markersize": 4.5,
    }
    shares = curve.shares()
    for axes, values in ((above, curve.scores), (below, shares)):
        dims = sorted(values)
        axes.plot(dims, [100 * values[dim] for dim in dims], label=curve.label, **style)
        for dim in dims:
            kept = f", {100 * shares[dim]:.1f} % of full width" if shares else ""
            text = f"{curve.label}, {dim} dims: {100 * curve.scores[dim]:.2f}{kept}"
            drawing.add_tip(axes, dim, 100 * values[dim], text)


def _drawn(draw: Callable[[Drawing], None], title: str | None, *, height: float) -> Drawing:
    try:
        import matplotlib as mpl
        from matplotlib.figure import Figure
    except ImportError as error:
        raise OptionalDependencyError("matplotlib", "report") from error
    with mpl.rc_context(_STYLE):
        drawing = Drawing(Figure(figsize=(4.2, height), layout="constrained"))
        draw(drawing)
        if title:
            drawing.figure.suptitle(title)
    return drawing


def _what(spot: Spot) -> str:
    return f"{spot.label}, {spot.dim} dims, {spot.precision}, {spot.bytes_per_vector} bytes"


def _powers_of_two(values: Sequence[int]) -> list[int]:
    first, last = min(values).bit_length() - 1, (max(values) - 1).bit_length()
    return [1 << power for power in range(first, last + 1)]


def _apart(ticks: Sequence[int]) -> list[int]:
    """As many of the ticks, from the largest down, as have room for their text on a log axis."""
    shown: list[int] = []
    for tick in sorted(ticks, reverse=True):
        if not shown or shown[-1] / tick >= (max(ticks) / min(ticks)) ** (1 / TICKS):
            shown.append(tick)
    return shown


def _log2_axis(axes: Axes, ticks: Sequence[int], label: str) -> None:
    shown = _apart(ticks)
    axes.set_xscale("log", base=2)
    axes.set_xticks(shown, [str(tick) for tick in shown])
    axes.set_xticks([], minor=True)
    axes.set_xlabel(label)


def _finish(figure: Figure, *panels: Axes) -> None:
    """Light axes, and one legend below everything."""
    for axes in panels:
        axes.set_facecolor("none")
        axes.grid(color=LINE, alpha=0.25, linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
    handles, labels = panels[0].get_legend_handles_labels()
    columns = 2 if max(map(len, labels)) <= LEGEND_LETTERS else 1
    rows = -(-len(labels) // columns)
    figure.set_figheight(figure.get_figheight() + LEGEND_INCHES * rows)
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False, fontsize=9)
