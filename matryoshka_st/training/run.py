"""One fine-tuning run: scores before, training, scores after, and the folder with a model that declares its dims."""

from __future__ import annotations

import logging
import shutil
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import yaml
from accelerate import PartialState
from rich.console import Console
from sentence_transformers import SentenceTransformer
from torch import nn

from matryoshka_st.card import drop_training_rows
from matryoshka_st.evaluation.evaluator import MatryoshkaEvaluator
from matryoshka_st.evaluation.report.curves import Curve
from matryoshka_st.evaluation.report.figures import scores_drawing
from matryoshka_st.export import save_model
from matryoshka_st.files import write_whole
from matryoshka_st.models import load_model, resolve_model
from matryoshka_st.training.arguments import Recipe, RunRecipe
from matryoshka_st.training.average import average_with
from matryoshka_st.training.lora import merge_lora
from matryoshka_st.training.loss import build_loss
from matryoshka_st.training.prepare import Prepared, dry_run, prepare, score
from matryoshka_st.training.recipe import as_yaml, parse_recipe
from matryoshka_st.training.resume import resume_point
from matryoshka_st.training.summary import Scores, table, verdict, write_metrics
from matryoshka_st.training.trainer import MatryoshkaTrainer

logger = logging.getLogger(__name__)


def main(argv: Sequence[str], prog: str = "finetune.py") -> None:
    """Parse the flags and run; what ``train_scripts/finetune.py`` and ``matryoshka-st train`` call.

    Raises:
        UserError: For anything a user can mend.
    """
    recipe = parse_recipe(argv, prog)
    quiet_logging()
    if recipe.run.dry_run:
        dry_run(recipe)
    else:
        train(recipe)


def quiet_logging() -> None:
    """Our own progress on stderr, from the main process only; of the libraries, warnings."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    if PartialState().is_main_process:
        logging.getLogger("matryoshka_st").setLevel(logging.INFO)


def train(recipe: Recipe) -> Scores:
    """Run the recipe and write ``model``, ``checkpoints``, ``run_config.yaml``, ``metrics.json`` and ``scores.png``.

    Returns:
        The scores per dim before and after.

    Raises:
        UserError: If the recipe cannot be run, or the loss is not finite.
    """
    config = as_yaml(recipe)
    resume_from = resume_point(recipe.run.resume, recipe.folder, config)
    prepared, before = prepare(recipe)
    loss = build_loss(recipe, prepared.model, prepared.dims, prepared.targets)
    return carry_out(recipe, config, prepared, loss, before, resume_from)


def carry_out(
    recipe: RunRecipe,
    config: dict[str, Any],
    prepared: Prepared,
    loss: nn.Module,
    before: dict[int, float],
    resume_from: Path | None,
    *,
    beside: Callable[[Path], None] | None = None,
) -> Scores:
    """Train what is prepared and write the run's folder.

    Args:
        recipe: The run.
        config: What ``run_config.yaml`` says of it.
        prepared: Model, data and evaluator.
        loss: Around that model.
        before: Its scores per dim.
        resume_from: A checkpoint to go on from.
        beside: Writes what else belongs to the model into its folder.

    Returns:
        The scores per dim before and after.

    Raises:
        UserError: If the loss is not finite.
    """
    state = PartialState()
    if state.is_main_process:
        write_whole(recipe.folder / "run_config.yaml", yaml.safe_dump(config, sort_keys=False))
    trainer = MatryoshkaTrainer(
        model=prepared.model,
        args=recipe.trainer,
        train_dataset=prepared.train,
        loss=loss,
        evaluator=prepared.evaluator,
        batches=prepared.batches,
    )
    if not recipe.run.card_samples:
        drop_training_rows(prepared.model)
    trainer.train(resume_from_checkpoint=str(resume_from) if resume_from else None)
    trained = _saved_by(trainer, recipe)
    average_with(trained, prepared.start, recipe.model.start_share)
    if prepared.finish is not None:
        prepared.finish(trained)
    after = score(trained, prepared.evaluator)
    prepared.take_whole_texts(trained)
    scores = Scores(prepared.evaluator.label, before, after)
    if state.is_main_process:
        trained.model_card_data.set_evaluation_metrics(prepared.evaluator, _named(prepared.evaluator, after))
        _write_results(recipe, trained, prepared.dims, scores, trainer.state.log_history, beside)
    state.wait_for_everyone()
    return scores


def _saved_by(trainer: MatryoshkaTrainer, recipe: RunRecipe) -> SentenceTransformer:
    """The trained model, written by the trainer (whatever sharded or adapted it) and read back as a plain one."""
    staging = recipe.folder / ".trained"
    if trainer.is_world_process_zero():
        shutil.rmtree(staging, ignore_errors=True)
    trainer.accelerator.wait_for_everyone()
    trainer.save_model(str(staging))
    trainer.accelerator.wait_for_everyone()
    trained = load_model(
        str(staging),
        device=str(recipe.trainer.device),
        trust_remote_code=recipe.model.trust_remote_code,
        model_kwargs={"dtype": torch.float32},
    )
    trainer.accelerator.wait_for_everyone()
    if recipe.model.lora:
        merge_lora(trained)
    if trainer.is_world_process_zero():
        shutil.rmtree(staging)
    trained.model_card_data = trainer.model.model_card_data
    trained.model_card_data.register_model(trained)
    return trained


def _write_results(
    recipe: RunRecipe,
    model: SentenceTransformer,
    dims: tuple[int, ...],
    scores: Scores,
    log_history: list[dict[str, Any]],
    beside: Callable[[Path], None] | None,
) -> None:
    folder = recipe.folder
    save_model(
        model,
        folder / "model",
        dims=dims,
        scores={dim: 100 * value for dim, value in scores.after.items()},
        metric=f"{scores.metric} x100, held-out data",
        card_samples=recipe.run.card_samples,
        beside=beside,
    )
    write_metrics(
        folder / "metrics.json",
        scores,
        command=sys.argv,
        base_model=resolve_model(recipe.model.model_name_or_path),
        versions={name: version(name) for name in ("matryoshka-st", "sentence-transformers", "transformers", "torch")},
        log_history=log_history,
    )
    curves = [
        Curve.down_from_the_widest(name, by_dim)
        for name, by_dim in (("before", scores.before), ("after", scores.after))
    ]
    write_whole(folder / "scores.png", scores_drawing(curves, scores.metric).png())
    console = Console()
    console.print(table(scores))
    console.print(verdict(scores), markup=False, soft_wrap=True)
    console.print(f"Model: {folder / 'model'}", markup=False, soft_wrap=True)


def _named(evaluator: MatryoshkaEvaluator, scores: dict[int, float]) -> dict[str, float]:
    return {evaluator.metric_name(dim): value for dim, value in scores.items()}
