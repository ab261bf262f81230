"""The prose of a docstring: its first sentence and what follows, without parameters, code and markup."""

from __future__ import annotations

import inspect
import re

SUMMARY_WORDS = range(4, 31)
FEWEST_BODY_WORDS = 8
MOST_BODY_CHARACTERS = 600
LEAST_LETTERS = 0.93

_HEADER = re.compile(
    r"\s*(:\w+( [^:]+)?:(\s|$)|@\w+|#+ |"
    r"\**(Args?|Arguments?|Attributes?|Attrs|Caution|Citation|Classes|Copyright|Examples?|Explanation|Functions|"
    r"Inputs?|Keyword [Aa]rguments|Keyword [Aa]rgs|Kwargs|Members|Methods|Notes?|Options|Outputs?|Params?|Parameters?|"
    r"Properties|Raises?|References?|Remarks?|Returns?|Return [Tt]ype|See [Aa]lso|Shapes?|Syntax|Tips?|Todo|TODO|"
    r"Usage|Variables|Warnings?|Warns|Yields?)\b[^.]{0,30}:\**(\s|$))"
)
_UNDERLINE = re.compile(r"\s*([-=~^#*])\1{2,}\s*$")
_LIST_OR_TABLE = re.compile(r"\s*([-*+|•]|\d+[.)]|\w+[ ]?:|[\w.]+ -)\s")
_NOT_PROSE = re.compile(
    r">>>|\.\. |\\|\$|https?://|[{}|=]|<[^>]*>|\bAuto-?generated|\bcopyright\b|\S\(\S", re.IGNORECASE
)
_INLINE = (
    (re.compile(r"\[\d+\]_?"), ""),
    (re.compile(r"`~[\w.]*?(\w+)`"), r"`\1`"),
    (re.compile(r":[\w:+-]+:`(?:[^`<]*?)\s*<([^`>]+)>`"), r"\1"),
    (re.compile(r":[\w:+-]+:`!?([^`]+)`"), r"\1"),
    (re.compile(r"`([^`<]+?)\s*<[^`>]+>`__?"), r"\1"),
    (re.compile(r"\[`?([^\]`]+)`?\]\([^)]*\)"), r"\1"),
    (re.compile(r"\[`([^\]`]+)`\]"), r"\1"),
    (re.compile(r"`+([^`]*)`+_*"), r"\1"),
    (re.compile(r"(?<!\w)(\*{1,3})(\S(?:[^*]*\S)?)\1(?!\w)"), r"\2"),
    (re.compile(r"\(\)"), ""),
    (re.compile(r"::(?=\s|$)"), ":"),
    (re.compile(r"\s+"), " "),
)
_SENTENCE_END = re.compile(r"(?<!e\.g)(?<!i\.e)(?<!etc)(?<!vs)(?<!cf)(?<=[.!?])\s+(?=[\"'(]?[A-Z])")
# What is left of a sentence whose code block, formula or reference was taken out.
_DANGLING = (":", " .", "as follows.")


def split_docstring(text: str) -> tuple[str, str] | None:
    r"""The summary sentence of a docstring and the prose after it, or ``None`` if either is not worth learning from.

    >>> split_docstring("Sort a list in place.\n\nThe sort is stable: equal `items` keep the order they had.")
    ('Sort a list in place.', 'The sort is stable: equal items keep the order they had.')
    """
    sentences = _sentences(text)
    if not sentences:
        return None
    summary, body = sentences[0], _joined(sentences[1:])
    good = len(summary.split()) in SUMMARY_WORDS and len(body.split()) >= FEWEST_BODY_WORDS
    return (summary, body) if good and _is_prose(summary) and _is_prose(body) else None


def docstring_prose(text: str) -> str:
    r"""All prose of a docstring up to its first section, at most 600 characters; empty where there is none.

    >>> docstring_prose("Why the payment was declined.\n\n    See the reasons.\n\n    Args:\n        x: A number.")
    'Why the payment was declined. See the reasons.'
    """
    prose = _joined(_sentences(inspect.cleandoc(text)))
    return prose if _is_prose(prose) else ""


def _sentences(text: str) -> list[str]:
    return [sentence for paragraph in _prose_paragraphs(text) for sentence in _SENTENCE_END.split(paragraph)]


def _joined(sentences: list[str]) -> str:
    return _cut(" ".join(sentence for sentence in sentences if not sentence.endswith(_DANGLING)))


def _prose_paragraphs(text: str) -> list[str]:
    """The paragraphs up to the first section; the first one has to be prose for any to count."""
    paragraphs: list[str] = []
    for block in re.split(r"\n\s*\n", text):
        lines = block.splitlines()
        head = _lines_before_section(lines)
        clean = _clean(head)
        if clean:
            paragraphs.append(clean)
        if len(head) < len(lines) or not paragraphs:
            break
    return paragraphs


def _lines_before_section(lines: list[str]) -> list[str]:
    for index, line in enumerate(lines):
        if _HEADER.match(line):
            return lines[:index]
        if _UNDERLINE.match(line):
            return lines[: max(0, index - 1)]
    return lines


def _clean(lines: list[str]) -> str:
    if not lines or any(line[:1].isspace() or _LIST_OR_TABLE.match(line) for line in lines):
        return ""
    text = " ".join(lines)
    for pattern, replacement in _INLINE:
        text = pattern.sub(replacement, text)
    return "" if _NOT_PROSE.search(text) else text.strip()


def _cut(body: str) -> str:
    if len(body) <= MOST_BODY_CHARACTERS:
        return body
    cut = body[:MOST_BODY_CHARACTERS]
    return cut[: cut.rfind(". ") + 1] or cut[: cut.rfind(" ")]


def _is_prose(text: str) -> bool:
    letters = sum(character.isalpha() or character in " .,'-" for character in text)
    return letters >= LEAST_LETTERS * len(text)
