"""Settings that are one number for all sources or one for each, and the texts of several sources."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from matryoshka_st.data import BadRows
from matryoshka_st.errors import UserError
from matryoshka_st.training.arguments import ModelArguments
from matryoshka_st.training.held_out import load_texts


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
    arguments: ModelArguments,
    own: Callable[[int], list[str]],
    *,
    seed: int,
    bad_rows: BadRows,
) -> list[str]:
    """The texts that ``--rotate`` names, at most ``rotate_texts`` of each source.

    Args:
        arguments: What the recipe says.
        own: Draws so many training texts, which the source ``train`` stands for.
        seed: Draws those of the other sources.
        bad_rows: What to do about their bad rows.

    Raises:
        UserError: If a source cannot be read, or ``rotate_texts`` do not fit the sources.
    """
    sources = arguments.rotate or []
    counts = one_each("rotate_texts", arguments.rotate_texts, len(sources), "sources of --rotate")
    drawn = (
        own(count) if source == "train" else load_texts(source, count, seed, bad_rows)
        for source, count in zip(sources, counts, strict=True)
    )
    return [text for texts in drawn for text in texts]
