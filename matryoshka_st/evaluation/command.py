"""``matryoshka-st eval`` and ``eval/run_mteb.py``: the flags of an evaluation."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from matryoshka_st.errors import UserError
from matryoshka_st.evaluation.grid import Grid
from matryoshka_st.evaluation.harness import UnfinishedError, run_eval
from matryoshka_st.evaluation.precision import PRECISIONS
from matryoshka_st.evaluation.steps import BASELINES
from matryoshka_st.evaluation.tasks import require_mteb, select_tasks
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
    require_mteb()
    tasks = select_tasks(given.tasks, benchmark=given.benchmark, types=given.task_types, languages=given.languages)
    grid = Grid(
        precisions=given.precisions,
        normalized=not given.no_normalize,
        before_cut=given.before_cut,
        baselines=given.baselines,
        seeds=given.seeds,
        texts=given.texts,
    )
    common = {
        "prompts": _strings("--prompts", given.prompts),
        "model_kwargs": _mapping("--model-kwargs", given.model_kwargs),
        "mirror": given.dataset_mirror,
        "output": given.output,
        "batch_size": given.batch_size,
        "languages": given.languages,
        "splits": given.splits,
        "devices": given.devices,
    }
    unfinished: list[UnfinishedError] = []
    with _kept(unfinished):
        run_eval(given.model, tasks, dims=given.dims, grid=grid, name=given.name, **common)
    for model in given.fixed:
        with _kept(unfinished):
            run_eval(model, tasks, full_width_only=True, grid=replace(grid, baselines=()), **common)
    if unfinished:
        problems = {str(error): error for error in unfinished}
        raise UnfinishedError(list(problems.values()), [score for error in unfinished for score in error.scores])


@contextmanager
def _kept(unfinished: list[UnfinishedError]) -> Iterator[None]:
    """A task that one model could not be scored on must not keep the next one from being scored."""
    try:
        yield
    except UnfinishedError as error:
        unfinished.append(error)


def _flags(prog: str) -> Flags:
    flags = Flags(
        prog=prog,
        description="Score every dim of a model on real mteb tasks, encoding each text once.",
        epilog=f"example: {prog} bundled --tasks STSBenchmark SciFact --dims 384 256 128 64 32 --output results",
    )
    flags.add_argument("model", help="a hub id, a folder, or 'bundled'")
    flags.add_argument("--tasks", nargs="+", default=[], help="names of mteb tasks")
    flags.add_argument("--benchmark", help="all text tasks of an mteb benchmark, for example 'MTEB(eng, v2)'")
    flags.add_argument("--task-types", nargs="+", default=[], help="all text tasks of these types, for example STS")
    flags.add_argument(
        "--dims", nargs="+", type=int, help="default: those the model declares, else a ladder of halvings"
    )
    flags.add_argument(
        "--precisions", nargs="+", default=["float32"], help=f"how vectors are stored: {', '.join(PRECISIONS)}"
    )
    flags.add_argument(
        "--no-normalize", action="store_true", help="leave cut vectors at their length, as mteb's own embed_dim does"
    )
    flags.add_argument(
        "--before-cut", help="what the model needs before the cut: layer_norm (nomic v1.5) or package.module:function"
    )
    flags.add_argument(
        "--baselines", nargs="+", default=[], help=f"other bases to cut in, fitted on --texts: {', '.join(BASELINES)}"
    )
    flags.add_argument("--seeds", nargs="+", type=int, default=[0], help="one random baseline for each (default 0)")
    flags.add_argument(
        "--fixed",
        nargs="+",
        default=[],
        help="models trained at one width each (FF), scored at that width besides, all else alike but for baselines",
    )
    flags.add_argument(
        "--texts",
        help="training texts (pairs or a .txt file) for the baselines and for int8; without it int8 takes its ranges "
        "from each task's own documents or texts",
    )
    flags.add_argument("--name", help="organisation/name that results are filed under")
    flags.add_argument(
        "--dataset-mirror", type=Path, help="local datasets, DIR/mteb/<name>; with it nothing is fetched"
    )
    flags.add_argument("--output", type=Path, help="folder of mteb result JSON; finished work is not redone")
    flags.add_argument("--batch-size", type=int, default=32, help="texts per forward pass (default 32)")
    flags.add_argument("--languages", nargs="+", help="score only subsets in these languages, for example eng")
    flags.add_argument("--splits", nargs="+", help="default: test where a task has it, else all of its splits")
    flags.add_argument("--devices", nargs="+", help="encode in one process per device, for example cuda:0 cuda:1")
    flags.add_argument(
        "--prompts", help='JSON of prompts by task, task type, "query" or "document": \'{"query": "query: "}\''
    )
    flags.add_argument("--model-kwargs", help='JSON passed on to transformers, for example \'{"dtype": "bfloat16"}\'')
    return flags


def _strings(flag: str, text: str | None) -> dict[str, str]:
    given = _mapping(flag, text)
    wrong = [key for key, value in given.items() if not isinstance(value, str)]
    if wrong:
        raise UserError(f"{flag} gives {wrong[0]!r} a value that is no string; every prompt is one.")
    return given


def _mapping(flag: str, text: str | None) -> dict[str, Any]:
    try:
        value = json.loads(text or "{}")
    except ValueError as error:
        raise UserError(f'{flag} is not JSON ({error}); give an object such as \'{{"key": "value"}}\'.') from error
    if not isinstance(value, dict):
        raise UserError(f'{flag} is {text}; give a JSON object such as \'{{"key": "value"}}\'.')
    return value
