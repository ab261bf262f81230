"""The one exception for bad input: its text is a sentence that a user can act on."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """Bad input. The message says what was wrong, what is allowed and how to fix it; the CLI exits with code 2."""


class OptionalDependencyError(UserError):
    """A feature needs an extra that is not installed.

    Args:
        package: The import name that was not found.
        extra: The extra of matryoshka-st that brings it.
    """

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(f"{package!r} is not installed; install it with: pip install 'matryoshka-st[{extra}]'")


def did_you_mean(value: str, known: Iterable[str]) -> str:
    """Name the known value nearest to a mistyped one.

    >>> did_you_mean("learning_rat", ["learning_rate", "warmup_ratio"])
    "; did you mean 'learning_rate'?"
    >>> did_you_mean("zzz", ["learning_rate"])
    ''
    """
    nearest = difflib.get_close_matches(value, list(known), n=1, cutoff=0.5)
    return f"; did you mean {nearest[0]!r}?" if nearest else ""
