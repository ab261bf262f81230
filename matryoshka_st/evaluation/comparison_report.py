"""A comparison for people and for programs: a table, Markdown, CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence

from rich.table import Table

from matryoshka_st.evaluation.comparison import Comparison, Group, TaskPair, sentence, signed

CSV_COLUMNS = ("task", "task_type", "left", "right", "left_score", "right_score", "left_source", "right_source")

_COLUMNS = ("tasks", "left", "right", "left - right", "won-tied-lost")
_TRAINING_DATA = (
    "Training data: what the published models were trained on is not fully known; overlap with these tasks "
    "was not checked."
)
_NEWEST = "Published values: the newest rerun of each task, or the leaderboard's value where there was none."
_ENGLISH = " eval --benchmark 'MTEB(eng, v1)' scores those that published values are for."
_LEADERBOARD = "Published values: as on the leaderboard of their time; reruns with today's mteb can differ."


def comparison_table(comparison: Comparison) -> Table:
    """A row per task type and one for all tasks; scores times 100."""
    table = Table("task type", title=f"left: {comparison.left.label}\nright: {comparison.right.label}")
    for name in _COLUMNS:
        table.add_column(name, justify="right")
    for group in comparison.types:
        table.add_row(*_row(group))
    table.add_section()
    table.add_row(*_row(comparison.overall))
    return table


def notes(comparison: Comparison) -> list[str]:
    """Which tasks are shared, and what to know before quoting the sentence."""
    published = [side.is_published for side in (comparison.left, comparison.right)]
    tasks = ", ".join(pair.task for pair in comparison.overall.pairs)
    lines = [f"Shared tasks ({len(comparison.overall.pairs)}): {tasks}."]
    if comparison.other_metric:
        lines.append(f"Left out, measured by different main scores: {', '.join(comparison.other_metric)}.")
    if comparison.other_parts:
        listed = ", ".join(f"{task} ({_parts(comparison, task)})" for task in comparison.other_parts)
        lines.append(f"Left out, scored on different splits or subsets: {listed}.{_ENGLISH if any(published) else ''}")
    if any(published):
        lines += [_LEADERBOARD if all(published) else _NEWEST, _TRAINING_DATA]
    return lines


def _parts(comparison: Comparison, task: str) -> str:
    sides = (comparison.left, comparison.right)
    return " against ".join(" ".join(side.scores[task].parts) for side in sides)


def markdown(comparison: Comparison) -> str:
    """The sentence, the table, every task, and the notes."""
    left, right = comparison.left.label, comparison.right.label
    groups = [*comparison.types, comparison.overall]
    lines = [f"# {left} against {right}", "", sentence(comparison), ""]
    lines += _markdown_table(["task type", "tasks", left, right, *_COLUMNS[3:]], map(_row, groups))
    lines += ["", *_markdown_table(["task", left, right, "difference"], map(_task_row, comparison.overall.pairs))]
    lines += ["", *(f"- {note}" for note in notes(comparison)), ""]
    return "\n".join(lines)


def csv_text(comparison: Comparison) -> str:
    """A row per shared task, with where each score comes from; scores 0 to 100."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    for pair in comparison.overall.pairs:
        writer.writerow(
            [
                pair.task,
                pair.left.task_type,
                comparison.left.label,
                comparison.right.label,
                f"{100 * pair.left.score:.4f}",
                f"{100 * pair.right.score:.4f}",
                pair.left.source,
                pair.right.source,
            ]
        )
    return text.getvalue()


def _row(group: Group) -> list[str]:
    scores = [f"{100 * group.left:.2f}", f"{100 * group.right:.2f}", group.difference]
    return [group.name, str(len(group.pairs)), *scores, "-".join(map(str, group.outcomes))]


def _task_row(pair: TaskPair) -> list[str]:
    left, right = pair.left.score, pair.right.score
    return [pair.task, f"{100 * left:.2f}", f"{100 * right:.2f}", signed(left - right)]


def _markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    rule = "|---|" + "---:|" * (len(header) - 1)
    return [f"| {' | '.join(header)} |", rule, *(f"| {' | '.join(row)} |" for row in rows)]
