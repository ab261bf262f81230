"""Pairs of names and what they stand for, from the sources of Python packages that are not installed.

An SDK of a service describes each of its fields ("decline reason: why the card payment was declined"), which makes
pairs of short names and sentences about payments, accounts, deliveries, messages or calendars: everyday matters that
corpora of questions and captions hold little of. The anchor is the name in words, the positive its docstring's prose.
Wheels are read as they are: nothing is installed, and no code is run.

pip download --no-deps --dest WHEELS stripe==16.1.0 telnyx==4.189.0
python train_scripts/package_docs.py WHEELS/*.whl --output service_docs.parquet
"""

from __future__ import annotations

import ast
import random
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from matryoshka_st.cli import exit_with_one_sentence
from matryoshka_st.data.pairs import write_pairs
from matryoshka_st.data.prose import docstring_prose
from matryoshka_st.docstrings import parse_source
from matryoshka_st.errors import UserError
from matryoshka_st.files import check_parents

FEWEST_WORDS = 5
# What code is about, not what the service is about.
ABOUT_CODE = re.compile(
    r"noqa|_|[a-z][A-Z]|\bAPI\b|SDK|JSON|HTTP|param|asynchron|iterator|instance|raw response"
    r"|^(Sets|Gets|Construct|Initialize|Create an instance|Streams|Asynchronously)\b"
)
WORDS_OF_CODE = {
    "async", "base", "context", "create", "data", "instance", "item", "items", "list", "model", "models", "object",
    "page", "params", "raw", "request", "resource", "response", "retrieve", "service", "the", "type", "update", "with",
}  # fmt: skip
_NAME = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")


def named_docs(body: list[ast.stmt], owner: str = "") -> Iterator[tuple[str, str]]:
    """Name and docstring of each class, function and documented field; a field's name has its class before it."""
    field = None
    for statement in body:
        match statement:
            case ast.Expr(ast.Constant(str() as text)) if field:
                yield f"{owner} {field}", text
        field = _field(statement)
        if isinstance(statement, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            if docstring := ast.get_docstring(statement, clean=False):
                yield f"{owner} {statement.name}", docstring
            yield from named_docs(statement.body, statement.name if isinstance(statement, ast.ClassDef) else owner)


def in_words(name: str) -> str:
    """The words of an identifier, each once, without those that are about code.

    >>> in_words("CardCreateParams decline_reason")
    'card decline reason'
    """
    words = dict.fromkeys(word.lower() for word in _NAME.findall(name))
    return " ".join(word for word in words if word not in WORDS_OF_CODE)


def pairs_of(wheel: Path) -> list[tuple[str, str]]:
    """The pairs of one wheel, in the order of its files and lines, each description once.

    Raises:
        UserError: If the file is no wheel.
    """
    found: dict[str, str] = {}
    try:
        with zipfile.ZipFile(wheel) as archive:
            names = sorted(name for name in archive.namelist() if _is_source(name))
            trees = [tree for name in names if (tree := parse_source(archive.read(name), name))]
    except (OSError, zipfile.BadZipFile) as error:
        raise UserError(f"{wheel} is not a wheel ({error}); give .whl files, as pip download writes them.") from error
    for tree in trees:
        for name, text in named_docs(tree.body):
            anchor, positive = in_words(name), docstring_prose(text)
            if len(anchor.split()) > 1 and len(positive.split()) >= FEWEST_WORDS and not ABOUT_CODE.search(positive):
                found.setdefault(positive, anchor)
    return [(anchor, positive) for positive, anchor in found.items()]


def _field(statement: ast.stmt) -> str | None:
    match statement:
        case ast.AnnAssign(ast.Name(name)) | ast.Assign([ast.Name(name)]):
            return name
    return None


def _is_source(name: str) -> bool:
    return name.endswith(".py") and not {"test", "tests"} & set(name.split("/"))


def main(
    wheels: Annotated[list[Path], typer.Argument(help="Wheels, as pip download writes them")],
    output: Annotated[Path, typer.Option(help="Parquet file of pairs, for --train_data and --rotate")],
    most: Annotated[int, typer.Option(min=1, help="Pairs kept of each wheel, drawn at random")] = 2500,
    seed: Annotated[int, typer.Option(help="Of the draw and of the order")] = 13,
) -> None:
    """Write the pairs of some wheels."""
    check_parents(output)
    draw = random.Random(seed)  # noqa: S311
    rows: dict[str, str] = {}
    for wheel in sorted(wheels):
        pairs = pairs_of(wheel)
        for anchor, positive in draw.sample(pairs, min(most, len(pairs))):
            rows.setdefault(positive, anchor)
        Console().print(f"{wheel.name}: {len(pairs):,} pairs", highlight=False, soft_wrap=True)
    if not rows:
        raise UserError("No wheel has a name with a description in prose; give SDKs that document their fields.")
    positives = draw.sample(list(rows), len(rows))
    write_pairs(output, [(rows[positive], positive) for positive in positives])
    Console().print(f"{output}: {len(rows):,} pairs", highlight=False, soft_wrap=True)


if __name__ == "__main__":
    with exit_with_one_sentence():
        typer.run(main)
