"""One MLM run: training, scores per dim on held-out texts, and a plain BERT that says which dims it was trained at."""

from __future__ import annotations

import logging
import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version

import yaml
from accelerate import PartialState
from datasets import disable_progress_bars
from rich.console import Console
from transformers import BertForMaskedLM

from matryoshka_st.files import whole_folder, write_json, write_whole
from matryoshka_st.mlm.arguments import MlmRecipe
from matryoshka_st.mlm.prepare import MODEL_FILE, Prepared, dry_run, prepare
from matryoshka_st.mlm.recipe import as_yaml, parse_recipe
from matryoshka_st.mlm.scores import MlmScores, ScorePerDim, table
from matryoshka_st.training.resume import resume_point
from matryoshka_st.training.run import quiet_logging
from matryoshka_st.training.trainer import GuardedTrainer

logger = logging.getLogger(__name__)

SCHEMA_VERSION = 1


def main(argv: Sequence[str], prog: str = "pretrain_mlm.py") -> None:
    """Parse the flags and run; what ``train_scripts/pretrain_mlm.py`` calls.

    Raises:
        UserError: For anything a user can mend.
    """
    recipe = parse_recipe(argv, prog)
    quiet_logging()
    if recipe.trainer.disable_tqdm:
        disable_progress_bars()
    if recipe.run.dry_run:
        dry_run(recipe)
    else:
        train(recipe)


def train(recipe: MlmRecipe) -> MlmScores:
    """Run the recipe and write ``model``, ``checkpoints``, ``run_config.yaml`` and ``metrics.json``.

    Returns:
        The scores per dim on the held-out texts.

    Raises:
        UserError: If the recipe cannot be run, or the loss is not finite.
    """
    state = PartialState()
    config = as_yaml(recipe)
    checkpoint = resume_point(recipe.run.resume, recipe.folder, config, model_file=MODEL_FILE)
    prepared = prepare(recipe)
    if state.is_main_process:
        write_whole(recipe.folder / "run_config.yaml", yaml.safe_dump(config, sort_keys=False))
    per_dim = ScorePerDim(prepared.model.scored)
    trainer = GuardedTrainer(
        model=prepared.model,
        args=recipe.trainer,
        train_dataset=prepared.train,
        eval_dataset=prepared.held_out,
        data_collator=prepared.masking,
        processing_class=prepared.tokenizer,
        compute_metrics=per_dim,
    )
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    scores = per_dim.read(trainer.evaluate())
    _save(trainer, recipe, prepared)
    if state.is_main_process:
        _report(trainer, recipe, prepared, scores)
    state.wait_for_everyone()
    return scores


def _save(trainer: GuardedTrainer, recipe: MlmRecipe, prepared: Prepared) -> None:
    """Write the trained model as a plain ``BertForMaskedLM``: by the trainer, whatever sharded it, and read back."""
    staging = recipe.folder / ".trained"
    trainer.save_model(str(staging))
    trainer.accelerator.wait_for_everyone()
    if trainer.is_world_process_zero():
        plain = BertForMaskedLM.from_pretrained(staging, local_files_only=True, use_safetensors=True)
        with whole_folder((recipe.folder / "model").resolve()) as folder:
            plain.save_pretrained(folder)
            prepared.tokenizer.save_pretrained(folder)
        shutil.rmtree(staging)


def _report(trainer: GuardedTrainer, recipe: MlmRecipe, prepared: Prepared, scores: MlmScores) -> None:
    model = prepared.model
    facts = {
        "schema_version": SCHEMA_VERSION,
        **asdict(scores),
        "matryoshka_dims": model.nested.dims,
        "matryoshka_weights": model.nested.weights,
        "nest": model.nest,
        "parameters": model.num_parameters(),
        "train_examples": len(prepared.train),
        "command": sys.argv,
        "versions": {name: version(name) for name in ("matryoshka-st", "transformers", "torch")},
        "log_history": trainer.state.log_history,
    }
    write_json(recipe.folder / "metrics.json", facts)
    console = Console()
    console.print(table(scores, model.nested.dims))
    console.print(f"Model: {recipe.folder / 'model'}", markup=False, soft_wrap=True)
