"""One run of a classifier: heads on every prefix, trained with the model on labelled texts, and saved beside it."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from accelerate import PartialState
from datasets import Dataset
from rich.console import Console
from sentence_transformers import SentenceTransformer
from torch import Tensor

from matryoshka_st.data.labelled import class_names, class_numbers, load_labelled, split_labelled
from matryoshka_st.data.splits import normalize_text, require_batch
from matryoshka_st.errors import UserError
from matryoshka_st.evaluation.evaluator import MatryoshkaAccuracyEvaluator
from matryoshka_st.export import declare_dims
from matryoshka_st.fixed import keep_prefix
from matryoshka_st.label_head import LabelHead
from matryoshka_st.losses import MatryoshkaClassificationLoss, MatryoshkaLinear
from matryoshka_st.models import embedding_width
from matryoshka_st.nesting import MatryoshkaDims, default_dims
from matryoshka_st.rotation import rotate_model
from matryoshka_st.training.classifier_arguments import ClassifierRecipe, as_yaml, parse_classifier
from matryoshka_st.training.per_source import rotation_texts
from matryoshka_st.training.prepare import Prepared, adapt, basis, load_base_model, score, scores_line
from matryoshka_st.training.resume import resume_point
from matryoshka_st.training.run import carry_out, quiet_logging
from matryoshka_st.training.summary import Scores

HELD_OUT_SHARE = 10


@dataclass(frozen=True)
class Labelled:
    """Training and held-out texts with class numbers (columns ``text``, ``label``), and the names of the classes."""

    train: Dataset
    held_out: Dataset
    names: tuple[str, ...]


def main(argv: Sequence[str], prog: str = "finetune_classifier.py") -> None:
    """Parse the flags and run; what ``train_scripts/finetune_classifier.py`` calls.

    Raises:
        UserError: For anything a user can mend.
    """
    recipe = parse_classifier(argv, prog)
    quiet_logging()
    if recipe.run.dry_run:
        dry_run(recipe)
    else:
        train(recipe)


def train(recipe: ClassifierRecipe) -> Scores:
    """Run the recipe and leave what a fine-tuning run leaves, with the heads in ``model/matryoshka_head``.

    Returns:
        The accuracy per dim on held-out texts: by the nearest class mean of the model as it came, and by the heads
        after training.

    Raises:
        UserError: If the recipe cannot be run, or the loss is not finite.
    """
    config = as_yaml(recipe)
    resume_from = resume_point(recipe.run.resume, recipe.folder, config)
    prepared, loss, names, before = prepare(recipe)
    return carry_out(
        recipe, config, prepared, loss, before, resume_from, beside=partial(_write_head, loss.head, names)
    )


def prepare(
    recipe: ClassifierRecipe,
) -> tuple[Prepared, MatryoshkaClassificationLoss, tuple[str, ...], dict[int, float]]:
    """Load model and texts, and set the heads to the nearest class mean.

    Returns:
        The run, its loss, the names of the classes, and the accuracy at each dim of the model as it came.

    Raises:
        UserError: If model, data and recipe do not fit.
    """
    if recipe.model.rotate_contrast or recipe.model.rotate_like or recipe.model.rotate_retrieval:
        raise UserError(
            "rotate_contrast, rotate_like and rotate_retrieval are not for texts with labels; leave them out."
        )
    model, saved_seq_length = load_base_model(recipe)
    width = embedding_width(model)
    chosen = MatryoshkaDims.of(
        recipe.head.matryoshka_dims or default_dims(width), recipe.head.matryoshka_weights, width=width
    )
    declare_dims(model, chosen.dims)
    data = load_data(recipe)
    require_batch(data.train, recipe.trainer.per_device_train_batch_size)
    loss = MatryoshkaClassificationLoss(
        model,
        len(data.names),
        chosen.dims,
        chosen.weights,
        efficient=recipe.head.efficient,
        scale=recipe.head.scale,
        length_groups=recipe.head.length_groups,
    )
    evaluator = MatryoshkaAccuracyEvaluator(
        data.held_out["text"][:],
        data.held_out["label"][:],
        partial(_answers, loss.head),
        dims=chosen.dims,
        batch_size=recipe.trainer.per_device_eval_batch_size,
    )
    _set_class_means(loss.head, model, data.train, recipe)
    before = score(model, evaluator)
    if recipe.model.rotate:
        seed = recipe.trainer.seed
        own = partial(_own_texts, data.train, seed=seed)
        sources, counts = recipe.model.rotate, recipe.model.rotate_texts
        texts = rotation_texts(sources, counts, own=own, seed=seed, bad_rows=recipe.data.bad_rows)
        rotate_model(model, texts, fit=basis(recipe, chosen.dims), progress=not recipe.trainer.disable_tqdm)
        _set_class_means(loss.head, model, data.train, recipe)
    if recipe.head.fixed is not None:
        keep_prefix(model, recipe.head.fixed)
        declare_dims(model, chosen.dims)
    start = adapt(model, recipe.model)
    return Prepared(model, saved_seq_length, chosen.dims, data.train, evaluator, start), loss, data.names, before


def load_data(recipe: ClassifierRecipe) -> Labelled:
    """The texts of the recipe: what to train on, and what is held out of it or named.

    Raises:
        UserError: If they cannot be loaded, have bad rows, or fewer than two classes.
    """
    data = recipe.data
    columns = {"text_column": data.text_column, "label_column": data.label_column}
    train = load_labelled(data.train_data, split=data.train_split, bad_rows=data.bad_rows, **columns)
    if data.eval_data is None:
        size = min(data.eval_size, len(train) // HELD_OUT_SHARE)
        if size < 2:
            raise UserError(
                f"A training set of {len(train)} rows is too small to hold texts out of; "
                f"give {2 * HELD_OUT_SHARE} rows or more, or name --eval_data."
            )
        train, held_out = split_labelled(train, size, recipe.trainer.seed)
    else:
        held_out = load_labelled(data.eval_data, split=data.eval_split, bad_rows=data.bad_rows, **columns)
        held_out = held_out.shuffle(seed=recipe.trainer.seed).select(range(min(len(held_out), data.eval_size)))
        train = _without_texts(train, held_out)
    names = class_names(train["label"][:])
    if len(names) < 2:
        raise UserError(f"{data.train_data} has one label only, {names[0]!r}; a classifier needs two or more.")
    return Labelled(
        _numbered(train, names, data.train_data), _numbered(held_out, names, data.eval_data or data.train_data), names
    )


def dry_run(recipe: ClassifierRecipe) -> None:
    """Say what a run would do, and do one forward and backward pass on two rows; nothing is written.

    Raises:
        UserError: If the recipe cannot be run.
    """
    prepared, loss, names, before = prepare(recipe)
    rows = prepared.train[:2]
    features = prepared.model.preprocess(rows["text"])
    moved = {key: x.to(prepared.model.device) if isinstance(x, Tensor) else x for key, x in features.items()}
    terms = loss.train()([moved], torch.tensor(rows["label"]))
    terms.total().backward()
    batch = recipe.trainer.train_batch_size * recipe.trainer.gradient_accumulation_steps * PartialState().num_processes
    steps = recipe.trainer.max_steps
    if steps < 0:
        steps = int(len(prepared.train) * recipe.trainer.num_train_epochs / batch)
    console = Console(soft_wrap=True)
    console.print(
        f"{len(prepared.train):,} texts of {len(names)} classes; the first, {rows['text'][0]!r}, is "
        f"{names[rows['label'][0]]!r}",
        markup=False,
    )
    console.print(f"about {steps:,} steps of {batch} texts; dims {', '.join(map(str, prepared.dims))}")
    console.print("loss on two rows: " + ", ".join(f"{name} {value.item():.4f}" for name, value in terms.items()))
    console.print(f"heads: {loss.head.memory_bytes():,} bytes; untrained accuracy x100: {scores_line(before)}")
    console.print("The recipe is ready to run.")


def _answers(head: MatryoshkaLinear, embeddings: Tensor, dim: int) -> Tensor:
    with torch.no_grad():
        weight = next(head.parameters())
        return head.logits(embeddings.to(weight), dim).argmax(dim=1)


def _set_class_means(
    head: MatryoshkaLinear, model: SentenceTransformer, train: Dataset, recipe: ClassifierRecipe
) -> None:
    embeddings = model.encode(
        train["text"][:],
        batch_size=recipe.trainer.per_device_eval_batch_size,
        show_progress_bar=not recipe.trainer.disable_tqdm,
        convert_to_tensor=True,
    )
    head.set_class_means(embeddings, torch.tensor(train["label"][:], device=embeddings.device))


def _own_texts(train: Dataset, count: int, seed: int) -> list[str]:
    texts = list(dict.fromkeys(train["text"][:]))
    return random.Random(seed).sample(texts, min(count, len(texts)))  # noqa: S311


def _without_texts(train: Dataset, held_out: Dataset) -> Dataset:
    seen = {normalize_text(text) for text in held_out["text"][:]}
    kept = [i for i, text in enumerate(train["text"][:]) if normalize_text(text) not in seen]
    if not kept:
        raise UserError("Every training text is one of the evaluation data; give other --eval_data.")
    return train if len(kept) == len(train) else train.select(kept)


def _numbered(dataset: Dataset, names: Sequence[str], source: str) -> Dataset:
    numbers = class_numbers(dataset["label"][:], names, source)
    return Dataset.from_dict({"text": dataset["text"][:], "label": numbers})


def _write_head(linear: MatryoshkaLinear, names: tuple[str, ...], folder: Path) -> None:
    head = LabelHead(linear, names)
    head.save(folder)
    kind = "one linear classifier that all of them share" if linear.efficient else "a linear classifier for each"
    card = folder / "README.md"
    card.write_text(
        f"""{card.read_text(encoding="utf-8").rstrip()}

## Labels

Texts get one of {len(names)} labels from any of the prefixes above, by {kind} ({linear.memory_bytes():,} bytes):

```python
from matryoshka_st import LabelHead, load_model

folder = "path/to/this/model"
model, head = load_model(folder), LabelHead.load(folder)
head.predict(model.encode(["A text to label."]), dim={linear.dims[0]})
```
""",
        encoding="utf-8",
    )
