"""Everything before the first step: load model and data, check them against each other, score the untouched model."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from datasets import Dataset, DatasetDict
from rich.console import Console
from sentence_transformers import SentenceTransformer
from torch import nn
from transformers import set_seed

from matryoshka_st.basis import check_learning, learn_rotation
from matryoshka_st.data import describe_columns, load_training_sets, require_batch
from matryoshka_st.errors import UserError
from matryoshka_st.evaluation.evaluator import MatryoshkaEvaluator
from matryoshka_st.export import check_target, declare_dims
from matryoshka_st.fixed import keep_prefix
from matryoshka_st.insertion import has_routes, require_one_way
from matryoshka_st.losses import WeightSchedule
from matryoshka_st.models import check_length, count_positions, embedding_width, limit_length, load_model
from matryoshka_st.nesting import MatryoshkaDims, default_dims
from matryoshka_st.rotation import Fit, rotate_model, with_examples
from matryoshka_st.training.arguments import ModelArguments, Recipe, RunRecipe
from matryoshka_st.training.average import start_weights
from matryoshka_st.training.held_out import build_evaluator, sample_pairs, sample_texts
from matryoshka_st.training.lora import add_lora
from matryoshka_st.training.loss import build_loss
from matryoshka_st.training.near_batches import NearBatchSampler
from matryoshka_st.training.near_texts import near_texts, refuse_unserved
from matryoshka_st.training.per_source import one_each, rotation_pairs, rotation_texts
from matryoshka_st.training.trainer import Batches

logger = logging.getLogger(__name__)

_DRY_ROWS = 3

Finish = Callable[[SentenceTransformer], SentenceTransformer]


@dataclass(frozen=True)
class Prepared:
    """A run that is ready to start.

    ``targets`` and ``batches`` are those of the objective ``neighbours``; ``finish`` is done to the trained model.
    """

    model: SentenceTransformer
    saved_seq_length: int | None
    dims: tuple[int, ...]
    train: Dataset | DatasetDict
    evaluator: MatryoshkaEvaluator
    start: dict[str, torch.Tensor]
    targets: torch.Tensor | None = None
    batches: Batches | None = None
    finish: Finish | None = None

    def take_whole_texts(self, model: SentenceTransformer) -> None:
        """Let the model take texts as long as the saved one is to, whatever training read of them."""
        model.max_seq_length = self.saved_seq_length


def prepare(recipe: Recipe) -> tuple[Prepared, dict[int, float]]:
    """Load model and data, check them against each other, and score the model before anything is done to it.

    Returns:
        The run, its model rotated and adapted as the recipe says, and the score at each dim of the model as it came.

    Raises:
        UserError: If model, data and recipe do not fit.
    """
    steps, contrast = recipe.model.rotate_steps, recipe.model.rotate_contrast
    check_learning(steps, contrast, told=bool(contrast or recipe.model.rotate_like))
    if recipe.matryoshka.objective == "neighbours":
        refuse_unserved(recipe)
    model, saved_seq_length = load_base_model(recipe)
    width = embedding_width(model)
    dims = MatryoshkaDims.of(recipe.matryoshka.matryoshka_dims or default_dims(width), width=width).dims
    declare_dims(model, dims)
    if recipe.model.rotate_retrieval:
        require_one_way(model)
    train = load_train_data(recipe)
    train, evaluator = build_evaluator(recipe, train, dims)
    neighbours = recipe.matryoshka.objective == "neighbours"
    if not neighbours:
        smallest = min(train.values(), key=len) if isinstance(train, DatasetDict) else train
        require_batch(smallest, recipe.trainer.per_device_train_batch_size)
    finish = _rotate_retrieval(recipe, train, dims)
    before = score(model, evaluator)
    if recipe.model.rotate:
        texts, fit = _rotation(recipe, train, dims, "rotate")
        rotate_model(model, texts, fit=fit, progress=not recipe.trainer.disable_tqdm)
    targets, batches = None, None
    if neighbours:
        train, targets = near_texts(model, train, bf16=recipe.trainer.bf16, progress=not recipe.trainer.disable_tqdm)
        require_batch(train, recipe.trainer.per_device_train_batch_size)
        batches = partial(
            NearBatchSampler,
            unit=targets,
            group_size=recipe.matryoshka.group_size,
            group_among=recipe.matryoshka.group_among,
        )
    if recipe.matryoshka.fixed is not None:
        keep_prefix(model, recipe.matryoshka.fixed)
        declare_dims(model, dims)
    start = adapt(model, recipe.model)
    return Prepared(model, saved_seq_length, dims, train, evaluator, start, targets, batches, finish), before


def load_base_model(recipe: RunRecipe) -> tuple[SentenceTransformer, int | None]:
    """The model that a run starts from, in float32, and the length of text that the saved one takes; the seed is set.

    Raises:
        UserError: If the model cannot be loaded, is for shorter texts or has a Router that nothing is said about, or
            the run's own could not be written.
    """
    check_target(recipe.folder / "model")
    set_seed(recipe.trainer.seed)
    model = load_model(
        recipe.model.model_name_or_path,
        device=str(recipe.trainer.device),
        revision=recipe.model.model_revision,
        trust_remote_code=recipe.model.trust_remote_code,
        model_kwargs=_model_kwargs(recipe),
    )
    if has_routes(model) and not recipe.trainer.router_mapping:
        raise UserError(
            f"The model {recipe.model.model_name_or_path!r} has a Router, and nothing says which way the training "
            'texts take through it; give --router_mapping, such as \'{"anchor": "query", "positive": "document"}\', '
            "or train the model that it was made from."
        )
    saved = recipe.model.saved_max_seq_length
    if saved is not None:
        check_length(saved, count_positions(model), name="saved_max_seq_length")
    own = model.max_seq_length
    if recipe.model.max_seq_length is not None:
        limit_length(model, recipe.model.max_seq_length)
    model.model_card_data.generate_widget_examples = recipe.run.card_samples
    return model, saved or max(filter(None, (model.max_seq_length, own)), default=None)


def adapt(model: SentenceTransformer, arguments: ModelArguments) -> dict[str, torch.Tensor]:
    """What is done to a model right before training: dropout and adapters.

    Returns:
        The weights that training starts from, for :func:`~matryoshka_st.training.average.average_with`.
    """
    if arguments.dropout is not None:
        set_dropout(model, arguments.dropout)
    start = start_weights(model, arguments.start_share)
    if arguments.lora:
        add_lora(model, arguments)
    return start


def set_dropout(model: SentenceTransformer, rate: float) -> None:
    """Set the rate of every dropout of the model; the configuration that is saved with it keeps its own.

    Raises:
        UserError: If the rate is not in [0, 1).
    """
    if not 0 <= rate < 1:
        raise UserError(f"dropout is {rate}; give a rate of 0 or more and below 1.")
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = rate


def load_train_data(recipe: Recipe) -> Dataset | DatasetDict:
    """The training pairs of the recipe, checked, at most ``max_train_rows`` of each set.

    Raises:
        UserError: If they cannot be loaded or have bad rows.
    """
    data = recipe.data
    train = load_training_sets(
        data.train_data, split=data.train_split, bad_rows=data.bad_rows, column_order=data.column_order
    )
    if data.max_train_rows is None:
        return train
    sets = train if isinstance(train, DatasetDict) else {"train": train}
    limits = one_each("max_train_rows", data.max_train_rows, len(sets), "training sets")
    heads = {
        name: _head(rows, limit, recipe.trainer.seed) for (name, rows), limit in zip(sets.items(), limits, strict=True)
    }
    return DatasetDict(heads) if isinstance(train, DatasetDict) else heads["train"]


def score(model: SentenceTransformer, evaluator: MatryoshkaEvaluator) -> dict[int, float]:
    """The score at each dim, measured by the main process and told to all."""
    state = PartialState()
    told: list[dict[int, float] | None] = [None]
    if state.is_main_process:
        told = [evaluator.scores(model)]
        logger.info("%s x100: %s", evaluator.label, scores_line(told[0] or {}))
    broadcast_object_list(told)
    return told[0] or {}


def dry_run(recipe: Recipe) -> None:
    """Say what a run would do, and do one forward and backward pass on three rows; nothing is written.

    Raises:
        UserError: If the recipe cannot be run.
    """
    prepared, before = prepare(recipe)
    console = Console(soft_wrap=True)
    sets = prepared.train if isinstance(prepared.train, DatasetDict) else {"training data": prepared.train}
    for name, dataset in sets.items():
        console.print(f"[bold]{name}[/bold]: ", end="")
        told = describe_columns(dataset) if prepared.targets is None else f"{len(dataset):,} distinct texts"
        console.print(told, markup=False)
    loss = build_loss(recipe, prepared.model, prepared.dims, prepared.targets).train()
    WeightSchedule(loss).tell(0.0)
    rows = next(iter(sets.values()))[:_DRY_ROWS]
    labels = torch.tensor(rows.pop("label"), device=prepared.model.device) if "label" in rows else None
    terms = loss([_to(prepared.model.preprocess(texts), prepared.model.device) for texts in rows.values()], labels)
    torch.stack(list(terms.values())).sum().backward()
    batch = recipe.trainer.train_batch_size * recipe.trainer.gradient_accumulation_steps * PartialState().num_processes
    steps = recipe.trainer.max_steps
    if steps < 0:
        steps = int(sum(map(len, sets.values())) * recipe.trainer.num_train_epochs / batch)
    rows_are = "pairs" if prepared.targets is None else "texts"
    console.print(f"about {steps:,} steps of {batch} {rows_are}; dims {', '.join(map(str, prepared.dims))}")
    console.print("loss on three rows: " + ", ".join(f"{name} {value.item():.4f}" for name, value in terms.items()))
    console.print(f"untrained {prepared.evaluator.label}: {scores_line(before)}")
    console.print("The recipe is ready to run.")


def basis(recipe: RunRecipe, dims: tuple[int, ...]) -> partial[torch.Tensor]:
    """What ``--rotate`` fits on its texts for these dims."""
    return partial(learn_rotation, dims=dims, steps=recipe.model.rotate_steps, seed=recipe.trainer.seed)


def recipe_texts(recipe: Recipe, train: Dataset | DatasetDict) -> list[str]:
    """The texts that the recipe rotates on; ``train`` are its training pairs.

    Raises:
        UserError: If a source cannot be read, or ``rotate_texts`` do not fit the sources.
    """
    seed = recipe.trainer.seed
    own = partial(sample_texts, train, seed=seed)
    sources, counts = recipe.model.rotate or [], recipe.model.rotate_texts
    return rotation_texts(sources, counts, own=own, seed=seed, bad_rows=recipe.data.bad_rows)


def _rotate_retrieval(recipe: Recipe, train: Dataset | DatasetDict, dims: tuple[int, ...]) -> Finish | None:
    """What gives a trained model the rotation of its own for queries and documents, if the recipe asks for one."""
    if not recipe.model.rotate_retrieval:
        return None
    texts, fit = _rotation(recipe, train, dims, "rotate_retrieval")
    return partial(rotate_model, texts=texts, fit=fit, retrieval=True, progress=not recipe.trainer.disable_tqdm)


def _rotation(
    recipe: Recipe, train: Dataset | DatasetDict, dims: tuple[int, ...], name: Literal["rotate", "rotate_retrieval"]
) -> tuple[list[str], Fit]:
    chosen, seed = recipe.model, recipe.trainer.seed
    sources, counts = getattr(chosen, name), getattr(chosen, f"{name}_texts")
    pairs: list[torch.Tensor] = []
    if chosen.rotate_contrast:
        own = partial(sample_pairs, train, seed=seed)
        texts, pairs = rotation_pairs(sources, counts, own=own, seed=seed, bad_rows=recipe.data.bad_rows, name=name)
    else:
        some = partial(sample_texts, train, seed=seed)
        texts = rotation_texts(sources, counts, own=some, seed=seed, bad_rows=recipe.data.bad_rows, name=name)
    texts, like = with_examples(texts, (chosen.rotate_like or []) if name == "rotate" else [])
    return texts, partial(basis(recipe, dims), pairs=pairs, contrast=chosen.rotate_contrast, like=like)


def _model_kwargs(recipe: RunRecipe) -> dict[str, Any]:
    chosen = recipe.model.attn_implementation
    return {"dtype": torch.float32, **({} if chosen is None else {"attn_implementation": chosen})}


def _head(dataset: Dataset, rows: int, seed: int) -> Dataset:
    return dataset.shuffle(seed=seed).select(range(min(rows, len(dataset))))


def _to(features: dict[str, Any], device: torch.device) -> dict[str, Any]:
    return {key: value.to(device) if isinstance(value, torch.Tensor) else value for key, value in features.items()}


def scores_line(scores: dict[int, float]) -> str:
    """The scores x100 on one line, widest dim first."""
    return " | ".join(f"{dim}: {100 * scores[dim]:.2f}" for dim in sorted(scores, reverse=True))
