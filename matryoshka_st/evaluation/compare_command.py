"""``matryoshka-st compare``: our runs and published models side by side on the tasks they share."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from matryoshka_st.errors import UserError, did_you_mean
from matryoshka_st.evaluation.comparison import Comparison, compare, sentence
from matryoshka_st.evaluation.comparison_report import comparison_table, csv_text, markdown, notes
from matryoshka_st.evaluation.runs import read_runs
from matryoshka_st.evaluation.side_search import find_side
from matryoshka_st.evaluation.sides import Side, aggregate_parts, published_sides, run_sides
from matryoshka_st.evaluation.tasks import benchmark_tasks, require_mteb
from matryoshka_st.files import write_whole
from matryoshka_st.flags import Flags


@dataclass(frozen=True)
class Claim:
    """A claim that published scores per task reproduce."""

    left: str
    right: str
    benchmark: str


CLAIMS = {"openai-256": Claim("openai/text-embedding-3-large@256", "openai/text-embedding-ada-002", "MTEB(eng, v1)")}


def main(argv: Sequence[str], prog: str = "matryoshka-st compare", *, console: Console | None = None) -> None:
    """Parse the flags, compare, print.

    Args:
        argv: Flags, without the program's name.
        prog: Name shown by ``--help``.
        console: Where the result goes; default: stdout.

    Raises:
        UserError: If a flag, side, task, benchmark or folder is wrong, or the sides share no task.
        SystemExit: After ``--help``.
    """
    given = _flags(prog).parse(argv)
    _check(given)
    require_mteb()
    shown = console or Console()
    ours = run_sides(read_runs(given.results)) if given.results else []
    if given.list:
        shown.print(_list(ours + published_sides()))
        return
    comparison = _compare(given, ours)
    for file, text in ((given.markdown, markdown), (given.csv, csv_text)):
        if file:
            _write(file, text(comparison))
    shown.print(comparison_table(comparison))
    for line in (*notes(comparison), "", sentence(comparison)):
        shown.print(line, highlight=False, markup=False, soft_wrap=True)


def _compare(given: argparse.Namespace, ours: Sequence[Side]) -> Comparison:
    claim = CLAIMS[given.claim] if given.claim else Claim(given.left, given.right, given.benchmark)
    left, right = _sides(claim, ours, newest=False)
    if left.is_published != right.is_published:
        left, right = _sides(claim, ours, newest=True)
    tasks = given.tasks
    if tasks:
        _check_tasks(tasks, (left, right))
    elif claim.benchmark:
        tasks = [task.metadata.name for task in benchmark_tasks(claim.benchmark)]
    return compare(left, right, tasks=tasks, benchmark=claim.benchmark, aggregates=aggregate_parts())


def _sides(claim: Claim, ours: Sequence[Side], *, newest: bool) -> tuple[Side, Side]:
    sides = [*ours, *published_sides(newest=newest)]
    return find_side(claim.left, sides), find_side(claim.right, sides)


def _check(given: argparse.Namespace) -> None:
    if given.claim and given.claim not in CLAIMS:
        raise UserError(f"There is no claim {given.claim!r}; use one of {', '.join(CLAIMS)}.")
    if given.claim and (given.left or given.tasks or given.benchmark):
        raise UserError(f"--claim {given.claim} says itself what is compared; leave out models, --tasks, --benchmark.")
    if given.tasks and given.benchmark:
        raise UserError("--tasks and --benchmark both choose the tasks; give one of them.")
    if not (given.claim or given.list or given.right):
        raise UserError(
            "compare needs two models, --claim or --list; for example: compare nomic-embed-text-v1.5@64 ada-002."
        )


def _check_tasks(tasks: Sequence[str], sides: Sequence[Side]) -> None:
    for side in sides:
        for task in tasks:
            if task not in side.scores:
                hint = did_you_mean(task, side.scores)
                raise UserError(f"There is no score of {side.label} on {task!r}{hint or '; leave the task out.'}")


def _list(sides: Sequence[Side]) -> Table:
    table = Table("model@dim", "tasks", title="What can be compared")
    ordered = sorted(
        sides, key=lambda side: (side.model.lower(), side.revision, side.variant, side.precision, -side.dim)
    )
    for side in sorted(ordered, key=lambda side: side.is_published):
        label = side.label if side.is_published else side.full_label
        table.add_row(label, str(len(side.scores) or "averages only"))
    return table


def _write(path: Path, text: str) -> None:
    try:
        write_whole(path, text)
    except OSError as error:
        raise UserError(f"{str(path)!r} cannot be written ({error.strerror}); give another file.") from error


def _flags(prog: str) -> Flags:
    flags = Flags(
        prog=prog,
        description="Our runs and published models side by side on the tasks they share.",
        epilog=f"example: {prog} local/model@64 ada-002 --results output/results --benchmark 'MTEB(eng, v1)'",
    )
    side = "model@dim, for example ada-002, text-embedding-3-large@256 or, of our runs, local/model@64:binary"
    flags.add_argument("left", nargs="?", help=f"{side}; without @dim its full width")
    flags.add_argument("right", nargs="?", help="the same")
    flags.add_argument("--results", nargs="+", type=Path, help="folders of our runs (eval --output)")
    flags.add_argument("--benchmark", help="compare on the tasks of an mteb benchmark; default: all shared tasks")
    flags.add_argument("--tasks", nargs="+", help="compare on these tasks")
    flags.add_argument("--claim", help=f"reproduce a published claim: {', '.join(CLAIMS)}")
    flags.add_argument("--markdown", type=Path, help="write the comparison to a file, with every task")
    flags.add_argument("--csv", type=Path, help="write every task to a file, with the source of each score")
    flags.add_argument("--list", action="store_true", help="show every model and dim that can be compared")
    return flags
