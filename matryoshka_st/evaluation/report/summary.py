"""The tables of a report."""

from __future__ import annotations

from matryoshka_st.evaluation.report.board import Board, Group, View, pareto_front
from matryoshka_st.evaluation.report.tables import Cell, Column, Table, hundredths, mark_best, number

VIEW_COLUMNS = (
    Column("model", is_number=False),
    Column("dims"),
    Column("precision", is_number=False),
    Column("bytes", note="bytes per vector"),
)


def comparison_table(board: Board) -> Table:
    """A row per view, the best mean first: task types, the mean over all tasks, its share of the full width."""
    table = _scores_table(board, board.groups)
    shares = [hundredths(board.share(view, board.overall), 1) for view in _by_score(board)]
    rows = [[*row, share] for row, share in zip(table.rows, shares, strict=True)]
    last = Column("% of full", note=f"share of the model's own {board.overall.name} at full width in float32")
    return Table([*table.columns, last], rows, falling=table.falling)


def task_table(board: Board) -> Table:
    """A row per view, in the order of the comparison: every task."""
    return _scores_table(board, [Group(task, (task,)) for task in board.metrics], falling=False)


def front_table(board: Board, group: Group) -> Table:
    """The views on the Pareto front, smallest first."""
    rows = [
        [*_view_cells(board, view), hundredths(board.score(view, group)), hundredths(board.share(view, group), 1)]
        for view in pareto_front(board, group)
    ]
    return Table([*VIEW_COLUMNS, Column(group.name), Column("% of full")], rows)


def tasks_in_words(board: Board) -> list[str]:
    """For every type, its tasks and their metrics."""
    types = [group for group in board.groups if group is not board.overall or len(board.groups) == 1]
    return [f"{group.name}: {', '.join(f'{task} ({board.metrics[task]})' for task in group.tasks)}" for group in types]


def incomplete_in_words(board: Board) -> list[str]:
    """The views that have no overall mean, and the tasks they lack."""
    lacking = {view: board.missing(view, board.overall) for view in board.scores}
    return [f"{_name(board, view)}: no {', '.join(tasks)}" for view, tasks in lacking.items() if tasks]


def _scores_table(board: Board, groups: list[Group] | tuple[Group, ...], *, falling: bool = True) -> Table:
    rows = [
        [*_view_cells(board, view), *(_score_cell(board, view, group) for group in groups)]
        for view in _by_score(board)
    ]
    first, last = len(VIEW_COLUMNS), len(VIEW_COLUMNS) + len(groups)
    columns = [Column(group.name, note=", ".join(group.tasks)) for group in groups]
    return Table([*VIEW_COLUMNS, *columns], mark_best(rows, range(first, last)), falling=last - 1 if falling else None)


def _score_cell(board: Board, view: View, group: Group) -> Cell:
    missing = board.missing(view, group)
    return hundredths(board.score(view, group), note=f"not scored on {', '.join(missing)}" if missing else "")


def _by_score(board: Board) -> list[View]:
    """The best overall first, then those without an overall score."""

    def key(view: View) -> float:
        score = board.score(view, board.overall)
        return 1.0 if score is None else -score

    return sorted(board.scores, key=key)


def _view_cells(board: Board, view: View) -> list[Cell]:
    label = Cell(board.labels[view.series], note=f"{view.series.model} {view.series.revision}")
    return [label, number(view.dim), Cell(view.precision), number(view.bytes_per_vector)]


def _name(board: Board, view: View) -> str:
    return f"{board.labels[view.series]}, {view.dim} dims, {view.precision}"
