"""The report of a first run: one page with the figure, the gains over the baselines and how to use the model."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from pathlib import Path

from matryoshka_st.evaluation.report.curves import Curve
from matryoshka_st.evaluation.report.figures import scores_drawing
from matryoshka_st.evaluation.report.page import figures, page, paragraph, section
from matryoshka_st.evaluation.report.svg import inline_svg
from matryoshka_st.evaluation.report.tables import Cell, Column, Table, hundredths, number, to_html
from matryoshka_st.evaluation.significance import Difference
from matryoshka_st.files import write_whole

METRIC = "nDCG@10"
INTRODUCTION = (
    f"{METRIC} x100 at each number of leading dimensions. "
    "Gains come with a 95 % paired bootstrap interval over the queries."
)
USE = """from sentence_transformers import SentenceTransformer

model = SentenceTransformer("{model}", truncate_dim=64)
embeddings = model.encode(["Cut to 64 dims."], normalize_embeddings=True)"""


def write_quick_report(
    folder: Path,
    curves: Mapping[str, Mapping[int, float]],
    gains: Mapping[str, Mapping[int, Difference]],
    *,
    title: str,
) -> None:
    """Write ``report.png``, ``report.svg`` and ``report.html``.

    Args:
        folder: Holds the model in ``model``.
        curves: For each model, the score (0 to 1) at each dim.
        gains: For each baseline, the gain of the last curve over it at each dim.
        title: Heading of the page and of the figure.

    Raises:
        OptionalDependencyError: If matplotlib is not installed.
    """
    drawing = scores_drawing([Curve.down_from_the_widest(*curve) for curve in curves.items()], METRIC, title)
    content = page(
        title,
        [
            paragraph(INTRODUCTION),
            figures([inline_svg(drawing, "scores", "Score against dimensions; the table below has the numbers")]),
            section("Numbers", to_html(_table(curves, gains), "Scores and gains at each dim")),
            section("Use the model", f"<pre>{escape(USE.format(model=folder / 'model'))}</pre>"),
        ],
    )
    write_whole(folder / "report.png", drawing.png())
    write_whole(folder / "report.svg", drawing.svg)
    write_whole(folder / "report.html", content)


def _table(curves: Mapping[str, Mapping[int, float]], gains: Mapping[str, Mapping[int, Difference]]) -> Table:
    names = ["dim", *curves, *(f"gain over {name}" for name in gains), "bytes per vector"]
    rows = [
        [
            number(dim),
            *(hundredths(scores[dim]) for scores in curves.values()),
            *(Cell(str(gain[dim]), gain[dim].mean) for gain in gains.values()),
            number(4 * dim),
        ]
        for dim in sorted(next(iter(curves.values())), reverse=True)
    ]
    return Table([Column(name) for name in names], rows, falling=0)
