"""How the overlap of training sets with tasks is reported: counts, a table, examples on request and a verdict."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from rich.table import Table

from matryoshka_st.data.overlap import Overlap, OverlapIndex

SHOWN_CHARACTERS = 90


@dataclass(frozen=True)
class TaskTexts:
    """What training sets were compared with.

    Args:
        revision: Of the task's dataset.
        subsets: Those compared.
        splits: Those compared.
        texts: Distinct texts that count.
        too_short: Distinct values that are too short to count, metadata among them.
    """

    revision: str
    subsets: list[str]
    splits: list[str]
    texts: int
    too_short: int


@dataclass(frozen=True)
class Counts:
    """Rows of one training set and texts of one task, or of all tasks together.

    Args:
        rows_exact: Rows with a text of the task.
        rows_near: Other rows with a near-duplicate of one.
        rows_both: Of both kinds, rows whose anchor and positive both match.
        texts_hit: Evaluation texts that were matched.
    """

    rows_exact: int
    rows_near: int
    rows_both: int
    texts_hit: int

    @property
    def rows(self) -> int:
        """Rows with any match."""
        return self.rows_exact + self.rows_near


@dataclass(frozen=True)
class SetCounts:
    """One training set.

    Args:
        rows: All of its rows.
        any_task: Its overlap with all tasks together.
        tasks: Its overlap with each task.
    """

    rows: int
    any_task: Counts
    tasks: dict[str, Counts]


@dataclass(frozen=True)
class Report:
    """What there is to tell.

    Args:
        tasks: What the sets were compared with.
        sets: Each training set.
        total: All of them together.
    """

    tasks: dict[str, TaskTexts]
    sets: dict[str, SetCounts]
    total: SetCounts


def count(index: OverlapIndex, overlaps: Mapping[str, Overlap], tasks: dict[str, TaskTexts]) -> Report:
    """Count what the training sets share with the tasks.

    Args:
        index: What they were compared with.
        overlaps: The overlap of each.
        tasks: The facts of each task of the index.
    """
    sets = {name: _count_set(index, overlap) for name, overlap in overlaps.items()}
    hit = np.unique(np.concatenate([overlap.hit for overlap in overlaps.values()]))
    total = SetCounts(
        rows=sum(counts.rows for counts in sets.values()),
        any_task=_summed([counts.any_task for counts in sets.values()], len(hit)),
        tasks={
            task: _summed([counts.tasks[task] for counts in sets.values()], texts)
            for task, texts in zip(index.tasks, index.texts_of_tasks(hit), strict=True)
        },
    )
    return Report(tasks, sets, total)


def table(report: Report) -> Table:
    """One line per set for all tasks together, then one for each task that it shares something with."""
    result = Table(title="Training rows with texts of evaluation tasks")
    for column in ("set", "task"):
        result.add_column(column, overflow="fold")
    for column in ("rows", "exact", "near", "both sides", "texts hit"):
        result.add_column(column, justify="right", no_wrap=True)
    for name, counts in {**report.sets, "all sets": report.total}.items():
        result.add_section()
        result.add_row(name, "any", f"{counts.rows:,}", *_cells(counts.any_task), f"{counts.any_task.texts_hit:,}")
        for task, shared in counts.tasks.items():
            if shared.rows:
                share = f"{shared.texts_hit:,} ({100 * shared.texts_hit / report.tasks[task].texts:.1f} %)"
                result.add_row("", task, "", *_cells(shared), share)
    return result


def task_lines(tasks: Mapping[str, TaskTexts]) -> Iterator[str]:
    """What each task was taken to be."""
    for name, task in tasks.items():
        subsets = "" if task.subsets == ["default"] else f", subset {' '.join(task.subsets)}"
        yield (
            f"{name}: split {' '.join(task.splits)}{subsets}, {task.texts:,} texts "
            f"({task.too_short:,} shorter values are not counted)"
        )


def example_lines(overlaps: Mapping[str, Overlap], most: int) -> Iterator[str]:
    """At most so many matches of each set, shortened, the near ones first."""
    for name, overlap in overlaps.items():
        for match in overlap.matches[:most]:
            kind = "exact" if match.exact else "near"
            yield f"{name}, {kind}: {_shortened(match.text)}"
            yield f"    {' '.join(match.tasks)}: {_shortened(match.evaluated)}"


def verdict(sets: Mapping[str, SetCounts]) -> str:
    """One line to search a log for: CLEAN if no row of any set matches, else OVERLAP.

    >>> verdict({"pairs": SetCounts(10, Counts(0, 0, 0, 0), {})})
    'VERDICT: CLEAN | 0 of 10 rows (0.00 %): 0 exact, 0 near | 0 of 1 sets'
    """
    rows = sum(counts.rows for counts in sets.values())
    found = {name: counts.any_task for name, counts in sets.items() if counts.any_task.rows}
    exact, near = (
        sum(shared.rows_exact for shared in found.values()),
        sum(shared.rows_near for shared in found.values()),
    )
    line = (
        f"VERDICT: {'OVERLAP' if found else 'CLEAN'} | {exact + near:,} of {rows:,} rows "
        f"({100 * (exact + near) / rows:.2f} %): {exact:,} exact, {near:,} near | {len(found)} of {len(sets)} sets"
    )
    if not found:
        return line
    most = max(found, key=lambda name: found[name].rows)
    return f"{line}, most in {most}: {found[most].rows:,} of {sets[most].rows:,}"


def as_json(report: Report) -> dict[str, Any]:
    """The counts, without a text; of a set, only the tasks that it shares something with."""
    return {
        "tasks": {name: asdict(task) for name, task in report.tasks.items()},
        "sets": {name: _flat(counts) for name, counts in report.sets.items()},
        "total": _flat(report.total),
        "verdict": verdict(report.sets),
    }


def _count_set(index: OverlapIndex, overlap: Overlap) -> SetCounts:
    exact = overlap.exact.any(axis=1)
    any_task = Counts(
        rows_exact=int(exact.sum()),
        rows_near=int((overlap.near.any(axis=1) & ~exact).sum()),
        rows_both=int(overlap.both.any(axis=1).sum()),
        texts_hit=len(overlap.hit),
    )
    rows = (flags.sum(axis=0).tolist() for flags in (overlap.exact, overlap.near, overlap.both))
    per_task = zip(*rows, index.texts_of_tasks(overlap.hit), strict=True)
    tasks = {task: Counts(*numbers) for task, numbers in zip(index.tasks, per_task, strict=True)}
    return SetCounts(len(overlap.exact), any_task, tasks)


def _flat(counts: SetCounts) -> dict[str, Any]:
    return {
        "rows": counts.rows,
        "rows_clean": counts.rows - counts.any_task.rows,
        **asdict(counts.any_task),
        "tasks": {task: asdict(shared) for task, shared in counts.tasks.items() if shared.rows},
    }


def _summed(counts: list[Counts], texts_hit: int) -> Counts:
    return Counts(
        rows_exact=sum(shared.rows_exact for shared in counts),
        rows_near=sum(shared.rows_near for shared in counts),
        rows_both=sum(shared.rows_both for shared in counts),
        texts_hit=texts_hit,
    )


def _cells(counts: Counts) -> list[str]:
    return [f"{number:,}" for number in (counts.rows_exact, counts.rows_near, counts.rows_both)]


def _shortened(text: str) -> str:
    return textwrap.shorten(text, SHOWN_CHARACTERS, placeholder=" ...")
