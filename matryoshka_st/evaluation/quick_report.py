"""The report of a first run: one self-contained HTML page with the figure and the numbers behind it."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from pathlib import Path

from matryoshka_st.evaluation.significance import Difference

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 56rem; margin: 2rem auto; padding: 0 1rem; color: #1d2733; }}
table {{ border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }}
th, td {{ padding: .35rem .6rem; text-align: right; border-bottom: 1px solid #dde3ea; }}
thead th {{ border-bottom: 2px solid #1d2733; }}
svg {{ width: 100%; height: auto; }}
pre {{ background: #f3f5f8; padding: .8rem; overflow-x: auto; }}
</style>
</head>
<body>
<h1>{title}</h1>
<p>nDCG@10 x100 at each number of leading dimensions. Gains come with a 95 % paired bootstrap interval over the
queries.</p>
{figure}
<table>
<thead><tr>{header}</tr></thead>
<tbody>
{rows}
</tbody>
</table>
<h2>Use the model</h2>
<pre>from sentence_transformers import SentenceTransformer

model = SentenceTransformer("{model}", truncate_dim=64)
embeddings = model.encode(["Cut to 64 dims."], normalize_embeddings=True)</pre>
</body>
</html>
"""


def write_report(
    path: Path,
    curves: Mapping[str, Mapping[int, float]],
    gains: Mapping[str, Mapping[int, Difference]],
    *,
    figure: Path,
    title: str,
) -> None:
    """Write the page.

    Args:
        path: The HTML file; the model is the folder ``model`` beside it.
        curves: For each model, the score (0 to 1) at each dim.
        gains: For each baseline, the gain of the last curve over it at each dim.
        figure: An SVG to put into the page.
        title: Heading of the page.
    """
    columns = ["dim", *curves, *(f"gain over {name}" for name in gains), "bytes per vector"]
    dims = sorted(next(iter(curves.values())), reverse=True)
    cells = [
        [
            str(dim),
            *(f"{100 * scores[dim]:.2f}" for scores in curves.values()),
            *(str(gain[dim]) for gain in gains.values()),
            f"{4 * dim:,}",
        ]
        for dim in dims
    ]
    svg = figure.read_text(encoding="utf-8")
    page = PAGE.format(
        title=escape(title),
        figure=svg[svg.index("<svg") :],
        header="".join(f"<th>{escape(column)}</th>" for column in columns),
        rows="\n".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in cells),
        model=escape(str(path.parent / "model")),
    )
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(page, encoding="utf-8")
    partial.replace(path)
