"""A table, and how it reads as HTML, Markdown and CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from html import escape

MISSING = "-"
DESCENDING = ' aria-sort="descending"'


@dataclass(frozen=True)
class Column:
    """The head of a column; the note is its tooltip."""

    name: str
    is_number: bool = True
    note: str = ""


@dataclass(frozen=True)
class Cell:
    """What is shown, the number to sort by, and a tooltip."""

    text: str
    value: float | None = None
    note: str = ""
    is_best: bool = False


@dataclass(frozen=True)
class Table:
    """Rows of cells under columns; ``falling`` is the column whose values fall from row to row."""

    columns: Sequence[Column]
    rows: Sequence[Sequence[Cell]]
    falling: int | None = None


def number(value: float) -> Cell:
    """A whole number."""
    return Cell(f"{value:.0f}", value)


def hundredths(value: float | None, digits: int = 2, note: str = "") -> Cell:
    """A share or score from 0 to 1, times 100.

    >>> hundredths(0.5804).text, hundredths(None).text
    ('58.04', '-')
    """
    return Cell(MISSING, note=note) if value is None else Cell(f"{100 * value:.{digits}f}", value, note)


def mark_best(rows: Sequence[Sequence[Cell]], columns: Sequence[int]) -> list[list[Cell]]:
    """Mark the cells that show the highest number of their column."""
    marked = [list(row) for row in rows]
    for column in columns:
        values = [cell.value for row in rows if (cell := row[column]).value is not None]
        shown = next((row[column].text for row in rows if values and row[column].value == max(values)), None)
        for row in marked:
            row[column] = replace(row[column], is_best=row[column].text == shown)
    return marked


def to_html(table: Table, label: str) -> str:
    """A sortable table in a container of its own that scrolls.

    Args:
        table: Any.
        label: Says what the table holds.
    """
    head = "".join(
        f'<th scope="col"{_attributes(column.is_number, column.note)}'
        f"{DESCENDING if i == table.falling else ''}>{escape(column.name)}</th>"
        for i, column in enumerate(table.columns)
    )
    body = "\n".join(
        "<tr>" + "".join(_html_cell(cell, column) for cell, column in zip(row, table.columns, strict=True)) + "</tr>"
        for row in table.rows
    )
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-label="{escape(label)}">\n'
        f'<table class="sortable">\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table>\n</div>'
    )


def to_markdown(table: Table) -> str:
    """A Markdown table, numbers to the right, the best in bold."""
    lines = [[_plain(column.name) for column in table.columns]]
    lines.append(["---:" if column.is_number else "---" for column in table.columns])
    lines += [[f"**{cell.text}**" if cell.is_best else _plain(cell.text) for cell in row] for row in table.rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def to_csv(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Comma-separated values with a head; what is missing stays empty."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(["" if cell == MISSING else cell for cell in row] for row in rows)
    return file.getvalue()


def table_csv(table: Table) -> str:
    """A table as comma-separated values."""
    return to_csv([column.name for column in table.columns], [[cell.text for cell in row] for row in table.rows])


def _html_cell(cell: Cell, column: Column) -> str:
    value = "" if cell.value is None else f' data-value="{cell.value!r}"'
    text = f"<strong>{escape(cell.text)}</strong>" if cell.is_best else escape(cell.text)
    return f"<td{_attributes(column.is_number, cell.note)}{value}>{text}</td>"


def _attributes(is_number: bool, note: str) -> str:
    return (' class="number"' if is_number else "") + (f' title="{escape(note)}"' if note else "")


def _plain(text: str) -> str:
    return text.replace("|", "\\|")
