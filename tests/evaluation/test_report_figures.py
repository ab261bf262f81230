from __future__ import annotations

import re
import sys
from importlib.resources import files
from typing import Any

import pytest

from matryoshka_st.errors import OptionalDependencyError
from matryoshka_st.evaluation.report.board import board
from matryoshka_st.evaluation.report.curves import Curve
from matryoshka_st.evaluation.report.figures import COLOURS, LINE, Drawing, scores_drawing, size_drawing
from matryoshka_st.evaluation.report.plates import curves, dims_plate, size_plate, spots
from matryoshka_st.evaluation.report.svg import inline_svg

from .report_runs import make_run, many_runs

PLAIN = Curve("plain", {64: 0.3, 384: 0.6}, 0.6)


def lines(drawing: Drawing, panel: int) -> dict[str, Any]:
    return {str(line.get_label()): line for line in drawing.figure.axes[panel].lines if line.get_gid() is None}


def test_scores_above_shares_below_dims_in_log2() -> None:
    drawing = scores_drawing([PLAIN], "ndcg_at_10", "Retrieval")
    above, below = drawing.figure.axes
    assert lines(drawing, 0)["plain"].get_xydata().tolist() == [[64, 30], [384, 60]]
    assert lines(drawing, 1)["plain"].get_xydata().tolist() == [[64, 50], [384, 100]]
    assert below.get_xscale() == "log" and list(below.get_xticks()) == [384, 64]
    assert [axes.get_ylabel() for axes in (above, below)] == ["ndcg_at_10 x100", "% of full width"]
    assert below.get_xlabel() == "dimensions kept"
    assert set(drawing.tips) == {
        "plain, 64 dims: 30.00, 50.0 % of full width",
        "plain, 384 dims: 60.00, 100.0 % of full width",
    }


def test_without_a_full_width_there_is_no_share() -> None:
    drawing = scores_drawing(
        [Curve("plain", {64: 0.3}, None), Curve("zero", {64: 0.0}, 0.0), Curve("one", {64: 0.5}, 0.5)], "x"
    )
    assert lines(drawing, 0)["plain"].get_ydata().tolist() == [30]
    assert all(line.get_ydata().size == 0 for line in lines(drawing, 1).values())
    assert drawing.tips == ["plain, 64 dims: 30.00", "zero, 64 dims: 0.00", "one, 64 dims: 50.00"]


def test_a_curve_keeps_its_colour_where_another_is_missing() -> None:
    both = scores_drawing([PLAIN, Curve("pca", PLAIN.scores, 0.6)], "x")
    alone = scores_drawing([Curve("plain", {}, 0.6), Curve("pca", PLAIN.scores, 0.6)], "x")
    assert "plain" not in lines(alone, 0)
    assert lines(both, 0)["pca"].get_color() == lines(alone, 0)["pca"].get_color() == COLOURS[1]


def test_many_dims_get_fewer_ticks() -> None:
    dense = dict.fromkeys(range(16, 769, 16), 0.5)
    ticks = list(scores_drawing([Curve("dense", dense, 0.5)], "x").figure.axes[1].get_xticks())
    assert ticks[0] == 768 and 4 <= len(ticks) <= 9


def test_curves_are_drawn_at_the_finest_precision_and_of_whole_means_only() -> None:
    runs = [
        make_run(score, dim=dim, task=task) for task, score in (("STS12", 0.5), ("SciFact", 0.7)) for dim in (384, 64)
    ]
    runs += [make_run(0.4, dim=384, task="STS12", precision="int8"), make_run(0.9, dim=32, task="STS12")]
    runs += [make_run(0.3, dim=64, precision="binary", model="local/bits")]
    scored = board(runs)
    assert [(curve.label, list(curve.scores)) for curve in curves(scored, scored.overall)] == [
        ("small", [384, 64]),
        ("bits binary", []),
    ]
    assert [list(curve.scores) for curve in curves(scored, scored.groups[1])] == [[384, 64, 32], [64]]


def test_size_against_score() -> None:
    scored = board(many_runs())
    points = spots(scored, scored.overall)
    drawing = size_drawing(points, list(scored.labels.values()), "mean score")
    (axes,) = drawing.figure.axes
    front = lines(drawing, 0)["Pareto front"].get_xydata()
    assert (front[1:] >= front[:-1]).all()
    assert len(drawing.tips) == len(points) == 45
    best = next(point for point in points if (point.label, point.dim, point.precision) == ("trained", 384, "float32"))
    assert best.on_front
    assert "trained, 384 dims, float32, 1536 bytes: 71.50 (Pareto front)" in drawing.tips
    assert axes.get_xlabel() == "bytes per vector" and axes.get_xscale() == "log"


def test_a_plate_is_a_figure_in_two_formats_with_its_data() -> None:
    scored = board([make_run(0.8), make_run(0.6, dim=64), make_run(0.5, dim=64, precision="int8")])
    dims, size = dims_plate(scored, scored.overall), size_plate(scored, scored.overall)
    assert dims and size
    content = {**dims.files(), **size.files()}
    assert set(content) == {
        f"figures/{name}-sts.{kind}" for name in ("dims", "size") for kind in ("png", "svg", "csv")
    }
    assert content["figures/dims-sts.csv"] == (
        "model,dims,score,% of full width\nsmall,384,80.00,100.00\nsmall,64,60.00,75.00\n"
    )
    assert content["figures/size-sts.csv"] == (
        "model,dims,precision,bytes,score,on front\n"
        "small,384,float32,1536,80.00,yes\nsmall,64,float32,256,60.00,yes\nsmall,64,int8,64,50.00,yes\n"
    )
    assert bytes(content["figures/dims-sts.png"]).startswith(b"\x89PNG")  # type: ignore[arg-type]


def test_no_view_with_every_task_is_no_figure() -> None:
    scored = board([make_run(dim=384, task="STS12"), make_run(dim=64, task="SciFact")])
    assert dims_plate(scored, scored.overall) is None and size_plate(scored, scored.overall) is None


def test_svg_in_a_page_has_ids_of_its_own_and_a_title_on_every_point() -> None:
    drawing = scores_drawing([Curve("a <b>", PLAIN.scores, 0.6)], "x")
    svg = inline_svg(drawing, "first", "Says & shows")
    assert svg.startswith('<svg role="img" aria-label="Says &amp; shows" ') and svg.endswith("</svg>")
    assert svg.count('<g class="point" id="first-tip-') == svg.count("<title>") == len(drawing.tips) == 4
    assert "<title>a &lt;b&gt;, 64 dims: 30.00, 50.0 % of full width</title>" in svg
    ids = re.findall(r' id="([^"]*)"', svg)
    assert len(ids) == len(set(ids)) and all(name.startswith("first-") for name in ids)
    assert {name for pair in re.findall(r'href="#([^"]*)"|url\(#([^)]*)\)', svg) for name in pair if name} <= set(ids)
    assert svg == inline_svg(scores_drawing([Curve("a <b>", PLAIN.scores, 0.6)], "x"), "first", "Says & shows")


def test_colours_stand_out_from_both_backgrounds() -> None:
    """WCAG 2.2, 1.4.11: 3 to 1 for graphics."""

    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    style = files("matryoshka_st.evaluation.report").joinpath("page.css").read_text()
    backgrounds = re.findall(r"--back: (#\w{6})", style)
    assert len(backgrounds) == 2
    for colour in (*COLOURS, LINE):
        for background in backgrounds:
            dark, light = sorted([luminance(colour), luminance(background)])
            assert (light + 0.05) / (dark + 0.05) >= 3


def test_without_matplotlib_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(OptionalDependencyError, match=r"pip install 'matryoshka-st\[report\]'"):
        scores_drawing([PLAIN], "x")
