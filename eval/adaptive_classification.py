"""Adaptive classification: the accuracy of the full width at the dims it takes, beside oracle and grid search.

    python eval/adaptive_classification.py --data MIRROR/mteb/banking77 MIRROR/mteb/amazon_massive_intent

One logistic regression per prefix is fitted on the training split; thresholds are learned from its out-of-fold
predictions. The test split is only scored.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from sklearn.linear_model import LogisticRegression

from matryoshka_st.adaptive import AdaptiveClassifier
from matryoshka_st.cascade import CascadePoint, at_thresholds, cheapest, grid_search, stops
from matryoshka_st.cli import exit_with_one_sentence
from matryoshka_st.evaluation.labelled_vectors import LabelledVectors, labelled_vectors
from matryoshka_st.evaluation.provenance import provenance
from matryoshka_st.evaluation.significance import Difference, paired_difference
from matryoshka_st.files import write_json
from matryoshka_st.flags import Flags
from matryoshka_st.models import load_model, weights_hash


def measure(vectors: LabelledVectors, dims: Sequence[int], tolerances: Sequence[float], c: float) -> dict[str, Any]:
    """Fit one cascade, and score it on the test split with the thresholds of every method and tolerance."""
    start = time.perf_counter()
    base = LogisticRegression(C=c, max_iter=1000)
    adaptive = AdaptiveClassifier(list(dims), base, tolerance=tolerances[0])
    adaptive.fit(vectors.train.numpy(), vectors.train_labels)
    held_out = adaptive.held_out_predictions_
    asked = adaptive.predictions(vectors.test.numpy(), vectors.test_labels)
    used, level = adaptive.matryoshka_dims_, adaptive.level
    found = {f"tolerance {t:g}": cheapest(*held_out, used, tolerance=t, level=level) for t in tolerances}
    found["grid search of the paper"] = grid_search(*held_out, used)
    report = adaptive.evaluate(vectors.test.numpy(), vectors.test_labels)
    return {
        "classes": len(vectors.names),
        "train_rows": len(vectors.train),
        "test_rows": len(vectors.test),
        "seconds_to_fit": time.perf_counter() - start,
        "dims": list(used),
        "accuracy_per_dim": list(report.accuracy_per_dim),
        "oracle": {"accuracy": report.oracle_accuracy, "expected_dims": report.oracle_dims},
        "cascades": {name: _scored(point, asked, used) for name, point in found.items()},
        "curve": [asdict(point) for point in adaptive.curve(vectors.test.numpy(), vectors.test_labels)],
    }


def _scored(learned: CascadePoint, asked: tuple[Any, Any], dims: Sequence[int]) -> dict[str, Any]:
    confidence, correct = asked
    stop = stops(confidence, learned.thresholds)
    point = at_thresholds(confidence, correct, dims, learned.thresholds)
    right = {str(row): float(correct[row, k]) for row, k in enumerate(stop)}
    full = {str(row): float(value) for row, value in enumerate(correct[:, -1])}
    difference = paired_difference(right, full)
    return {
        "thresholds": [None if np.isinf(threshold) else threshold for threshold in learned.thresholds],
        "held_out_expected_dims": learned.expected_dims,
        "accuracy": point.accuracy,
        "against_full_width": asdict(difference),
        "expected_dims": point.expected_dims,
        "classifier_dims": float(np.cumsum(dims)[stop].mean()),
        "share_per_dim": (np.bincount(stop, minlength=len(dims)) / len(stop)).tolist(),
    }


def table(name: str, case: dict[str, Any]) -> Table:
    """One row per way to choose a prefix."""
    result = Table(title=f"{name}: {case['classes']} classes, {case['test_rows']:,} test texts", box=SIMPLE_HEAD)
    result.add_column("prefix")
    for column in ("expected dims", "through classifiers", "accuracy", "against full width, points [95 %]"):
        result.add_column(column, justify="right")
    for dim, accuracy in zip(case["dims"], case["accuracy_per_dim"], strict=True):
        result.add_row(f"{dim} for all", str(dim), str(dim), f"{100 * accuracy:.2f}", "")
    for label, found in case["cascades"].items():
        against = Difference(**found["against_full_width"])
        apart = f"{100 * against.mean:+.2f} [{100 * against.low:.2f}, {100 * against.high:.2f}]"
        cells = (f"{found['expected_dims']:.1f}", f"{found['classifier_dims']:.1f}", f"{100 * found['accuracy']:.2f}")
        result.add_row(f"adaptive, {label}", *cells, apart.replace("[", "\\["))
    oracle = case["oracle"]
    result.add_row("oracle", f"{oracle['expected_dims']:.1f}", "", f"{100 * oracle['accuracy']:.2f}", "")
    return result


def main() -> None:
    """Measure, print tables, write a JSON."""
    flags = Flags(prog="adaptive_classification.py", description=__doc__)
    flags.add_argument("--model", default="bundled", help="a hub id, a folder, or 'bundled'")
    flags.add_argument("--data", nargs="+", required=True, help="hub ids or folders with the splits train and test")
    flags.add_argument("--dims", nargs="+", type=int, default=[384, 256, 128, 64, 32, 16])
    flags.add_argument("--tolerances", nargs="+", type=float, default=[0.0, 0.005, 0.01])
    flags.add_argument("--C", type=float, default=10.0, help="inverse regularisation of the logistic regressions")
    flags.add_argument("--batch-size", type=int, default=64)
    flags.add_argument("--output", type=Path, help="JSON to write")
    given = flags.parse(sys.argv[1:])
    model, load, cases = load_model(given.model), os.getloadavg(), {}
    for source in given.data:
        vectors = labelled_vectors(model, source, batch_size=given.batch_size)
        name = Path(source).name
        cases[name] = measure(vectors, given.dims, given.tolerances, given.C)
        Console(width=130).print(table(name, cases[name]))
    if given.output:
        write_json(
            given.output,
            {
                "schema_version": 1,
                **provenance(["torch", "sentence-transformers", "scikit-learn"], model.device.type),
                "load_average": {"before": load, "after": os.getloadavg()},
                "weights": weights_hash(model),
                "cases": cases,
            },
        )


if __name__ == "__main__":
    with exit_with_one_sentence():
        main()
