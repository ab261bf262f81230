"""Texts to search in, each with its place: files, folders of files, or the docstrings of the installed packages."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Literal, NamedTuple, get_args

from matryoshka_st.data.rows import Rows, is_broken
from matryoshka_st.data.sources import DOCSTRINGS, SUFFIXES, read_source
from matryoshka_st.errors import UserError, did_you_mean
from matryoshka_st.retrieval.builds import is_built

logger = logging.getLogger(__name__)

Unit = Literal["paragraph", "line", "file"]
TEXT_SUFFIXES = (".txt", ".md", ".rst")
TABLE_SUFFIXES = tuple(suffix for suffix in SUFFIXES if suffix != ".json")  # in folders most are no tables
TEXT_COLUMN = "text"


class Passage(NamedTuple):
    """A text and where it stands: ``notes/today.md:12`` (line or row), or the name of a module."""

    text: str
    place: str


def read_passages(
    source: str, *, columns: Sequence[str] = (), unit: str = "paragraph", most: int | None = None
) -> list[Passage]:
    """Read all texts of a source, in the order of file names, then of lines.

    Args:
        source: A file, a folder (searched with its subfolders, without hidden ones and indexes) or ``docstrings``.
            Files ending in .txt, .md or .rst are text; .jsonl, .parquet, .csv and .tsv are tables.
        columns: Columns of the tables that make a text, joined by a space; default: ``text``, or the only one.
        unit: What of a text file is one text: ``paragraph`` (lines up to a blank one), ``line`` or ``file``.
        most: Read at most so many texts.

    Raises:
        UserError: If the source, a file or a column is missing, a file cannot be read, or there is no text.
    """
    if unit not in get_args(Unit):
        raise UserError(f"There is no unit {unit!r}{did_you_mean(unit, get_args(Unit))}; use paragraph, line or file.")
    if most is not None and most < 1:
        raise UserError(f"The most texts to read is {most}; give 1 or more.")
    passages = list(islice(_all_passages(source, columns, unit), most))
    if not passages:
        raise UserError(f"{source} holds no text; give files with at least one.")
    return passages


def _all_passages(source: str, columns: Sequence[str], unit: str) -> Iterator[Passage]:
    if source == DOCSTRINGS:
        yield from _docstrings()
        return
    path = Path(source).expanduser()
    if path.is_dir():
        for file in _files(path):
            yield from _file_passages(file, _shown(file.relative_to(path)), columns, unit)
    elif path.is_file():
        if path.suffix.lower() not in (*TEXT_SUFFIXES, *SUFFIXES):
            raise UserError(f"{path} ends in {path.suffix!r}; files to index end in {_listed(path.suffix)}.")
        yield from _file_passages(path, _shown(Path(path.name)), columns, unit)
    else:
        raise UserError(f"{source!r} does not exist; give a file, a folder or {DOCSTRINGS!r}.")


def _shown(path: Path) -> str:
    return os.fsencode(path).decode("utf-8", "replace")  # a name need not be UTF-8


def _listed(suffix: str) -> str:
    return f"{', '.join((*TEXT_SUFFIXES, *SUFFIXES))}{did_you_mean(suffix, (*TEXT_SUFFIXES, *SUFFIXES))}"


def _files(folder: Path) -> list[Path]:
    wanted = (*TEXT_SUFFIXES, *TABLE_SUFFIXES)
    files = sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in wanted and path.is_file() and not _is_hidden(path.relative_to(folder))
    )
    if not files:
        raise UserError(f"Folder {folder} holds no file that ends in {', '.join(wanted)}; give another folder.")
    return files


def _is_hidden(path: Path) -> bool:
    return is_built(path) or any(part.startswith(".") for part in path.parts)


def _file_passages(path: Path, name: str, columns: Sequence[str], unit: str) -> Iterator[Passage]:
    if path.suffix.lower() in TEXT_SUFFIXES:
        for number, text in _UNITS[unit](_read_text(path)):
            yield Passage(text, f"{name}:{number}")
    else:
        for number, text in _row_texts(read_source(str(path.absolute()), "train"), columns):
            yield Passage(text, f"{name}:{number}")


def _read_text(path: Path) -> str:
    try:
        content = path.read_bytes()
        return content.decode("utf-8-sig")
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); check the file and its permissions.") from error
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise UserError(f"{path}, line {line} is not UTF-8 text ({error.reason}); save the file as UTF-8.") from error


def _lines(text: str) -> Iterator[tuple[int, str]]:
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield number, line.strip()


def _paragraphs(text: str) -> Iterator[tuple[int, str]]:
    start, lines = 0, list[str]()
    for number, line in enumerate([*text.split("\n"), ""], start=1):
        if line.strip():
            start = start if lines else number
            lines.append(line.strip())
        elif lines:
            yield start, " ".join(lines)
            lines = []


def _whole(text: str) -> Iterator[tuple[int, str]]:
    if text.strip():
        yield 1, text.strip()


_UNITS: dict[str, Callable[[str], Iterator[tuple[int, str]]]] = {
    "paragraph": _paragraphs,
    "line": _lines,
    "file": _whole,
}


def _row_texts(rows: Rows, columns: Sequence[str]) -> Iterator[tuple[int, str]]:
    chosen = _columns(rows, columns)
    numbers = iter(rows.numbers)
    empty = 0
    for batch in rows.batches():
        for cells in zip(*(batch[name] for name in chosen), strict=True):
            number = next(numbers)
            text = " ".join(_cell(rows, number, name, cell) for name, cell in zip(chosen, cells, strict=True)).strip()
            empty += not text
            if text:
                yield number, text
    if empty:
        logger.warning("%s: left out %d rows without text.", rows.source, empty)


def _columns(rows: Rows, columns: Sequence[str]) -> list[str]:
    found = ", ".join(map(repr, rows.columns))
    for name in columns:
        if name not in rows.columns:
            raise UserError(f"{rows.source} has no column {name!r}; it has {found}{did_you_mean(name, rows.columns)}.")
    if columns:
        return list(columns)
    if TEXT_COLUMN in rows.columns:
        return [TEXT_COLUMN]
    if len(rows.columns) == 1:
        return rows.columns
    raise UserError(
        f"{rows.source} has the columns {found}, and none is called {TEXT_COLUMN!r}; choose one or several with "
        f"--columns {rows.columns[0]} (columns=[{rows.columns[0]!r}])."
    )


def _cell(rows: Rows, number: int, name: str, value: object) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise UserError(
            f"{rows.source}, {rows.unit} {number} holds {type(value).__name__} as {name!r}; choose columns of text."
        )
    if is_broken(value):
        raise UserError(
            f"{rows.source}, {rows.unit} {number} holds half a character (a lone surrogate) in {name!r}; repair the "
            "text or leave the row out."
        )
    return value.strip()


def _docstrings() -> Iterator[Passage]:
    from matryoshka_st.docstrings import harvest_docstrings

    for pairs in harvest_docstrings().values():
        for pair in pairs:
            yield Passage(f"{pair.summary} {pair.body}", pair.module)
