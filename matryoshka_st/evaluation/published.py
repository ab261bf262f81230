"""Published scores of other people's models, read from ``eval/reference`` (a wheel carries it in the package)."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

FOLDERS = (Path(__file__).parent / "reference", Path(__file__).parents[2] / "eval" / "reference")


@dataclass(frozen=True)
class PublishedScore:
    """What somebody published for one model on one task.

    Attributes:
        model: ``organisation/name``.
        dim: Length of the vectors.
        task: mteb's name of the task.
        split: The split it was measured on.
        metric: The task's main score, under the name it had then.
        score: 0 to 100.
        source: Commit and folder of mteb's results repository.
    """

    model: str
    dim: int
    task: str
    split: str
    metric: str
    score: float
    source: str


@dataclass(frozen=True)
class PublishedAverage:
    """A published mean.

    Attributes:
        model: ``organisation/name``.
        dim: Length of the vectors.
        benchmark: mteb's name of the benchmark.
        over: What it is the mean of: all tasks, the types, or one type.
        score: 0 to 100.
        source: Where it was published.
    """

    model: str
    dim: int
    benchmark: str
    over: str
    score: float
    source: str


def published_scores(*, newest: bool = False) -> list[PublishedScore]:
    """All published scores, one per model, dim and task.

    Args:
        newest: Take the value of a later run of the model where there is one, instead of the one behind the published
            averages.
    """
    scores = {(score.model, score.dim, score.task): score for score in _scores("leaderboard.csv")}
    if newest:
        scores.update({(score.model, score.dim, score.task): score for score in _scores("reruns.csv")})
    return list(scores.values())


@cache
def published_averages() -> tuple[PublishedAverage, ...]:
    """All published means."""
    return tuple(
        PublishedAverage(
            row["model"], int(row["dim"]), row["benchmark"], row["over"], float(row["score"]), row["source"]
        )
        for row in _rows("averages.csv")
    )


@cache
def _scores(name: str) -> tuple[PublishedScore, ...]:
    return tuple(
        PublishedScore(
            row["model"],
            int(row["dim"]),
            row["task"],
            row["split"],
            row["metric"],
            float(row["score"]),
            row["source"],
        )
        for row in _rows(name)
    )


def _rows(name: str) -> Iterator[dict[str, str]]:
    folder = next(folder for folder in FOLDERS if (folder / name).exists())
    with (folder / name).open(encoding="utf-8", newline="") as file:
        yield from csv.DictReader(file)
