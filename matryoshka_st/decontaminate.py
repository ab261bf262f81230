"""``matryoshka-st check --against TASK ...``: which training rows hold texts that the tasks are scored on.

No model is loaded. Texts are compared as only their words. A row counts as exact for a task if one of its texts is one
of the task's, as near if one is a near-duplicate (see ``matryoshka_st.data.near``). Texts of fewer than four words are
not counted; those of fewer than eight can only match exactly.
"""

from __future__ import annotations

import argparse
import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow.parquet as pq
from rich.console import Console

from matryoshka_st.data import load_pairs, source_names
from matryoshka_st.data.near import CONTAINED_WORDS, NEAR_WORDS, SMALLEST_THRESHOLD, check_threshold
from matryoshka_st.data.overlap import SHORTEST_WORDS, Overlap, OverlapIndex
from matryoshka_st.errors import UserError
from matryoshka_st.evaluation.tasks import find_task, load_task, require_mteb
from matryoshka_st.evaluation.texts import evaluation_texts
from matryoshka_st.files import write_json
from matryoshka_st.flags import Flags, underscored
from matryoshka_st.overlap_report import Report, TaskTexts, as_json, count, example_lines, table, task_lines, verdict
from matryoshka_st.training.recipe import parse_recipe
from matryoshka_st.training.run import quiet_logging

if TYPE_CHECKING:
    from datasets import Dataset
    from mteb.abstasks.abstask import AbsTask

logger = logging.getLogger(__name__)

SCHEMA_VERSION = 1
FLAG = "--against"
LIBRARIES = ("matryoshka-st", "mteb", "datasets", "numpy", "scipy")
EPILOG = """All training flags and --config are taken too: the rows are those of --train_data, with --train_split,
--column_order and --bad_rows, and all of them, whatever --max_train_rows would use."""


def is_asked_for(argv: Iterable[str]) -> bool:
    """Whether the flags of ``matryoshka-st check`` ask for the overlap rather than for a dry run."""
    return any(underscored(word).partition("=")[0] == FLAG for word in argv)


def main(argv: Sequence[str], prog: str) -> None:
    """Parse the flags, compare, report, and write what was asked for.

    Args:
        argv: Flags, without the program's name.
        prog: Name shown by ``--help``.

    Raises:
        UserError: If a flag, a task or the training data is wrong, or a file cannot be written.
        SystemExit: After ``--help``.
    """
    given, others = _flags(prog).parse_known_args(list(map(underscored, argv)))
    _check(given)
    data = parse_recipe(others, prog).data
    quiet_logging()
    targets = drop_targets(given.drop, data.train_data) if given.drop else {}
    sets = {
        name: load_pairs(source, split=data.train_split, bad_rows=data.bad_rows, column_order=data.column_order)
        for name, source in zip(source_names(data.train_data), data.train_data, strict=True)
    }
    tasks = [find_task(name, languages=given.languages) for name in dict.fromkeys(given.against)]
    index, facts = _index(tasks, given.dataset_mirror, given.near_threshold)
    overlaps = {name: _compare(name, dataset, index) for name, dataset in sets.items()}
    report = count(index, overlaps, facts)

    console = Console()
    for line in (*task_lines(facts), *example_lines(overlaps, given.examples)):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    console.print(table(report))
    console.print(verdict(report.sets), markup=False, soft_wrap=True)
    if given.output:
        _write_report(given.output, report, [*prog.split(), *argv], given.near_threshold)
    for line in drop_rows(sets, overlaps, targets):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def drop_targets(folder: Path, sources: Sequence[str]) -> dict[str, Path]:
    """The cleaned file of each source.

    Args:
        folder: Where the files go.
        sources: Training sources; those that are no paths cannot be overwritten.

    Returns:
        The path by the source's name.

    Raises:
        UserError: If the folder is a file, or a cleaned file would replace a source or lie in one.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--drop got {str(folder)!r}, which is a file; give a folder.")
    targets = {name: folder / f"{name}.parquet" for name in source_names(sources)}
    inputs = {path.resolve() for source in sources if (path := Path(source).expanduser()).exists()}
    for target in targets.values():
        if not inputs.isdisjoint({target.resolve(), *target.resolve().parents}):
            raise UserError(f"--drop would write {str(target)!r} over training data; give another folder.")
    return targets


def drop_rows(
    sets: Mapping[str, Dataset], overlaps: Mapping[str, Overlap], targets: Mapping[str, Path]
) -> Iterator[str]:
    """Write the rows without a match, each set to its target, and say how many they are.

    Raises:
        UserError: If a set would have no row left, before anything is written; or a file cannot be written.
    """
    kept = {name: np.flatnonzero(overlaps[name].clean) for name in targets}
    for name, rows in kept.items():
        if not len(rows):
            raise UserError(f"Every row of {name} has a text of the tasks, so none is left; leave it out.")
    for name, target in targets.items():
        _write_parquet(sets[name].select(kept[name]), target)
        yield f"{target}: {len(kept[name]):,} of {len(sets[name]):,} rows are left"


def _index(
    tasks: Sequence[AbsTask], mirror: Path | None, threshold: float
) -> tuple[OverlapIndex, dict[str, TaskTexts]]:
    for task in tasks:
        load_task(task, mirror)
    index = OverlapIndex({task.metadata.name: evaluation_texts(task) for task in tasks}, threshold)
    sizes = zip(tasks, index.texts_of_tasks(), index.too_short, strict=True)
    return index, {
        task.metadata.name: TaskTexts(
            task.metadata.revision, list(task.hf_subsets), list(task.eval_splits), texts, too_short
        )
        for task, texts, too_short in sizes
    }


def _compare(name: str, dataset: Dataset, index: OverlapIndex) -> Overlap:
    overlap = index.compare(dataset)
    logger.info("%s: %d of %d rows are clean.", name, overlap.clean.sum(), len(dataset))
    return overlap


def _write_parquet(dataset: Dataset, path: Path) -> None:
    partial = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            pq.write_table(dataset.with_format("arrow")[:], file)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        raise UserError(f"{path} could not be written ({error.strerror}); give another folder with --drop.") from error


def _write_report(path: Path, report: Report, command: list[str], near_threshold: float) -> None:
    facts = {
        "schema_version": SCHEMA_VERSION,
        "command": command,
        "versions": {library: version(library) for library in LIBRARIES},
        "method": {
            "near_threshold": near_threshold,
            "shortest_words": SHORTEST_WORDS,
            "near_words": NEAR_WORDS,
            "contained_words": CONTAINED_WORDS,
        },
    }
    try:
        write_json(path, {**facts, **as_json(report)})
    except OSError as error:
        raise UserError(f"{path} could not be written ({error.strerror}); give another --output.") from error


def _flags(prog: str) -> Flags:
    flags = Flags(
        prog=prog,
        description="Count the training rows that hold texts of mteb tasks, exactly or nearly; no model is loaded.",
        epilog=EPILOG,
    )
    flags.add_argument(FLAG, nargs="*", default=[], metavar="TASK", help="names of mteb tasks")
    flags.add_argument(
        "--dataset_mirror", type=Path, help="local datasets, DIR/mteb/<name>; with it nothing is fetched"
    )
    flags.add_argument("--languages", nargs="+", help="only subsets in these languages, for example eng")
    flags.add_argument(
        "--near_threshold",
        type=float,
        default=SMALLEST_THRESHOLD,
        help="share of words, or of one text's word trigrams, that near-duplicates have in common (default "
        f"{SMALLEST_THRESHOLD})",
    )
    flags.add_argument("--examples", type=int, default=0, help="show so many matches of each set (default 0)")
    flags.add_argument("--drop", type=Path, help="folder for each set without its matching rows, as .parquet")
    flags.add_argument("--output", type=Path, help="JSON file of all counts, without any text")
    return flags


def _check(given: argparse.Namespace) -> None:
    require_mteb()
    if not given.against:
        raise UserError(f"{FLAG} names no task; give one or more names of mteb tasks.")
    if given.examples < 0:
        raise UserError(f"--examples is {given.examples}; give 0 or more.")
    check_threshold(given.near_threshold)
