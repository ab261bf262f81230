"""Linear-probe and 1-nearest-neighbour accuracy of every dim, on the full training split of mteb classification tasks.

python eval/probe.py bundled --tasks Banking77Classification --dims 384 256 128 64 32 --dataset-mirror MIRROR
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from mteb.abstasks import AbsTaskClassification
from rich.console import Console
from rich.table import Table
from sentence_transformers import SentenceTransformer

from matryoshka_st.cli import exit_with_one_sentence
from matryoshka_st.errors import UserError
from matryoshka_st.evaluation.probes import ProbeScore, probe
from matryoshka_st.evaluation.provenance import provenance
from matryoshka_st.evaluation.tasks import find_task, load_task
from matryoshka_st.files import write_json
from matryoshka_st.flags import Flags
from matryoshka_st.models import load_model, weights_hash


def probe_task(
    model: SentenceTransformer, name: str, dims: list[int], mirror: Path | None, batch_size: int
) -> list[ProbeScore]:
    """Encode both splits of a task once, and probe every dim.

    Raises:
        UserError: If the task is unknown, is no classification task or its data is missing.
    """
    task = find_task(name, languages=["eng"])
    if not isinstance(task, AbsTaskClassification):
        raise UserError(f"Task {name!r} is of type {task.metadata.type}; give a classification task.")
    load_task(task, mirror)
    data = cast("Any", task.dataset)
    subset = data if "train" in data else data[next(iter(task.hf_subsets))]
    splits = [subset[split] for split in (task.train_split, "test")]
    labels = np.unique(np.array(splits[0][task.label_column_name]), return_inverse=False)
    vectors, classes = [], []
    for split in splits:
        texts = list(split[task.input_column_name])
        encoded = model.encode(texts, batch_size=batch_size, convert_to_tensor=True, show_progress_bar=None)
        vectors.append(torch.as_tensor(encoded).float().cpu())
        classes.append(np.searchsorted(labels, np.array(split[task.label_column_name])))
    return probe(vectors[0], classes[0], vectors[1], classes[1], dims)


def main() -> None:
    """Probe, print a table, write a JSON."""
    flags = Flags(prog="probe.py", description=__doc__)
    flags.add_argument("model", help="a hub id, a folder, or 'bundled'")
    flags.add_argument("--tasks", nargs="+", required=True, help="names of mteb classification tasks")
    flags.add_argument("--dims", nargs="+", type=int, default=[384, 256, 128, 64, 32])
    flags.add_argument("--dataset-mirror", type=Path, help="local datasets, DIR/mteb/<name>")
    flags.add_argument("--batch-size", type=int, default=64)
    flags.add_argument("--output", type=Path, help="JSON to write")
    given = flags.parse(sys.argv[1:])
    model = load_model(given.model)
    scores = {
        task: probe_task(model, task, given.dims, given.dataset_mirror, given.batch_size) for task in given.tasks
    }
    table = Table(title=f"{given.model}: test accuracy x100, all training texts")
    table.add_column("task")
    table.add_column("classifier")
    dims = [score.dim for score in next(iter(scores.values()))]
    for dim in dims:
        table.add_column(str(dim), justify="right")
    for task, rows in scores.items():
        table.add_row(task, "linear probe", *(f"{100 * row.linear:.2f}" for row in rows))
        table.add_row(task, "1-nearest neighbour", *(f"{100 * row.nearest:.2f}" for row in rows))
    Console().print(table)
    if given.output:
        write_json(
            given.output,
            {
                "schema_version": 1,
                **provenance(["torch", "sentence-transformers", "scikit-learn", "mteb"], model.device.type),
                "weights": weights_hash(model),
                "accuracy": {task: [vars(row) for row in rows] for task, rows in scores.items()},
            },
        )


if __name__ == "__main__":
    with exit_with_one_sentence():
        main()
