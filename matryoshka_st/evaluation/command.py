"""``matryoshka-st eval`` and ``eval/run_mteb.py``: the flags of an evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matryoshka_st.evaluation.harness import run_eval
from matryoshka_st.flags import Flags


def main(argv: Sequence[str], prog: str = "run_mteb.py") -> None:
    """Parse the flags, evaluate, print the table.

    Args:
        argv: Flags, without the program's name.
        prog: Name shown by ``--help``.

    Raises:
        UserError: If a flag, the model, a dim or a task is wrong.
        SystemExit: After ``--help``.
    """
    given = _flags(prog).parse(argv)
    run_eval(
        given.model,
        given.tasks,
        dims=given.dims,
        mirror=given.dataset_mirror,
        output=given.output,
        batch_size=given.batch_size,
        languages=given.languages,
        splits=given.splits,
    )


def _flags(prog: str) -> Flags:
    flags = Flags(
        prog=prog,
        description="Score every dim of a model on real mteb tasks, encoding each text once.",
        epilog=f"example: {prog} bundled --tasks STSBenchmark SciFact --dims 384 256 128 64 32 --output results",
    )
    flags.add_argument("model", help="a hub id, a folder, or 'bundled'")
    flags.add_argument("--tasks", nargs="+", required=True, help="names of mteb tasks")
    flags.add_argument(
        "--dims", nargs="+", type=int, help="default: those the model declares, else a ladder of halvings"
    )
    flags.add_argument(
        "--dataset-mirror", type=Path, help="local datasets, DIR/mteb/<name>; with it nothing is fetched"
    )
    flags.add_argument("--output", type=Path, help="folder of mteb result JSON; finished work is not redone")
    flags.add_argument("--batch-size", type=int, default=32, help="texts per forward pass (default 32)")
    flags.add_argument("--languages", nargs="+", help="score only subsets in these languages, for example eng")
    flags.add_argument("--splits", nargs="+", help="default: test where a task has it, else all of its splits")
    return flags
