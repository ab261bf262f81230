"""The first run: a real BERT made cuttable in minutes, on text already on the machine, with nothing downloaded.

Three models are scored at every dim on held-out docstring retrieval (summary -> rest), as a real mteb task: the
untrained model cut, the same model rotated and not trained, and the trained one.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from sentence_transformers import SentenceTransformer

from matryoshka_st.docstrings import load_docstrings
from matryoshka_st.errors import UserError
from matryoshka_st.evaluation.harness import evaluate_dims
from matryoshka_st.evaluation.pairs_task import pairs_retrieval_task
from matryoshka_st.evaluation.quick_report import write_quick_report
from matryoshka_st.evaluation.scores import DimScore
from matryoshka_st.evaluation.significance import Difference, paired_difference
from matryoshka_st.models import load_model
from matryoshka_st.recipes import recipe_path
from matryoshka_st.rotation import rotate_model
from matryoshka_st.training.arguments import Recipe
from matryoshka_st.training.prepare import load_train_data, recipe_texts
from matryoshka_st.training.recipe import parse_recipe
from matryoshka_st.training.run import train

logger = logging.getLogger(__name__)

UNTRAINED, ROTATED, TRAINED = "untrained", "rotated", "trained"
TASK = "HeldOutDocstrings"


def quickstart(output: Path, *, train_rows: int = 2560, test_queries: int = 1200) -> dict[str, list[DimScore]]:
    """Train, evaluate and report.

    Args:
        output: Folder for the model, the mteb results, ``report.html`` and ``report.png``.
        train_rows: Docstring pairs to train on.
        test_queries: Held-out queries to score on, each to be found among as many documents.

    Returns:
        The scores of the three models.

    Raises:
        UserError: If an argument is not usable or the machine has too few docstrings.
    """
    start = time.monotonic()
    console = Console()
    if test_queries < 10:
        raise UserError(f"test_queries is {test_queries}; give 10 or more.")
    console.print("Harvesting docstrings of the installed packages ...")
    test = load_docstrings("test", limit=test_queries)
    arguments = ["--config", str(recipe_path("quickstart")), "--output_dir", str(output)]
    recipe = parse_recipe([*arguments, "--max_train_rows", str(train_rows)])
    train(recipe)
    task = pairs_retrieval_task(
        test["anchor"], test["positive"], name=TASK, description="Find the rest of a docstring by its summary."
    )
    curves = {}
    for label, model in _models(recipe, output):
        console.print(f"Scoring {label!r} on {len(test):,} held-out queries ...")
        model.max_seq_length = recipe.model.max_seq_length
        dims = recipe.matryoshka.matryoshka_dims or []
        curves[label] = evaluate_dims(model, [task], dims, name=f"quickstart/{label}", output=output)
    gains = {other: _gains(curves[TRAINED], curves[other]) for other in (UNTRAINED, ROTATED)}
    _report(output, curves, gains)
    console.print(_table(curves, gains))
    _print_use(console, output, curves, time.monotonic() - start)
    return curves


def _models(recipe: Recipe, output: Path) -> Sequence[tuple[str, SentenceTransformer]]:
    rotated = load_model(recipe.model.model_name_or_path)
    rotated.max_seq_length = recipe.model.max_seq_length
    rotate_model(rotated, recipe_texts(recipe, load_train_data(recipe)), progress=True)
    return [
        (UNTRAINED, load_model(recipe.model.model_name_or_path)),
        (ROTATED, rotated),
        (TRAINED, load_model(str(output / "model"))),
    ]


def _gains(ours: list[DimScore], theirs: list[DimScore]) -> dict[int, Difference]:
    baseline = {score.dim: score.per_query for score in theirs}
    return {score.dim: paired_difference(score.per_query, baseline[score.dim]) for score in ours}


def _table(curves: dict[str, list[DimScore]], gains: dict[str, dict[int, Difference]]) -> Table:
    table = Table(title="nDCG@10 x100, held-out docstring retrieval; gains with 95 % interval", box=SIMPLE_HEAD)
    for column in ("dim", *curves, *(f"over {other}" for other in gains)):
        table.add_column(column, justify="right")
    for i, score in enumerate(curves[TRAINED]):
        scores = [f"{100 * curve[i].score:.2f}" for curve in curves.values()]
        table.add_row(str(score.dim), *scores, *(escape(str(gain[score.dim])) for gain in gains.values()))
    return table


def _report(output: Path, curves: dict[str, list[DimScore]], gains: dict[str, dict[int, Difference]]) -> None:
    by_dim = {label: {score.dim: score.score for score in scores} for label, scores in curves.items()}
    write_quick_report(output, by_dim, gains, title="Held-out docstring retrieval")


def _print_use(console: Console, output: Path, curves: dict[str, list[DimScore]], seconds: float) -> None:
    full = curves[UNTRAINED][0]
    enough = [score for score in curves[TRAINED] if score.score >= full.score]
    if enough:
        smallest = enough[-1]
        console.print(
            f"{smallest.dim} trained dims ({100 * smallest.score:.2f}) are worth the untrained {full.dim} "
            f"({100 * full.score:.2f}), in {full.dim / smallest.dim:.3g} times less space."
        )
    console.print(f"Done in {seconds:.0f} s. Report: {output / 'report.html'}. Use the model:", soft_wrap=True)
    console.print("    from sentence_transformers import SentenceTransformer", markup=False)
    console.print(
        f'    model = SentenceTransformer("{output / "model"}", truncate_dim=64)', markup=False, soft_wrap=True
    )
    console.print('    print(model.encode(["Cut to 64 dims."], normalize_embeddings=True).shape)', markup=False)
