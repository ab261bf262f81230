"""What each part of a recipe gives: one training per row and seed at equal budget, all scored on the same tasks.

Rows that begin with the same rotation share it: it is learned once, with the result that a run of its own has, and
``train_seconds`` are without it (its own stand in its folder). A row with ``trained: false`` is that rotation by
itself. A row with ``recipe: RECIPE`` is made from this other recipe beside the plan's. A row with ``first: RECIPE``
starts from the model that this other recipe trains with the same seed, in the row's folder; those seconds stand there
too. A row with ``rotate_after: true`` is trained without a rotation, in ``trained`` there, and gets the recipe's
rotation, at the recipe's dims, learned on what came out; its seconds are those of both.

python eval/ablation.py eval/ablation.yaml --work output/ablation --dataset-mirror MIRROR
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import statistics
import time
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from rich.console import Console
from rich.table import Table
from sentence_transformers import SentenceTransformerTrainer
from sentence_transformers.sentence_transformer.losses import MatryoshkaLoss, MultipleNegativesRankingLoss

from matryoshka_st.cli import exit_with_one_sentence
from matryoshka_st.errors import UserError, did_you_mean
from matryoshka_st.evaluation import command as evaluation
from matryoshka_st.evaluation.provenance import provenance
from matryoshka_st.evaluation.runs import read_runs
from matryoshka_st.export import save_model
from matryoshka_st.files import write_json, write_whole
from matryoshka_st.training import run
from matryoshka_st.training.arguments import Recipe
from matryoshka_st.training.prepare import prepare
from matryoshka_st.training.recipe import parse_recipe

UNTRAINED = "untrained"
ROTATION = (
    "model_name_or_path",
    "train_data",
    "max_train_rows",
    "bad_rows",
    "max_seq_length",
    "attn_implementation",
    "matryoshka_dims",
    "eval_data",
    "eval_split",
    "eval_size",
    "seed",
)
"""What a rotation depends on, beside the keys that begin with rotate."""
STS7 = ("STS12", "STS13", "STS14", "STS15", "STS16", "STSBenchmark", "SICK-R")


def require_recipes(config: Path, plan: dict[str, Any]) -> None:
    """Refuse a plan with a recipe that is not there, before its first row is trained.

    Raises:
        UserError: If the file of the plan's recipe or of a row's does not exist.
    """
    shared = config.parent / plan["recipe"]
    of_rows = [row or {} for row in plan["rows"].values()]
    for file in [shared, *(shared.parent / row[key] for row in of_rows for key in ("recipe", "first") if key in row)]:
        if not file.is_file():
            meant = did_you_mean(file.name, [other.name for other in sorted(file.parent.glob("*.yaml"))])
            raise UserError(f"{config} names the recipe {file}, which does not exist{meant}.")


def train_host(recipe: Recipe) -> None:
    """The recipe with sentence-transformers' own trainer and ``MatryoshkaLoss``; ours are data and model loading."""
    run.quiet_logging()
    prepared, _ = prepare(recipe)
    loss = MultipleNegativesRankingLoss(prepared.model, scale=recipe.matryoshka.scale)
    dims = sorted(recipe.matryoshka.matryoshka_dims or prepared.dims, reverse=True)
    trainer = SentenceTransformerTrainer(
        model=prepared.model,
        args=recipe.trainer,
        train_dataset=prepared.train,
        loss=MatryoshkaLoss(prepared.model, loss, dims),
    )
    trainer.train()
    prepared.take_whole_texts(prepared.model)
    save_model(prepared.model, recipe.folder / "model", dims=prepared.dims)


def rotated(values: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The recipe without its rotation, from the rotated model, which is made in ``folder`` if it is not there yet."""
    chosen = {key: value for key, value in values.items() if key.startswith("rotate") or key in ROTATION}
    name = hashlib.sha256(json.dumps(chosen, sort_keys=True).encode()).hexdigest()[:12]
    model = folder / name / "model"
    if not model.exists():
        seconds = rotate(chosen, folder / name)
        write_json(folder / name / "seconds.json", {"rotation_seconds": seconds})
    kept = {key: value for key, value in values.items() if not key.startswith("rotate")}
    return {**kept, "model_name_or_path": str(model)}


def rotate(values: dict[str, Any], folder: Path) -> float:
    """Write the recipe's model, rotated and not trained, into ``folder / "model"``; seconds it took."""
    recipe = _recipe({**values, "eval_strategy": "no"}, folder)
    start = time.perf_counter()
    prepared, _ = prepare(recipe)
    prepared.take_whole_texts(prepared.model)
    save_model(prepared.model, folder / "model", dims=prepared.dims)
    return time.perf_counter() - start


def train_row(flags: dict[str, Any], recipe_file: Path, seed: int, folder: Path) -> float:
    """Train one row if it is not there yet; seconds it took, or what an earlier call noted."""
    note = folder / "seconds.json"
    if note.exists():
        return float(json.loads(note.read_text(encoding="utf-8"))["train_seconds"])
    recipe_file = recipe_file.parent / flags.pop("recipe", recipe_file.name)
    recipe_values = yaml.safe_load(recipe_file.read_text(encoding="utf-8"))
    if flags.pop("rotate_after", False):
        seconds = train_row({**flags, "rotate": None}, recipe_file, seed, folder / "trained")
        kept = {key: value for key, value in flags.items() if key != "matryoshka_dims"}
        trained = {"model_name_or_path": str(folder / "trained" / "model"), "seed": seed}
        seconds += rotate({**recipe_values, **kept, **trained}, folder)
        write_json(note, {"train_seconds": seconds})
        return seconds
    host, first, trained = flags.pop("host", False), flags.pop("first", None), flags.pop("trained", True)
    values = {**recipe_values, **flags, "seed": seed}
    if first:
        train_row({}, recipe_file.parent / first, seed, folder / "first")
        values["model_name_or_path"] = str(folder / "first" / "model")
    if values.get("rotate"):
        values = rotated(values, folder.parent / "rotations")
    start = time.perf_counter()
    recipe = _recipe(values, folder)
    if not trained:
        shutil.copytree(values["model_name_or_path"], folder / "model", dirs_exist_ok=True)
    elif host:
        train_host(recipe)
    else:
        run.quiet_logging()
        run.train(recipe)
    seconds = time.perf_counter() - start
    write_json(note, {"train_seconds": seconds})
    return seconds


def _recipe(values: dict[str, Any], folder: Path) -> Recipe:
    written = {**values, "output_dir": str(folder)}
    write_whole(folder / "recipe.yaml", yaml.safe_dump(written, sort_keys=False))
    return parse_recipe(["--config", str(folder / "recipe.yaml")])


def score(folder: Path, dims: list[int], plan: dict[str, Any], mirror: Path, *, trained: bool) -> None:
    """Write the mteb results of one row's model, or of the untrained one."""
    words = [
        str(folder / "model") if trained else "bundled",
        "--name",
        f"ablation/{folder.name}",
        "--languages",
        "eng",
    ]
    words += ["--dataset-mirror", str(mirror), "--output", str(folder / "results"), "--batch-size", "64"]
    words += ["--dims", *map(str, dims), "--tasks", *plan["tasks"], *plan.get("eval_flags", [])]
    evaluation.main(words)


def scores(folder: Path) -> dict[str, dict[int, float]]:
    """Main scores x100 by task and dim, and the mean over the seven STS tasks."""
    found: dict[str, dict[int, float]] = {}
    for entry in read_runs([folder]):
        if entry.precision == "float32" and not entry.variant:
            found.setdefault(entry.task, {})[entry.dim] = 100 * entry.score
    if all(task in found for task in STS7):
        found["STS-7"] = {dim: statistics.fmean(found[task][dim] for task in STS7) for dim in found[STS7[0]]}
    return found


def show(rows: dict[str, list[dict[str, dict[int, float]]]], dims: list[int]) -> list[Table]:
    """A table per task: rows by dims, mean over seeds and their spread (standard deviation)."""
    shared = set.intersection(*(set(found) for runs in rows.values() for found in runs)) - set(STS7)
    tables = []
    for task in sorted(shared):
        table = Table(title=task)
        for column in ["row", "seeds", *map(str, dims)]:
            table.add_column(column, justify="left" if column == "row" else "right")
        for name, runs in rows.items():
            cells = []
            for dim in dims:
                values = [found[task][dim] for found in runs if dim in found[task]]
                if not values:
                    cells.append("")
                    continue
                spread = f" ±{statistics.stdev(values):.2f}" if len(values) > 1 else ""
                cells.append(f"{statistics.fmean(values):.2f}{spread}")
            table.add_row(name, str(len(runs)), *cells)
        tables.append(table)
    return tables


def main(
    config: Annotated[
        Path, typer.Argument(help="YAML: recipe, dims, tasks, seeds, rows (name: flags), untrained (its results)")
    ],
    work: Annotated[Path, typer.Option(help="Trained models and mteb results; finished work is not redone")],
    dataset_mirror: Annotated[Path, typer.Option(help="Local datasets, DIR/mteb/<name>")],
    output: Annotated[Path | None, typer.Option(help="Where to write the JSON")] = None,
    row: Annotated[list[str] | None, typer.Option(help="Only these rows")] = None,
) -> None:
    """Train and score every row, print a table per task and write a JSON."""
    with exit_with_one_sentence():
        plan = yaml.safe_load(config.read_text(encoding="utf-8"))
        names = [UNTRAINED, *plan["rows"]]
        for name in row or []:
            if name not in names:
                raise UserError(f"{config} has no row {name!r}{did_you_mean(name, names)}; use {'; '.join(names)}.")
        require_recipes(config, plan)
        found: dict[str, list[dict[str, dict[int, float]]]] = {}
        seconds: dict[str, list[float]] = {}
        for name, options in {UNTRAINED: {}, **plan["rows"]}.items():
            if row and name not in row:
                continue
            flags = dict(options or {})
            seeds = flags.pop("seeds", plan["seeds"][:1]) if name != UNTRAINED else [None]
            dims = flags.get("matryoshka_dims", plan["dims"]) if flags.pop("fixed", False) else plan["dims"]
            if name == UNTRAINED and "untrained" in plan:
                found[name] = [scores(config.parent / plan["untrained"])]
                continue
            for seed in seeds:
                folder = work / re.sub(r"\W+", "-", name if seed is None else f"{name} {seed}")
                if seed is not None:
                    took = train_row(dict(flags), config.parent / plan["recipe"], seed, folder)
                    seconds.setdefault(name, []).append(took)
                score(folder, dims, plan, dataset_mirror, trained=seed is not None)
                found.setdefault(name, []).append(scores(folder / "results"))
        Console(width=120).print(*show(found, plan["dims"]))
        if output is not None:
            versions = provenance(["torch", "sentence-transformers", "transformers", "mteb"])
            result = {"schema_version": 1, **versions, "plan": plan, "train_seconds": seconds, "scores": found}
            write_json(output, result)


if __name__ == "__main__":
    typer.run(main)
