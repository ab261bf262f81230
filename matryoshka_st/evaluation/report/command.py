"""``matryoshka-st report``: its flags, and its files on disk."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from matryoshka_st.evaluation.report.compose import PAGE, report_files
from matryoshka_st.evaluation.runs import Run, read_runs
from matryoshka_st.files import check_parents, write_whole
from matryoshka_st.flags import Flags


def main(argv: Sequence[str], prog: str = "matryoshka-st report") -> None:
    """Parse the flags, read the results, write the report.

    Args:
        argv: Flags, without the program's name.
        prog: Name shown by ``--help``.

    Raises:
        UserError: If a flag, a folder or a result is wrong.
        SystemExit: After ``--help``.
    """
    given = _flags(prog).parse(argv)
    page = write_report(read_runs(given.folders), given.output, given.title)
    Console().print(f"Report: {page}", markup=False, soft_wrap=True)


def write_report(runs: Sequence[Run], folder: Path, title: str) -> Path:
    """Write page, tables and figures into a folder.

    Args:
        runs: What was scored.
        folder: Made if missing; files of an older report are replaced.
        title: Heading of the page.

    Returns:
        The page, which is written last.

    Raises:
        UserError: If the folder is a file or cannot be written, or the runs are none or contradict each other.
        OptionalDependencyError: If matplotlib is not installed.
    """
    check_parents(folder / PAGE)
    for name, content in report_files(runs, title).items():
        write_whole(folder / name, content)
    return folder / PAGE


def _flags(prog: str) -> Flags:
    flags = Flags(
        prog=prog,
        description="Turn results of eval into one self-contained page: figures, tables, and the data beside it.",
        epilog=f"example: {prog} results/mine results/theirs --output report --title 'Mine and theirs'",
    )
    flags.add_argument("folders", metavar="DIR", nargs="+", type=Path, help="what eval --output wrote")
    flags.add_argument("--output", metavar="FOLDER", type=Path, default=Path("report"), help="default: report")
    flags.add_argument("--title", default="Matryoshka embeddings, score by score", help="heading of the page")
    return flags
