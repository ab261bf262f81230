"""What the scores per dim are measured on: a given set, or pairs held out of the training data."""

from __future__ import annotations

import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict

from matryoshka_st.data import BadRows, load_pairs, normalize_text, split_holdout
from matryoshka_st.data.rows import is_broken
from matryoshka_st.data.sources import DOCSTRINGS, read_source
from matryoshka_st.errors import UserError
from matryoshka_st.evaluation.evaluator import (
    MatryoshkaEvaluator,
    MatryoshkaRetrievalEvaluator,
    MatryoshkaSTSEvaluator,
)
from matryoshka_st.training.arguments import Recipe

STS_COLUMNS = ("sentence1", "sentence2", "score")
HELD_OUT_SHARE = 10


def build_evaluator(
    recipe: Recipe, train: Dataset | DatasetDict, dims: tuple[int, ...]
) -> tuple[Dataset | DatasetDict, MatryoshkaEvaluator]:
    """Make the evaluator of a run.

    Args:
        recipe: ``eval_data`` (pairs, or sentence1, sentence2 and score), or none: then pairs are held out.
        train: The training data.
        dims: Dims to score.

    Returns:
        The training data without what is held out, and the evaluator.

    Raises:
        UserError: If the evaluation data cannot be used, or there are too few rows to hold any out.
    """
    data = recipe.data
    options: dict[str, Any] = {"dims": dims, "batch_size": recipe.trainer.per_device_eval_batch_size}
    source = data.eval_data or (DOCSTRINGS if data.train_data == [DOCSTRINGS] else None)
    if source is None:
        train, pairs = hold_out(train, data.eval_size, recipe.trainer.seed)
    else:
        sts = _sts_columns(source, data.eval_split)
        if sts is not None:
            return train, MatryoshkaSTSEvaluator(*(column[: data.eval_size] for column in sts), **options)
        dataset = load_pairs(source, split=data.eval_split, bad_rows=data.bad_rows, column_order=data.column_order)
        pairs = _pairs(dataset.select(range(min(len(dataset), data.eval_size))))
        train = without_texts(train, (text for pair in pairs for text in pair))
    return train, MatryoshkaRetrievalEvaluator([a for a, _ in pairs], [p for _, p in pairs], **options)


def hold_out(
    train: Dataset | DatasetDict, size: int, seed: int
) -> tuple[Dataset | DatasetDict, list[tuple[str, str]]]:
    """Hold out pairs, at most a tenth of each set, that share no anchor or positive with what is left of any set."""
    sets = train if isinstance(train, DatasetDict) else {"train": train}
    pairs: list[tuple[str, str]] = []
    for dataset in sets.values():
        count = min(size // len(sets), len(dataset) // HELD_OUT_SHARE)
        if count < 2:
            raise UserError(
                f"A training set of {len(dataset)} rows is too small to hold pairs out of; "
                f"give {2 * HELD_OUT_SHARE} rows or more, or name --eval_data."
            )
        pairs += _pairs(split_holdout(dataset, count, seed)[1])
    return without_texts(train, (text for pair in pairs for text in pair)), pairs


def without_texts(train: Dataset | DatasetDict, texts: Iterable[str]) -> Dataset | DatasetDict:
    """Drop the rows whose anchor or positive is one of the texts, whatever their case and white space.

    Raises:
        UserError: If no row is left.
    """
    if isinstance(train, DatasetDict):
        texts = list(texts)
        return DatasetDict({name: without_texts(dataset, texts) for name, dataset in train.items()})
    held_out = {normalize_text(text) for text in texts}
    kept = [i for i, pair in enumerate(_pairs(train)) if held_out.isdisjoint(map(normalize_text, pair))]
    if not kept:
        raise UserError("Every training row holds a text of the evaluation data; give other --eval_data.")
    return train if len(kept) == len(train) else train.select(kept)


def sample_texts(train: Dataset | DatasetDict, count: int, seed: int) -> list[str]:
    """Distinct anchors and positives, drawn at random."""
    sets = train.values() if isinstance(train, DatasetDict) else [train]
    texts = list(dict.fromkeys(text for dataset in sets for pair in _pairs(dataset) for text in pair))
    return random.Random(seed).sample(texts, min(count, len(texts)))  # noqa: S311


def sample_pairs(train: Dataset | DatasetDict, count: int, seed: int) -> list[tuple[str, str]]:
    """Distinct pairs of anchor and positive, drawn at random."""
    sets = train.values() if isinstance(train, DatasetDict) else [train]
    pairs = list(dict.fromkeys(pair for dataset in sets for pair in _pairs(dataset)))
    return random.Random(seed).sample(pairs, min(count, len(pairs)))  # noqa: S311


def load_texts(source: str, count: int, seed: int = 13, bad_rows: BadRows = "error") -> list[str]:
    """Distinct texts: the lines of a .txt file, or anchors and positives of any source of pairs.

    Raises:
        UserError: If the source cannot be read or holds no text.
    """
    path = Path(source)
    if path.suffix != ".txt":
        return sample_texts(load_pairs(source, bad_rows=bad_rows), count, seed)
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{source} cannot be read as text ({error}); give a UTF-8 file, one text a line.") from error
    texts = list(dict.fromkeys(line for line in lines if line))
    if not texts:
        raise UserError(f"{source} holds no text; give one text a line.")
    return random.Random(seed).sample(texts, min(count, len(texts)))  # noqa: S311


def _pairs(dataset: Dataset) -> list[tuple[str, str]]:
    return list(zip(dataset["anchor"], dataset["positive"], strict=True))


def _sts_columns(source: str, split: str) -> list[list[Any]] | None:
    if source == DOCSTRINGS:
        return None
    rows = read_source(source, split)
    if not set(STS_COLUMNS) <= set(rows.columns):
        return None
    batches = list(rows.batches())
    columns = [[value for batch in batches for value in batch[name]] for name in STS_COLUMNS]
    for number, values in zip(rows.numbers, zip(*columns, strict=True), strict=True):
        first, second, score = values
        if not (isinstance(first, str) and isinstance(second, str) and _is_number(score)):
            raise UserError(
                f"{source} {rows.unit} {number} holds {values!r}; sentence1 and sentence2 are text, score is a number."
            )
        if is_broken(first + second):
            raise UserError(
                f"{source} {rows.unit} {number} holds half a character (a lone surrogate); repair the text or leave "
                "the row out."
            )
    return [columns[0], columns[1], [float(score) for score in columns[2]]]


def _is_number(value: Any) -> bool:
    try:
        return float(value) == float(value)
    except (TypeError, ValueError):
        return False
