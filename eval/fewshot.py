"""Nearest class mean of every prefix with few examples per class, and on a long tail, beside fixed-size models.

    python eval/fewshot.py MODEL --fixed FIXED_64 FIXED_32 --data MIRROR/mteb/banking77

Nothing is trained on the classes here; all models and dims see the same draws of examples.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from matryoshka_st.cli import exit_with_one_sentence
from matryoshka_st.evaluation.fewshot import GROUPS, FewShotScore, TailScore, few_shot, tail_scores
from matryoshka_st.evaluation.labelled_vectors import labelled_vectors
from matryoshka_st.evaluation.provenance import provenance
from matryoshka_st.files import write_json
from matryoshka_st.flags import Flags
from matryoshka_st.models import embedding_width, load_model, weights_hash


def measure(name: str, source: str, dims: Sequence[int] | None, given: Any) -> dict[str, Any]:
    """Both measurements for one model; without dims at its full width alone."""
    model = load_model(name)
    vectors = labelled_vectors(model, source, batch_size=given.batch_size)
    splits = (vectors.train, vectors.train_labels, vectors.test, vectors.test_labels)
    dims = dims or [embedding_width(model)]
    common = {"draws": given.draws, "seed": given.seed}
    few = few_shot(*splits, dims, shots=given.shots, **common)
    tail = tail_scores(*splits, dims, largest=given.largest, imbalance=given.imbalance, **common)
    return {
        "model": name,
        "weights": weights_hash(model),
        "classes": len(vectors.names),
        "smallest_class": int(np.bincount(vectors.train_labels).min()),
        "few_shot": [{"dim": s.dim, "shots": s.shots, "accuracies": s.accuracies} for s in few],
        "long_tail": [{"dim": s.dim, "accuracies": s.accuracies} for s in tail],
    }


def few_shot_table(source: str, runs: dict[str, list[dict[str, Any]]], shots: Sequence[int]) -> Table:
    """Mean and standard deviation over the draws, one row per dim and kind of model."""
    result = Table(title=f"{source}: nearest class mean, accuracy x100 (spread over draws) by examples per class")
    result.box = SIMPLE_HEAD
    result.add_column("dim", justify="right")
    result.add_column("model")
    for count in shots:
        result.add_column(str(count), justify="right")
    for dim, kind, rows in _rows(runs, "few_shot"):
        scores = [FewShotScore(dim, row["shots"], tuple(row["accuracies"])) for row in rows]
        result.add_row(str(dim), kind, *(f"{100 * s.mean:.2f} ({100 * s.spread:.2f})" for s in scores))
    return result


def tail_table(source: str, runs: dict[str, list[dict[str, Any]]]) -> Table:
    """The same of the groups of classes on the long tail."""
    result = Table(title=f"{source}: long tail, accuracy x100 (spread over draws) by group of classes")
    result.box = SIMPLE_HEAD
    result.add_column("dim", justify="right")
    result.add_column("model")
    for name in ("all", *GROUPS):
        result.add_column(name, justify="right")
    for dim, kind, rows in _rows(runs, "long_tail"):
        score = TailScore(dim, rows[0]["accuracies"])
        cells = [np.array(score.accuracies[name]) * 100 for name in ("all", *GROUPS)]
        result.add_row(str(dim), kind, *(f"{x.mean():.2f} ({x.std(ddof=min(1, len(x) - 1)):.2f})" for x in cells))
    return result


def _rows(runs: dict[str, list[dict[str, Any]]], part: str) -> list[tuple[int, str, list[dict[str, Any]]]]:
    """Per dim, widest first, the scores of each kind of model."""
    found: dict[tuple[int, str], list[dict[str, Any]]] = {}
    for kind, models in runs.items():
        for model in models:
            for row in model[part]:
                found.setdefault((row["dim"], kind), []).append(row)
    ordered = sorted(found, key=lambda key: -key[0])
    return [(dim, kind, found[dim, kind]) for dim, kind in ordered]


def main() -> None:
    """Measure, print tables, write a JSON."""
    flags = Flags(prog="fewshot.py", description=__doc__)
    flags.add_argument("model", help="a hub id, a folder, or 'bundled'")
    flags.add_argument("--fixed", nargs="+", default=[], help="models trained at one width each (FF), to compare with")
    flags.add_argument("--baseline", help="another model, cut to the same dims, such as the untrained one")
    flags.add_argument("--data", nargs="+", required=True, help="hub ids or folders with the splits train and test")
    flags.add_argument("--dims", nargs="+", type=int, default=[384, 256, 128, 64, 32, 16])
    flags.add_argument("--shots", nargs="+", type=int, default=[1, 2, 4, 8, 16, 32])
    flags.add_argument("--draws", type=int, default=10, help="how often examples are drawn (default 10)")
    flags.add_argument("--largest", type=int, default=100, help="rows of the largest class of the long tail")
    flags.add_argument("--imbalance", type=float, default=100.0, help="how many times smaller its smallest class is")
    flags.add_argument("--seed", type=int, default=13)
    flags.add_argument("--batch-size", type=int, default=64)
    flags.add_argument("--output", type=Path, help="JSON to write")
    given = flags.parse(sys.argv[1:])
    given.shots = sorted(given.shots)
    load, cases, console = os.getloadavg(), {}, Console(width=130)
    for source in given.data:
        runs = {"nested": [measure(given.model, source, given.dims, given)]}
        if given.fixed:
            runs["fixed"] = [measure(name, source, None, given) for name in given.fixed]
        if given.baseline:
            runs["baseline"] = [measure(given.baseline, source, given.dims, given)]
        name = Path(source).name
        cases[name] = runs
        console.print(few_shot_table(name, runs, given.shots), tail_table(name, runs))
    if given.output:
        write_json(
            given.output,
            {
                "schema_version": 1,
                **provenance(["torch", "sentence-transformers"]),
                "load_average": {"before": load, "after": os.getloadavg()},
                "settings": {
                    name: getattr(given, name) for name in ("shots", "draws", "seed", "largest", "imbalance")
                },
                "cases": cases,
            },
        )


if __name__ == "__main__":
    with exit_with_one_sentence():
        main()
