"""Rebuild ``eval/reference/*.csv`` from raw tables of published scores (``scores.csv`` and ``scores_current.csv``).

What the files mean stands in ``eval/reference/README.md``.

The raw tables have the columns ``model,embed_dim,task,split,metric,score,source``, one row per model, dim and task;
rows whose task begins with ``AVERAGE`` are published means.

    python eval/build_reference.py ../shared/data/reference
"""

from __future__ import annotations

import argparse
import csv
import re
from collections.abc import Iterable
from pathlib import Path

REFERENCE = Path(__file__).parent / "reference"
SCORE_COLUMNS = ("model", "dim", "task", "split", "metric", "score", "source")
AVERAGE_COLUMNS = ("model", "dim", "benchmark", "over", "score", "source")
_RESULT_FILE = re.compile(r"github:embeddings-benchmark/results@(?P<commit>\w+):results/(?P<folder>.+)/[^/]+\.json")
_AVERAGE = re.compile(r"AVERAGE (?P<benchmark>MTEB\(.+?\)) (?P<over>.+)")


def main() -> None:
    """Read the raw tables, write the three files."""
    parser = argparse.ArgumentParser(description="Rebuild eval/reference/*.csv from raw tables of published scores.")
    parser.add_argument("source", type=Path, help="folder with scores.csv and scores_current.csv")
    source = parser.parse_args().source
    rows = _read(source / "scores.csv")
    tasks = {_key(row): row for row in rows if not _AVERAGE.match(row["task"])}
    reruns = [row for row in _read(source / "scores_current.csv") if row["score"] != tasks[_key(row)]["score"]]
    _write("leaderboard.csv", SCORE_COLUMNS, [_score(row) for row in tasks.values()])
    _write("reruns.csv", SCORE_COLUMNS, [_score(row) for row in reruns])
    _write("averages.csv", AVERAGE_COLUMNS, [_average(row) for row in rows if _AVERAGE.match(row["task"])])


def _key(row: dict[str, str]) -> tuple[str, str, str]:
    return row["model"], row["embed_dim"], row["task"]


def _score(row: dict[str, str]) -> dict[str, str]:
    found = _RESULT_FILE.fullmatch(row["source"])
    if found is None:
        raise ValueError(f"{row['source']} is not a file of the results repository")
    source = f"results@{found['commit']}/{found['folder']}"
    return {**_shared(row), "task": row["task"], "split": row["split"], "metric": row["metric"], "source": source}


def _average(row: dict[str, str]) -> dict[str, str]:
    found = _AVERAGE.fullmatch(row["task"])
    if found is None:
        raise ValueError(f"{row['task']} names no benchmark")
    source = re.split(r"; table as quoted| \(stored ", row["source"])[0]
    return {**_shared(row), **found.groupdict(), "source": source}


def _shared(row: dict[str, str]) -> dict[str, str]:
    return {"model": row["model"], "dim": row["embed_dim"], "score": row["score"]}


def _read(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _write(name: str, columns: tuple[str, ...], rows: Iterable[dict[str, str]]) -> None:
    with (REFERENCE / name).open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
