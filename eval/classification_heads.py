r"""MRL and MRL-E heads beside fixed-size models (FF), each fine-tuned with the same budget, scored on the test split.

    python eval/classification_heads.py --data MIRROR/mteb/banking77 --work output/heads \
        --num_train_epochs 3 --max_seq_length 64 --bf16 True --dropout 0 --attn_implementation eager

Flags that are not its own go to train_scripts/finetune_classifier.py, for every run. Started again, it goes on where
it was: finished runs are kept, a stopped one goes on from its checkpoint.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from matryoshka_st.cascade import at_thresholds, cheapest, oracle
from matryoshka_st.cli import exit_with_one_sentence
from matryoshka_st.data.labelled import load_labelled
from matryoshka_st.evaluation.labelled_vectors import labelled_vectors
from matryoshka_st.evaluation.probes import probe
from matryoshka_st.evaluation.provenance import provenance
from matryoshka_st.evaluation.significance import paired_difference
from matryoshka_st.files import write_json
from matryoshka_st.flags import Flags
from matryoshka_st.label_head import LabelHead
from matryoshka_st.models import load_model, weights_hash
from matryoshka_st.nesting import truncate_normalize
from matryoshka_st.training import classifier
from matryoshka_st.training.classifier_arguments import ClassifierRecipe, as_yaml, parse_classifier
from matryoshka_st.training.run import quiet_logging

NESTED = {"MRL": [], "MRL-E": ["--efficient", "True"]}
TOLERANCE, LEVEL = 0.005, 0.5  # of the cascade over the heads: within half a point on the held-out texts


def run_flags(given: Any, kind: str, dim: int | None, seed: int, passed_on: Sequence[str]) -> list[str]:
    """The flags of finetune_classifier.py for one run."""
    folder = given.work / f"{kind}{'' if dim is None else f'-{dim}'}-seed{seed}"
    return [
        *("--model_name_or_path", given.model, "--train_data", given.data, "--output_dir", str(folder)),
        *("--matryoshka_dims", *map(str, given.dims), "--seed", str(seed)),
        *("--eval_strategy", "no", "--save_strategy", "epoch", "--save_total_limit", "1", "--disable_tqdm", "True"),
        *passed_on,
        *(["--fixed", str(dim)] if dim is not None else NESTED[kind]),
    ]


def run(flags: list[str], data: str, batch_size: int) -> dict[str, Any]:
    """Fine-tune, unless that is done, and score on the test split."""
    recipe = parse_classifier(flags)
    config, path = {**as_yaml(recipe), "data": data}, recipe.folder / "test.json"
    if path.is_file():
        done: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if done["config"] == config:
            return done
    start = time.perf_counter()
    classifier.train(recipe)
    found = {"config": config, "seconds": time.perf_counter() - start, **score(recipe, data, batch_size)}
    write_json(path, found)
    return found


def score(recipe: ClassifierRecipe, data: str, batch_size: int) -> dict[str, Any]:
    """Accuracy of heads and nearest neighbour on the test split, and of a cascade over the heads."""
    model, head = load_model(str(recipe.folder / "model")), LabelHead.load(recipe.folder / "model")
    vectors = labelled_vectors(model, data, batch_size=batch_size)
    held_out = classifier.load_data(recipe).held_out
    kept = torch.as_tensor(model.encode(held_out["text"][:], batch_size=batch_size, convert_to_tensor=True)).cpu()
    asked = predictions(head, vectors.test, vectors.test_labels)
    known = predictions(head, kept, np.array(held_out["label"][:]))
    learned = cheapest(*known, head.dims, tolerance=TOLERANCE, level=LEVEL)
    best, fewest = oracle(asked[1], head.dims)
    return {
        "weights": weights_hash(model),
        "head_bytes": head.linear.memory_bytes(),
        "heads": {dim: float(asked[1][:, k].mean()) for k, dim in enumerate(head.dims)},
        "right": {
            dim: "".join("01"[right] for right in asked[1][:, k].astype(int)) for k, dim in enumerate(head.dims)
        },
        "nearest_neighbour": {
            dim: nearest(vectors.train, vectors.train_labels, vectors.test, vectors.test_labels, dim)
            for dim in head.dims
        },
        "adaptive": {
            **asdict(at_thresholds(*asked, head.dims, learned.thresholds)),
            "thresholds": [None if np.isinf(t) else t for t in learned.thresholds],
            "oracle_accuracy": best,
            "oracle_dims": fewest,
        },
    }


def predictions(head: LabelHead, vectors: torch.Tensor, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Confidence and correctness of the head of each prefix, n x dims."""
    top = [head.probabilities(vectors, dim).double().max(dim=1) for dim in head.dims]
    answers = [indices.cpu().numpy() == labels for _, indices in top]
    return np.stack([values.cpu().numpy() for values, _ in top], axis=1), np.stack(answers, axis=1)


def nearest(
    train: torch.Tensor, train_labels: np.ndarray, test: torch.Tensor, test_labels: np.ndarray, dim: int
) -> float:
    """Accuracy of the label of the nearest training text."""
    found = (truncate_normalize(test, dim) @ truncate_normalize(train, dim).T).argmax(dim=1).numpy()
    return float((train_labels[found] == test_labels).mean())


def untrained(given: Any) -> dict[str, float]:
    """A linear probe on the model as it came: what fine-tuning is worth."""
    vectors = labelled_vectors(load_model(given.model), given.data, batch_size=given.batch_size)
    scores = probe(vectors.train, vectors.train_labels, vectors.test, vectors.test_labels, given.dims)
    return {str(score.dim): score.linear for score in scores}


def at(run: dict[str, Any], dim: int, measure: str = "heads") -> Any:
    """A figure of one dim, whose key JSON may have made text."""
    return {int(key): value for key, value in run[measure].items()}[dim]


def report(given: Any, runs: dict[str, list[dict[str, Any]]], before: dict[str, float]) -> list[Table]:
    """Heads, nearest neighbours, and memory."""
    tables = []
    for measure, title in (("heads", "linear head"), ("nearest_neighbour", "nearest neighbour")):
        table = Table(title=f"{Path(given.data).name}, {title}: test accuracy x100", box=SIMPLE_HEAD)
        head = ["dim", "FF", *NESTED, "MRL - FF [95 %]", "MRL-E - FF [95 %]"]
        for column in [*head, "untrained, linear probe"] if measure == "heads" else head:
            table.add_column(column, justify="right")
        for dim in sorted(given.dims, reverse=True):
            kinds = {"FF": runs[f"FF-{dim}"], **{kind: runs[kind] for kind in NESTED}}
            cells = [spread([at(run, dim, measure) for run in of]) for of in kinds.values()]
            apart = [difference(kinds[kind], kinds["FF"], dim) if measure == "heads" else "" for kind in NESTED]
            extra = [f"{100 * before[str(dim)]:.2f}"] if measure == "heads" else []
            table.add_row(str(dim), *cells, *apart, *extra)
        tables.append(table)
    memory = Table(title="size of the heads in memory, and the cascade over them", box=SIMPLE_HEAD)
    for column in ("", "bytes", "expected dims", "accuracy x100", "oracle dims", "oracle accuracy x100"):
        memory.add_column(column, justify="right")
    for kind in NESTED:
        first, found = runs[kind][0], runs[kind][0]["adaptive"]
        dims = (f"{found['expected_dims']:.1f}", f"{100 * found['accuracy']:.2f}")
        memory.add_row(
            kind,
            f"{first['head_bytes']:,}",
            *dims,
            f"{found['oracle_dims']:.1f}",
            f"{100 * found['oracle_accuracy']:.2f}",
        )
    return [*tables, memory]


def spread(values: Sequence[float]) -> str:
    """Mean, and standard deviation over seeds where there are several."""
    several = f" ({100 * np.std(values, ddof=1):.2f})" if len(values) > 1 else ""
    return f"{100 * np.mean(values):.2f}{several}"


def difference(ours: list[dict[str, Any]], theirs: list[dict[str, Any]], dim: int) -> str:
    """Of the heads, over the test texts of all seeds."""
    joined = ["".join(at(run, dim, "right") for run in runs) for runs in (ours, theirs)]
    scores = [{str(i): float(right) for i, right in enumerate(text)} for text in joined]
    return str(paired_difference(*scores)).replace("[", "\\[")


def main() -> None:
    """Run what is not done yet, print tables, write a JSON."""
    flags = Flags(prog="classification_heads.py", description=__doc__)
    flags.add_argument("--data", required=True, help="hub id or folder with the splits train and test")
    flags.add_argument("--model", default="bundled", help="a hub id, a folder, or 'bundled'")
    flags.add_argument("--dims", nargs="+", type=int, default=[384, 256, 128, 64, 32, 16, 8])
    flags.add_argument("--seeds", nargs="+", type=int, default=[13])
    flags.add_argument("--work", type=Path, required=True, help="folder of the runs")
    flags.add_argument("--batch-size", type=int, default=64, help="texts per forward pass in scoring")
    flags.add_argument("--output", type=Path, help="JSON to write")
    given, passed_on = flags.parse_known_args(sys.argv[1:])
    quiet_logging()
    load_labelled(given.data, split="test")
    load, console = os.getloadavg(), Console(width=130)
    plan = {"MRL": ("MRL", None), "MRL-E": ("MRL-E", None), **{f"FF-{dim}": ("FF", dim) for dim in given.dims}}
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in plan}
    for seed in given.seeds:
        for name, (kind, dim) in plan.items():
            console.print(f"{name}, seed {seed}", style="bold")
            runs[name].append(run(run_flags(given, kind, dim, seed, passed_on), given.data, given.batch_size))
    before = untrained(given)
    console.print(*report(given, runs, before))
    if given.output:
        found = {
            name: [{key: value for key, value in run.items() if key != "right"} for run in of]
            for name, of in runs.items()
        }
        write_json(
            given.output,
            {
                "schema_version": 1,
                **provenance(["torch", "sentence-transformers", "transformers", "scikit-learn"]),
                "load_average": {"before": load, "after": os.getloadavg()},
                "untrained_linear_probe": before,
                "runs": found,
            },
        )


if __name__ == "__main__":
    with exit_with_one_sentence():
        main()
