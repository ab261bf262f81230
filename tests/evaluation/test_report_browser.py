"""The page in a real browser: values, sorting, tooltips, nothing logged and nothing fetched, wide and narrow."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from matryoshka_st.evaluation.report.command import write_report

from .browser import Browser, chromium
from .report_runs import many_runs

DESKTOP, PHONE = 1280, 390
TABLE = "document.querySelector('[aria-label=\"Comparison of all views\"] table')"
HEADS = f"[...{TABLE}.tHead.rows[0].cells]"
MEANS = f"[...{TABLE}.tBodies[0].rows].map(row => row.cells[6].textContent)"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with chromium(tmp_path_factory.mktemp("profile")) as started:
        yield started


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report in which one view lacks a task."""
    lacking = ("local/trained", 32, "binary", "STS12")
    runs = [run for run in many_runs() if (run.model, run.dim, run.precision, run.task) != lacking]
    return write_report(runs, tmp_path_factory.mktemp("report"), "Looked at")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [DESKTOP, PHONE])
def test_it_fits_and_nothing_goes_wrong(browser: Browser, page: Path, width: int, scheme: str) -> None:
    browser.open(page, width, scheme=scheme)
    assert browser.value("innerWidth") == width
    assert browser.value("document.documentElement.scrollWidth") <= width
    assert browser.value(
        "[...document.querySelectorAll('svg')].every(svg => svg.getBoundingClientRect().width <= innerWidth)"
    )
    cells = f"[...{TABLE}.tBodies[0].rows].map(row => [...row.cells].map(cell => cell.textContent))"
    assert ["trained", "384", "float32", "1536", "76.50", "66.50", "71.50", "100.0"] in browser.value(cells)
    assert browser.complaints() == []


def test_text_in_figures_is_not_too_small_on_a_phone(browser: Browser, page: Path) -> None:
    browser.open(page, PHONE)
    heights = browser.value(
        "[...document.querySelectorAll('section:first-of-type svg text')].map(text => {"
        "const size = parseFloat(getComputedStyle(text).fontSize), svg = text.ownerSVGElement;"
        "return size * svg.getBoundingClientRect().width / svg.viewBox.baseVal.width})"
    )
    assert heights and min(heights) >= 10


def test_heads_sort_by_keyboard_and_the_missing_stay_last(browser: Browser, page: Path) -> None:
    browser.open(page, DESKTOP)
    falling = browser.value(MEANS)
    assert falling[-1] == "-"
    numbers = [float(text) for text in falling[:-1]]
    assert numbers == sorted(numbers, reverse=True)
    assert browser.value(f"{HEADS}[6].ariaSort") == "descending"
    browser.value(f"{HEADS}[6].querySelector('button').focus()")
    browser.press("Enter", 13, "\r")
    assert browser.value(f"{HEADS}.map(head => head.ariaSort)") == [None] * 6 + ["ascending", None]
    assert browser.value(MEANS) == [*falling[-2::-1], "-"]
    browser.value(f"{HEADS}[0].querySelector('button').focus()")
    browser.press("Enter", 13, "\r")
    models = browser.value(f"[...{TABLE}.tBodies[0].rows].map(row => row.cells[0].textContent)")
    assert models == sorted(models) and models[0] != models[-1]
    assert browser.complaints() == []


@pytest.mark.parametrize("width", [DESKTOP, PHONE])
def test_a_point_tells_its_value(browser: Browser, page: Path, width: int) -> None:
    browser.open(page, width)
    wanted = "all-MiniLM-L6-v2, 384 dims: 69.50, 100.0 % of full width"
    point = f"[...document.querySelectorAll('.point')].find(point => point.dataset.tip === {wanted!r})"
    browser.value(f"{point}.scrollIntoView({{block: 'center'}})")
    browser.value("new Promise(requestAnimationFrame)")
    x, y = browser.value(f"(box => [box.x + box.width / 2, box.y + box.height / 2])({point}.getBoundingClientRect())")
    assert browser.value("document.getElementById('tip').hidden")
    browser.move(x, y)
    told = browser.value("document.getElementById('tip').textContent").split("\n")
    assert wanted in told, "also where another point lies on top of it"
    assert "all-MiniLM-L6-v2, 32 dims: 30.24, 43.5 % of full width" not in told
    left, right = browser.value(
        "(box => [box.left, box.right])(document.getElementById('tip').getBoundingClientRect())"
    )
    assert 0 <= left < right <= width
    browser.press("Escape", 27)
    assert browser.value("document.getElementById('tip').hidden")


def test_without_scripts_everything_is_there_to_read(browser: Browser, page: Path) -> None:
    browser.open(page, DESKTOP, scripts=False)
    assert browser.value(MEANS)[0] == "71.50"
    assert browser.value("document.querySelectorAll('button, #tip').length") == 0
    assert browser.value("document.querySelectorAll('.point > title').length") > 100


@pytest.mark.parametrize(
    "fault", ["<script>missing()</script>", "<script>console.error('no')</script>", '<img src="http://localhost:9/x">']
)
def test_a_fault_would_be_noticed(browser: Browser, tmp_path: Path, fault: str) -> None:
    (tmp_path / "page.html").write_text(f"<!doctype html><html lang=en>{fault}")
    browser.open(tmp_path / "page.html", DESKTOP)
    assert browser.complaints()
