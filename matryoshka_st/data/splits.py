"""Hold rows out without leaks, and check that there are enough to train on."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from matryoshka_st.errors import UserError

if TYPE_CHECKING:
    from datasets import Dataset


def normalize_text(text: str) -> str:
    """The text as leaks and duplicates are judged: any case, any white space.

    >>> normalize_text("  A  Cat")
    'a cat'
    """
    return " ".join(text.casefold().split())


def split_holdout(dataset: Dataset, size: int, seed: int) -> tuple[Dataset, Dataset]:
    """Hold out rows for development; no text of theirs stays in training as an anchor or a positive.

    Args:
        dataset: Pairs with the columns ``anchor`` and ``positive``.
        size: Rows to hold out, from 1 to one less than there are.
        seed: The same seed holds out the same rows.

    Returns:
        The training rows and the held-out rows, each in their old order.

    Raises:
        UserError: If the size does not fit, or no training row is free of held-out text.
    """
    rows = len(dataset)
    if not 1 <= size < rows:
        raise UserError(f"Cannot hold out {size} of {rows} rows; hold out 1 to {rows - 1}.")
    held_out = sorted(np.random.default_rng(seed).permutation(rows)[:size].tolist())
    pairs = zip(dataset["anchor"], dataset["positive"], strict=True)
    texts = [(normalize_text(anchor), normalize_text(positive)) for anchor, positive in pairs]
    seen = {text for index in held_out for text in texts[index]}
    kept = [index for index, pair in enumerate(texts) if seen.isdisjoint(pair)]
    if not kept:
        raise UserError(
            f"Every row shares a text with the {size} held-out rows, so none is left to train on; hold out fewer rows."
        )
    return dataset.select(kept), dataset.select(held_out)


def require_batch(dataset: Dataset, batch_size: int) -> None:
    """Check that the dataset fills at least one batch.

    Raises:
        UserError: If it has fewer rows than ``batch_size``.
    """
    rows = len(dataset)
    if rows < batch_size:
        raise UserError(
            f"The training set has {rows} rows, less than one batch of {batch_size}; "
            f"add rows, or set --per_device_train_batch_size to {rows} or less."
        )
