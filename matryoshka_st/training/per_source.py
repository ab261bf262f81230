"""Settings that are one number for all sources or one for each, and the texts and pairs of several sources."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from jaxtyping import Int
from torch import Tensor

from matryoshka_st.data import BadRows, load_pairs
from matryoshka_st.errors import UserError
from matryoshka_st.training.held_out import load_texts, sample_pairs


def one_each(name: str, numbers: Sequence[int], count: int, things: str) -> Sequence[int]:
    """One number for each of ``count`` things, where one was given for all of them or one for each.

    Raises:
        UserError: If another count of numbers was given, or one of them is below 1.
    """
    if len(numbers) not in (1, count):
        raise UserError(f"{name} has {len(numbers)} numbers for {count} {things}; give one for all or one each.")
    if min(numbers) < 1:
        raise UserError(f"{name} is {min(numbers)}; give 1 or more, or leave it out.")
    return list(numbers) * count if len(numbers) == 1 else numbers


def rotation_texts(
    sources: Sequence[str],
    counts: Sequence[int],
    *,
    own: Callable[[int], list[str]] | None = None,
    seed: int = 13,
    bad_rows: BadRows = "error",
    name: str = "rotate",
) -> list[str]:
    """The texts that a rotation is fitted on.

    Args:
        sources: .txt files, or pairs: hub ids, files or ``docstrings``.
        counts: At most so many texts of each: one number for all, or one each.
        own: Draws so many training texts, which the source ``train`` then stands for.
        seed: Draws those of the other sources.
        bad_rows: What to do about their bad rows.
        name: The setting that named the sources.

    Raises:
        UserError: If a source cannot be read, or the counts do not fit the sources.
    """
    counts = _counts(name, counts, sources)
    drawn = (
        own(count) if own and source == "train" else load_texts(source, count, seed, bad_rows)
        for source, count in zip(sources, counts, strict=True)
    )
    return [text for texts in drawn for text in texts]


def rotation_pairs(
    sources: Sequence[str],
    counts: Sequence[int],
    *,
    own: Callable[[int], list[tuple[str, str]]] | None = None,
    seed: int = 13,
    bad_rows: BadRows = "error",
    name: str = "rotate",
) -> tuple[list[str], list[Int[Tensor, "_ 2"]]]:
    """The pairs that a rotation is learned on besides its texts.

    Args:
        sources: Pairs: hub ids, files or ``docstrings``.
        counts: At most so many texts of each, two to a pair: one number for all, or one each.
        own: Draws so many training pairs, which the source ``train`` then stands for.
        seed: Draws those of the other sources.
        bad_rows: What to do about their bad rows.
        name: The setting that named the sources.

    Returns:
        The distinct texts, and for each source the positions of its anchors and positives among them.

    Raises:
        UserError: If a source cannot be read or has no pairs, or the counts do not fit the sources.
    """
    halves = [max(1, count // 2) for count in _counts(name, counts, sources)]
    for source in sources:
        if Path(source).suffix == ".txt":
            raise UserError(f"{source} holds texts, and a contrast needs pairs; name pairs, or ask for no contrast.")
    sets = [
        own(count) if own and source == "train" else sample_pairs(load_pairs(source, bad_rows=bad_rows), count, seed)
        for source, count in zip(sources, halves, strict=True)
    ]
    texts = list(dict.fromkeys(text for pairs in sets for pair in pairs for text in pair))
    place = {text: number for number, text in enumerate(texts)}
    return texts, [torch.tensor([[place[text] for text in pair] for pair in pairs]) for pairs in sets]


def _counts(name: str, counts: Sequence[int], sources: Sequence[str]) -> Sequence[int]:
    return one_each(f"{name}_texts", counts, len(sources), f"sources of --{name}")
