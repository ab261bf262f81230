"""The one figure: score against dim (log2), a curve per model, and below it the share of each curve's full width."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from matryoshka_st.errors import OptionalDependencyError

COLOURS = ("#8a8f98", "#d98c21", "#1f6fb2", "#3a9a5b", "#b0413e")


def plot_scores(path: Path, curves: Mapping[str, Mapping[int, float]], metric: str, title: str | None = None) -> None:
    """Draw the figure.

    Args:
        path: The file to write; its suffix (.png, .svg, .pdf) is the format.
        curves: For each name, the score (0 to 1) at each dim.
        metric: Name of the score's axis.
        title: A line above the figure.

    Raises:
        OptionalDependencyError: If matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise OptionalDependencyError("matplotlib", "report") from error
    figure = Figure(figsize=(7, 6.5), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    for (name, scores), colour in zip(curves.items(), COLOURS * len(curves), strict=False):
        dims = sorted(scores)
        values = [100 * scores[dim] for dim in dims]
        above.plot(dims, values, marker="o", label=name, color=colour)
        below.plot(
            dims, [100 * value / values[-1] if values[-1] else 0.0 for value in values], marker="o", color=colour
        )
    every = sorted({dim for scores in curves.values() for dim in scores})
    below.set_xscale("log", base=2)
    below.set_xticks(every, [str(dim) for dim in every])
    below.set_xticks([], minor=True)
    below.set_xlabel("dimensions kept")
    above.set_ylabel(f"{metric} x100")
    below.set_ylabel("% of full width")
    for axes in (above, below):
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    above.legend(frameon=False)
    if title:
        figure.suptitle(title)
    partial = path.with_name(f".{path.name}.partial")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(partial, format=path.suffix.lstrip("."), dpi=144)
    partial.replace(path)
