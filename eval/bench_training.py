"""The same training with our loss and with sentence-transformers' own: are the curves equal, is a step slower?

    python eval/bench_training.py --train-data pairs.parquet --output eval/results/bench_training_cpu.json

Both take the same steps from the same seed, one after the other. Nothing is saved but the figures.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.losses import MatryoshkaLoss, MultipleNegativesRankingLoss
from transformers import TrainerCallback

from matryoshka_st.data import load_pairs
from matryoshka_st.losses import MatryoshkaContrastiveLoss
from matryoshka_st.models import load_model
from matryoshka_st.training.summary import write_json

DIMS = [384, 256, 128, 64, 32]
OURS, THEIRS = "matryoshka-st", "sentence-transformers"


class Clock(TrainerCallback):
    """Seconds of each step."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        """Start the step's clock."""
        self._start = time.perf_counter()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """Stop it."""
        self.seconds.append(time.perf_counter() - self._start)


def loss_of(name: str, model: SentenceTransformer) -> torch.nn.Module:
    """The loss of one side."""
    if name == OURS:
        return MatryoshkaContrastiveLoss(model, DIMS)
    return MatryoshkaLoss(model, MultipleNegativesRankingLoss(model), DIMS)


def run(name: str, given: argparse.Namespace) -> tuple[list[float], list[float]]:
    """Train one side; returns the loss and the seconds of each step."""
    model = load_model("bundled", device=given.device)
    model.max_seq_length = given.max_seq_length
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        trainer = SentenceTransformerTrainer(
            model=model,
            args=SentenceTransformerTrainingArguments(
                output_dir=folder,
                max_steps=given.steps,
                per_device_train_batch_size=given.batch_size,
                warmup_steps=0.1,
                logging_steps=1,
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
                use_cpu=given.device == "cpu",
                dataloader_pin_memory=False,
                seed=13,
            ),
            train_dataset=load_pairs(given.train_data),
            loss=loss_of(name, model),
            callbacks=[clock],
        )
        trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry], clock.seconds


def main() -> None:
    """Run both sides and report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--train-data", required=True, help="pairs, as for train_scripts/finetune.py")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--max-seq-length", type=int, default=32)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--output", type=Path, help="JSON to write")
    given = parser.parse_args()
    runs = {name: run(name, given) for name in (THEIRS, OURS)}
    losses = {name: losses for name, (losses, _) in runs.items()}
    medians = {name: statistics.median(seconds) for name, (_, seconds) in runs.items()}
    apart = max(abs(a - b) for a, b in zip(losses[OURS], losses[THEIRS], strict=True))
    table = Table(title=f"{given.steps} steps of {given.batch_size} pairs, same seed")
    for column in ("loss", "first", "last", "median step (s)"):
        table.add_column(column, justify="right")
    for name in runs:
        table.add_row(name, f"{losses[name][0]:.4f}", f"{losses[name][-1]:.4f}", f"{medians[name]:.4f}")
    Console().print(table)
    Console().print(f"largest difference of a logged loss: {apart:.2e}; step time ours / theirs: {ratio(medians):.3f}")
    if given.output:
        write_json(
            given.output,
            {
                "schema_version": 1,
                "command": sys.argv,
                "device": torch.cuda.get_device_name() if given.device == "cuda" else platform.processor(),
                "threads": torch.get_num_threads(),
                "versions": {
                    package: version(package) for package in ("torch", "sentence-transformers", "transformers")
                },
                "dims": DIMS,
                "losses": losses,
                "median_step_seconds": medians,
                "largest_loss_difference": apart,
                "step_time_ratio": ratio(medians),
            },
        )


def ratio(medians: dict[str, float]) -> float:
    """Our time over theirs."""
    return medians[OURS] / medians[THEIRS]


if __name__ == "__main__":
    main()
