"""Text files, read record by record so that an error names its line."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from matryoshka_st.data.rows import Rows
from matryoshka_st.errors import UserError

LONGEST_FIELD = 2**30


def read_jsonl(path: Path) -> Rows:
    """Read one JSON object per line; blank lines are skipped, an absent key is a missing value.

    Raises:
        UserError: If a line is not a JSON object in UTF-8, with its number.
    """
    records: list[dict[str, Any]] = []
    numbers: list[int] = []
    with path.open("rb") as file:
        for number, line in enumerate(_decoded(path, file), start=1):
            if line.strip():
                records.append(_parse_object(path, number, line))
                numbers.append(number)
    names = dict.fromkeys(name for record in records for name in record)
    columns = {name: [record.get(name) for record in records] for name in names}
    return Rows(str(path), columns, numbers, "line")


def read_lines(path: Path) -> Rows:
    """Read one text per line into the column ``text``; blank lines are skipped.

    Raises:
        UserError: If the file cannot be read, a line is not UTF-8, with its number, or there is no text.
    """
    try:
        with path.open("rb") as file:
            numbered = [(n, line.strip()) for n, line in enumerate(_decoded(path, file), start=1) if line.strip()]
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); give a file with one text a line.") from error
    if not numbered:
        raise UserError(f"{path} holds no text; give one text a line.")
    numbers, lines = zip(*numbered, strict=True)
    return Rows(str(path), {"text": list(lines)}, numbers, "line")


def read_csv(path: Path, delimiter: str) -> Rows:
    """Read a table with a header; every value is text, blank lines are skipped.

    Args:
        path: The file.
        delimiter: What separates the fields, ``,`` or a tab.

    Raises:
        UserError: If a record cannot be parsed or has not as many fields as the header, with its line number.
    """
    csv.field_size_limit(LONGEST_FIELD)
    with path.open("rb") as file:
        reader = csv.reader(_decoded(path, file), delimiter=delimiter, strict=True)
        records = _numbered(path, reader)
        header = next(records, (1, []))[1]
        repeated = [name for name in header if header.count(name) > 1]
        if repeated:
            raise UserError(f"{path}, line 1: the header names {repeated[0]!r} twice; name each column once.")
        numbers: list[int] = []
        rows: list[list[str]] = []
        for number, record in records:
            if len(record) != len(header):
                raise UserError(
                    f"{path}, line {number} has {len(record)} fields where the header has {len(header)}; "
                    "put fields that hold a delimiter or a line break in double quotes."
                )
            numbers.append(number)
            rows.append(record)
    columns = {name: [record[i] for record in rows] for i, name in enumerate(header)}
    return Rows(str(path), columns, numbers, "line")


def _decoded(path: Path, file: BinaryIO) -> Iterator[str]:
    for number, line in enumerate(file, start=1):
        try:
            yield line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise UserError(
                f"{path}, line {number} is not UTF-8 text ({error.reason}); save the file as UTF-8."
            ) from error


def _parse_object(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except (json.JSONDecodeError, RecursionError) as error:
        raise UserError(
            f"{path}, line {number} is not valid JSON ({error}); write one JSON object per line."
        ) from error
    if not isinstance(record, dict):
        raise UserError(
            f"{path}, line {number} is a JSON {type(record).__name__}, not an object; "
            'write one object per line, such as {"anchor": "...", "positive": "..."}.'
        )
    return record


def _numbered(path: Path, reader: Any) -> Iterator[tuple[int, list[str]]]:
    while True:
        start = reader.line_num + 1
        try:
            record = next(reader, None)
        except csv.Error as error:
            raise UserError(
                f"{path}, line {start} cannot be parsed ({error}); close every double quote, and double those inside "
                "a quoted field."
            ) from error
        if record is None:
            return
        if record:
            yield start, record
