"""What the settings for training on a CPU give: a whole step as it comes, and with one setting more each time.

python eval/bench_cpu_settings.py --train-data pairs.parquet --output eval/results/bench_cpu_settings.json
"""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from matryoshka_st.cli import exit_with_one_sentence
from matryoshka_st.data import load_pairs
from matryoshka_st.evaluation.provenance import provenance
from matryoshka_st.files import write_json
from matryoshka_st.models import load_model
from matryoshka_st.training.clock import Clock
from matryoshka_st.training.loss import build_loss
from matryoshka_st.training.prepare import set_dropout
from matryoshka_st.training.recipe import parse_recipe
from matryoshka_st.training.trainer import MatryoshkaTrainer

SETTINGS: dict[str, list[str]] = {
    "as it comes": [],
    "bf16": ["--bf16", "True"],
    "dropout 0": ["--dropout", "0"],
    "eager attention": ["--attn_implementation", "eager"],
    "length_groups 4": ["--length_groups", "4"],
}


def step_seconds(train_data: str, steps: int, flags: list[str]) -> float:
    """Median seconds of a step, the first quarter left out."""
    with tempfile.TemporaryDirectory() as folder:
        words = ["--output_dir", folder, "--max_steps", str(steps), "--save_strategy", "no", "--eval_strategy", "no"]
        words += ["--use_cpu", "True", "--disable_tqdm", "True", "--train_data", train_data]
        recipe = parse_recipe([*words, *flags])
        attention = recipe.model.attn_implementation
        model = load_model(
            "bundled", device="cpu", model_kwargs={"attn_implementation": attention} if attention else {}
        )
        model.max_seq_length = recipe.model.max_seq_length or model.max_seq_length
        if recipe.model.dropout is not None:
            set_dropout(model, recipe.model.dropout)
        clock = Clock()
        trainer = MatryoshkaTrainer(
            model=model,
            args=recipe.trainer,
            train_dataset=load_pairs(train_data),
            loss=build_loss(recipe, model, (384, 256, 128, 64, 32, 16)),
            callbacks=[clock],
        )
        trainer.train()
    return float(statistics.median(clock.seconds[steps // 4 :]))


def main(
    train_data: Annotated[str, typer.Option(help="Pairs, as for train_scripts/finetune.py")],
    batch_size: Annotated[int, typer.Option()] = 256,
    max_seq_length: Annotated[int, typer.Option()] = 64,
    steps: Annotated[int, typer.Option(min=4)] = 12,
    output: Annotated[Path | None, typer.Option(help="Where to write the JSON")] = None,
) -> None:
    """Time one more setting after the other, print a table and write a JSON."""
    common = ["--per_device_train_batch_size", str(batch_size), "--max_seq_length", str(max_seq_length)]
    table = Table(title=f"the bundled MiniLM, median step of {batch_size} pairs")
    for column in ("settings", "seconds", "pairs/s"):
        table.add_column(column, justify="left" if column == "settings" else "right")
    flags: list[str] = []
    seconds: dict[str, float] = {}
    for name, more in SETTINGS.items():
        flags += more
        seconds[name] = step_seconds(train_data, steps, [*common, *flags])
        table.add_row(f"{'+ ' * bool(more)}{name}", f"{seconds[name]:.2f}", f"{batch_size / seconds[name]:.0f}")
    Console().print(table)
    if output is not None:
        versions = provenance(["torch", "sentence-transformers", "transformers"])
        write_json(output, {"schema_version": 1, **versions, "median_step_seconds": seconds})


if __name__ == "__main__":
    with exit_with_one_sentence():
        typer.run(main)
