"""Texts as overlap is judged: their words, whatever the case, the punctuation or the Unicode form."""

from __future__ import annotations

import unicodedata

# Scripts that put no spaces between words: each character counts as one.
_UNSPACED = ("CJK", "HIRAGANA", "KATAKANA", "THAI", "LAO", "KHMER", "MYANMAR")
_PUNCTUATION_SYMBOL_SPACE_CONTROL = "PSZC"


class _Separated(dict[int, str]):
    """A table for ``str.translate``, filled as characters come up."""

    def __missing__(self, code: int) -> str:
        character = chr(code)
        if unicodedata.category(character)[0] in _PUNCTUATION_SYMBOL_SPACE_CONTROL:
            self[code] = " "
        elif unicodedata.name(character, "").startswith(_UNSPACED):
            self[code] = f" {character} "
        else:
            self[code] = character
        return self[code]


_SEPARATED = _Separated()


def only_words(text: str) -> str:
    """The words of a text, case-folded, in NFKC, one space between them and no punctuation.

    >>> only_words("“Don't”, she\u00a0SAID …"), only_words("猫が好き")
    ('don t she said', '猫 が 好 き')
    """
    folded = text.lower() if text.isascii() else unicodedata.normalize("NFKC", text).casefold()
    return " ".join(folded.translate(_SEPARATED).split())
