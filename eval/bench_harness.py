"""What scoring many cuts costs: texts encoded and wall time, beside one full-width run and beside mteb's own way.

    python eval/bench_harness.py --tasks STSBenchmark SciFact --dataset-mirror MIRROR --output bench_harness.json

Per task, one after the other in one process: the full width alone, the grid of dims and precisions, and mteb with
one ``SentenceTransformer(truncate_dim=d)`` for each dim (float32 only; mteb's own int8 and binary score other things).
"""

from __future__ import annotations

import argparse
import os
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mteb
import torch
from mteb.models import SentenceTransformerEncoderWrapper
from rich.console import Console
from rich.table import Table
from sentence_transformers import SentenceTransformer

from matryoshka_st.cli import exit_with_one_sentence
from matryoshka_st.evaluation.grid import Grid
from matryoshka_st.evaluation.harness import evaluate_dims
from matryoshka_st.evaluation.precision import PRECISIONS
from matryoshka_st.evaluation.provenance import provenance
from matryoshka_st.evaluation.tasks import find_task, load_task
from matryoshka_st.files import write_json
from matryoshka_st.models import load_model, resolve_model

FULL, GRID, MTEB = "full width", "grid", "mteb, once per dim"


class Counter:
    """Counts the texts that go through a model's forward pass."""

    def __init__(self, model: SentenceTransformer) -> None:
        self.texts = 0
        model.register_forward_pre_hook(self._count)

    def _count(self, module: torch.nn.Module, arguments: tuple[dict[str, torch.Tensor], ...]) -> None:
        self.texts += len(arguments[0]["input_ids"])


def run_ours(task: str, dims: list[int], precisions: list[str], given: argparse.Namespace) -> dict[str, Any]:
    """Seconds, texts and scores of one evaluation of ours."""
    model = load_model(given.model, device=given.device)
    counter = Counter(model)
    start = time.perf_counter()
    scores = evaluate_dims(
        model, [task], dims, grid=Grid(precisions=precisions), mirror=given.dataset_mirror, batch_size=given.batch_size
    )
    seconds = time.perf_counter() - start
    by_cut = {f"{score.dim} {score.precision}": score.score for score in scores}
    return {"seconds": seconds, "texts": counter.texts, "scores": by_cut}


def run_mteb(task: str, dims: list[int], given: argparse.Namespace) -> dict[str, Any]:
    """The same of mteb, evaluating one truncated model after the other."""
    seconds, texts, scores = 0.0, 0, {}
    for dim in dims:
        model = SentenceTransformer(resolve_model(given.model), truncate_dim=dim, device=given.device)
        counter = Counter(model)
        start = time.perf_counter()
        found = find_task(task)
        load_task(found, given.dataset_mirror)
        kwargs: Any = {"batch_size": given.batch_size, "show_progress_bar": False, "normalize_embeddings": True}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            wrapper = SentenceTransformerEncoderWrapper(model)
            results = mteb.evaluate(wrapper, found, cache=None, encode_kwargs=kwargs, co2_tracker=False)
        seconds += time.perf_counter() - start
        texts += counter.texts
        scores[f"{dim} float32"] = float(results.task_results[0].get_score())
    return {"seconds": seconds, "texts": texts, "scores": scores}


def measure(task: str, given: argparse.Namespace) -> dict[str, Any]:
    """All three ways on one task."""
    width = max(given.dims)
    ways: dict[str, Callable[[], dict[str, Any]]] = {
        FULL: lambda: run_ours(task, [width], ["float32"], given),
        GRID: lambda: run_ours(task, given.dims, given.precisions, given),
    }
    if given.mteb is None or task in given.mteb:
        ways[MTEB] = lambda: run_mteb(task, given.dims, given)
    return {"task": task, **{name: run() for name, run in ways.items()}}


def main() -> None:
    """Measure, print a table, write a JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="bundled")
    parser.add_argument("--tasks", nargs="+", default=["STSBenchmark", "SciFact"])
    parser.add_argument("--mteb", nargs="*", help="tasks to run mteb's own way on (slow); default: all")
    parser.add_argument("--dims", nargs="+", type=int, default=[384, 256, 128, 64, 32])
    parser.add_argument("--precisions", nargs="+", default=list(PRECISIONS))
    parser.add_argument("--dataset-mirror", type=Path)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--output", type=Path, help="JSON to write")
    given = parser.parse_args()
    load = os.getloadavg()
    cases = [measure(task, given) for task in given.tasks]
    table = Table(title=f"{len(given.dims)} dims x {len(given.precisions)} precisions")
    for column in ("task", "way", "cuts", "texts encoded", "seconds", "times the full width"):
        table.add_column(column, justify="left" if column in ("task", "way") else "right")
    for case in cases:
        for way in (FULL, GRID, MTEB):
            if way not in case:
                continue
            run = case[way]
            ratio = run["seconds"] / case[FULL]["seconds"]
            cells = (str(len(run["scores"])), f"{run['texts']:,}", f"{run['seconds']:.1f}", f"{ratio:.2f}")
            table.add_row(case["task"], way, *cells)
    Console().print(table)
    if given.output:
        write_json(
            given.output,
            {
                "schema_version": 1,
                **provenance(["torch", "sentence-transformers", "mteb"], given.device),
                "load_average": {"before": load, "after": os.getloadavg()},
                "cases": cases,
            },
        )


if __name__ == "__main__":
    with exit_with_one_sentence():
        main()
