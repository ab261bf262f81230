"""Command-line parsing with our manners: a wrong flag is one sentence, not a page of usage."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from typing import Any, NoReturn

from matryoshka_st.errors import UserError, did_you_mean

KINDS = {"int": "an integer", "float": "a number"}


class OneSentence:
    """Mix-in for argparse parsers: errors become :class:`UserError`."""

    def error(self, message: str) -> NoReturn:
        """Raise instead of printing the usage and leaving."""
        bad = re.fullmatch(r"argument (--[\w-]+)\S*: invalid (\w+) value: (.*)", message)
        if bad:
            flag, kind, value = bad.groups()
            message = f"{flag} got {value}, which is not {KINDS.get(kind, f'a valid {kind}')}"
        raise UserError(f"{message}; see --help for what each flag takes.")


class Flags(OneSentence, argparse.ArgumentParser):
    """An ``ArgumentParser`` that explains itself in one sentence and takes no abbreviations."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(allow_abbrev=False, **kwargs)

    def parse(self, argv: Sequence[str]) -> argparse.Namespace:
        """Parse, naming the nearest flag for an unknown one.

        Raises:
            UserError: For any wrong or missing flag.
        """
        known, unknown = self.parse_known_args(argv)
        if unknown:
            flags = [flag for action in self._actions for flag in action.option_strings if flag.startswith("--")]
            raise UserError(f"Unknown argument {unknown[0]!r}{did_you_mean(unknown[0], flags)}; see --help.")
        return known


def underscored(word: str) -> str:
    """A flag with underscores for its inner dashes, as transformers spells flags; any other word as it is.

    >>> underscored("--train-data"), underscored("--config=my-recipe.yaml"), underscored("my-pairs.csv")
    ('--train_data', '--config=my-recipe.yaml', 'my-pairs.csv')
    """
    flag, equals, value = word.partition("=")
    return flag.replace("-", "_").replace("__", "--", 1) + equals + value if flag.startswith("--") else word
