"""The same training with our loss and with sentence-transformers' own: are the curves equal, is a step slower?

    python eval/bench_training.py --train-data pairs.parquet --output eval/results/bench_training_cpu.json
    python eval/bench_training.py --train-data pairs.parquet --model static --batch-size 4096
    python eval/bench_training.py --train-data pairs.parquet --batch-size 512 --mini-batch-size 64

Both take the same steps from the same seed, one after the other. Nothing is saved but the figures. With
--mini-batch-size both sides cache gradients. A static model (token embeddings, averaged) shows the loss alone.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.losses import (
    CachedMultipleNegativesRankingLoss,
    MatryoshkaLoss,
    MultipleNegativesRankingLoss,
)
from sentence_transformers.sentence_transformer.modules import StaticEmbedding
from transformers import set_seed

from matryoshka_st.cli import exit_with_one_sentence
from matryoshka_st.data import load_pairs
from matryoshka_st.evaluation.provenance import provenance
from matryoshka_st.files import write_json
from matryoshka_st.losses import CachedMatryoshkaContrastiveLoss, MatryoshkaContrastiveLoss
from matryoshka_st.models import load_model
from matryoshka_st.training.clock import Clock

DIMS = [384, 256, 128, 64, 32]
OURS, THEIRS = "matryoshka-st", "sentence-transformers"


def make_model(given: argparse.Namespace) -> SentenceTransformer:
    """A pretrained BERT, or random token embeddings of the same width with its vocabulary."""
    model = load_model("bundled", device=given.device)
    if given.model == "static":
        set_seed(13)
        static = StaticEmbedding(model.tokenizer, embedding_dim=DIMS[0])
        return SentenceTransformer(modules=[static], device=given.device)
    model.max_seq_length = given.max_seq_length
    return model


def loss_of(name: str, model: SentenceTransformer, mini_batch_size: int | None) -> torch.nn.Module:
    """The loss of one side."""
    if name == OURS and mini_batch_size:
        return CachedMatryoshkaContrastiveLoss(model, DIMS, mini_batch_size=mini_batch_size)
    if name == OURS:
        return MatryoshkaContrastiveLoss(model, DIMS)
    if mini_batch_size:
        return MatryoshkaLoss(model, CachedMultipleNegativesRankingLoss(model, mini_batch_size=mini_batch_size), DIMS)
    return MatryoshkaLoss(model, MultipleNegativesRankingLoss(model), DIMS)


def tokens_per_row(given: argparse.Namespace) -> float:
    """Mean number of tokens of all columns, over up to 2,000 rows."""
    rows = load_pairs(given.train_data).select(range(2000))
    texts = [text for column in rows.column_names for text in rows[column]]
    limit = None if given.model == "static" else given.max_seq_length
    encoded = load_model("bundled").tokenizer(texts, truncation=limit is not None, max_length=limit)["input_ids"]
    return sum(map(len, encoded)) / len(rows)


def run(name: str, given: argparse.Namespace) -> tuple[list[float], list[float]]:
    """Train one side; returns the loss and the seconds of each step."""
    model = make_model(given)
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
            loss=loss_of(name, model, given.mini_batch_size),
            callbacks=[clock],
        )
        trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry], clock.seconds


def main() -> None:
    """Run both sides and report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--train-data", required=True, help="pairs, as for train_scripts/finetune.py")
    parser.add_argument("--model", choices=["bundled", "static"], default="bundled")
    parser.add_argument("--mini-batch-size", type=int, help="cache gradients, so many rows at a time")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--max-seq-length", type=int, default=32)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--output", type=Path, help="JSON to write")
    given = parser.parse_args()
    runs = {name: run(name, given) for name in (THEIRS, OURS)}
    losses = {name: losses for name, (losses, _) in runs.items()}
    medians = {name: statistics.median(seconds) for name, (_, seconds) in runs.items()}
    tokens = given.batch_size * tokens_per_row(given)
    apart = max(abs(a - b) for a, b in zip(losses[OURS], losses[THEIRS], strict=True))
    table = Table(title=f"{given.steps} steps of {given.batch_size} pairs, same seed")
    for column in ("loss", "first", "last", "median step (s)", "tokens/s"):
        table.add_column(column, justify="right")
    for name in runs:
        table.add_row(name, f"{losses[name][0]:.4f}", f"{losses[name][-1]:.4f}", *speed(medians[name], tokens))
    Console().print(table)
    Console().print(f"largest difference of a logged loss: {apart:.2e}; step time ours / theirs: {ratio(medians):.3f}")
    if given.output:
        write_json(
            given.output,
            {
                "schema_version": 1,
                **provenance(["torch", "sentence-transformers", "transformers"], given.device),
                "dims": DIMS,
                "losses": losses,
                "median_step_seconds": medians,
                "tokens_per_second": {name: tokens / seconds for name, seconds in medians.items()},
                "largest_loss_difference": apart,
                "step_time_ratio": ratio(medians),
            },
        )


def speed(seconds: float, tokens: float) -> tuple[str, str]:
    """A step's time and rate, as shown."""
    return f"{seconds:.4f}", f"{tokens / seconds:,.0f}"


def ratio(medians: dict[str, float]) -> float:
    """Our time over theirs."""
    return medians[OURS] / medians[THEIRS]


if __name__ == "__main__":
    with exit_with_one_sentence():
        main()
