"""From runs to the files of a report, in memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields

from matryoshka_st.evaluation.report.board import Board, board
from matryoshka_st.evaluation.report.page import bullets, details, figures, links, page, paragraph, section
from matryoshka_st.evaluation.report.plates import Plate, dims_plate, size_plate
from matryoshka_st.evaluation.report.summary import (
    comparison_table,
    front_table,
    incomplete_in_words,
    task_table,
    tasks_in_words,
)
from matryoshka_st.evaluation.report.tables import table_csv, to_csv, to_html, to_markdown
from matryoshka_st.evaluation.runs import Run

PAGE = "report.html"
RULE = "Scores are x100. A mean is shown only for a view that has every task of it: all means are over the same tasks."
SHARE = "The share of the full width is relative to the same model's own uncut float32 vectors."
FRONT = "On the Pareto front (filled marks) no other vector is as small and as good. Hollow marks are beaten by one."


def report_files(runs: Sequence[Run], title: str) -> dict[str, bytes | str]:
    """The content of every file of a report by its path; the page comes last.

    Args:
        runs: What was scored.
        title: Heading of the page.

    Raises:
        UserError: If there are no runs or they contradict each other.
        OptionalDependencyError: If matplotlib is not installed.
    """
    scored = board(runs)
    overall_first = [scored.overall, *scored.groups[:-1]]
    by_dim = [plate for group in overall_first if (plate := dims_plate(scored, group))]
    by_size = [plate for group in overall_first if (plate := size_plate(scored, group))]
    table = comparison_table(scored)
    content: dict[str, bytes | str] = {
        "table.md": f"{to_markdown(table)}\n{RULE} {'. '.join(tasks_in_words(scored))}.\n",
        "table.csv": table_csv(table),
        "tasks.csv": table_csv(task_table(scored)),
        "runs.csv": _runs_csv(runs),
    }
    body = _body(scored, by_dim, by_size, list(content))
    for plate in (*by_dim, *by_size):
        content |= plate.files()
    return {**content, PAGE: page(title, body)}


def _body(board: Board, by_dim: Sequence[Plate], by_size: Sequence[Plate], names: Sequence[str]) -> list[str]:
    models = len({series.model for series in board.labels})
    counts = f"{_count(models, 'model')}, {_count(len(board.scores), 'view')} (dims x precision), "
    parts = [paragraph(f"{counts}{_count(len(board.metrics), 'task')}. {RULE}")]
    if by_dim:
        parts.append(section("Score against dimensions", paragraph(SHARE), figures(plate.html() for plate in by_dim)))
    if by_size:
        parts.append(_size_section(board, by_size))
    parts += [
        section("Comparison", to_html(comparison_table(board), "Comparison of all views"), _every_task(board)),
        _tasks_section(board),
        section("Data", paragraph("Beside this page; figures/ holds each figure as PNG, SVG and CSV."), links(names)),
    ]
    return parts


def _size_section(board: Board, plates: Sequence[Plate]) -> str:
    parts = [paragraph(FRONT)]
    front = front_table(board, board.overall)
    if front.rows:
        first, *plates = plates
        parts += [f'<div class="beside">{figures([first.html()])}{to_html(front, "The Pareto front")}</div>']
    if plates:
        parts.append(details("For each task type", figures(plate.html() for plate in plates)))
    return section("Score against size", *parts)


def _every_task(board: Board) -> str:
    return details("Every task", to_html(task_table(board), "Every task"))


def _tasks_section(board: Board) -> str:
    parts = [bullets(tasks_in_words(board))]
    incomplete = incomplete_in_words(board)
    if incomplete:
        parts += [paragraph("Not scored on every task, so without an overall mean:"), bullets(incomplete)]
    return section("Tasks", *parts)


def _runs_csv(runs: Sequence[Run]) -> str:
    names = [field.name for field in fields(Run) if field.name != "per_query"]
    return to_csv(names, [[getattr(run, name) for name in names] for run in runs])


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"
