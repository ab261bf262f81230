"""Files and folders that are there whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from matryoshka_st.errors import UserError


def check_parents(path: Path) -> None:
    """Check that something can be written at a path, before the long work that it is to hold.

    Raises:
        UserError: If the nearest of its parents that exists is no folder, or may not be written to.
    """
    nearest = next(parent for parent in path.absolute().parents if os.access(parent, os.F_OK))
    if not nearest.is_dir():
        raise UserError(f"{path} cannot be written, as {nearest} is a file and not a folder; give another path.")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise UserError(f"{path} cannot be written, as {nearest} may not be written to; give another path.")


def write_whole(path: Path, content: bytes | str) -> None:
    """Write a file whole or not at all: under a temporary name, flushed, then renamed.

    Args:
        path: The file; its folder is made if missing.
        content: Bytes, or text to encode as UTF-8.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("wb") as file:
        file.write(content.encode() if isinstance(content, str) else content)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write JSON whole or not at all: under a temporary name, flushed, then renamed."""
    write_whole(path, json.dumps(content, indent=2) + "\n")


@contextmanager
def whole_folder(target: Path) -> Iterator[Path]:
    """Write a folder whole or not at all: fill the one that is given, which then takes the place of ``target``.

    It lies under a temporary name beside the target, and is flushed to disk and renamed on leaving; an exception
    removes it. A folder that was there before stays complete until then; a process killed between the two renames of
    that moment leaves it beside the target as ``.NAME.previous``.

    Args:
        target: The folder, resolved; its parents are made if missing.
    """
    partial = target.with_name(f".{target.name}.partial")
    _remove(partial)
    partial.mkdir(parents=True)
    try:
        yield partial
        for path in (*partial.rglob("*"), partial):
            _fsync(path)
        _move_into_place(partial, target)
    finally:
        _remove(partial)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _move_into_place(new: Path, target: Path) -> None:
    """Rename, keeping the previous folder beside the target until the new one stands there."""
    previous = target.with_name(f".{target.name}.previous")
    if target.exists():
        _remove(previous)
        target.rename(previous)
    try:
        new.rename(target)
    except OSError:
        if previous.exists():
            previous.rename(target)
        raise
    _fsync(target.parent)
    _remove(previous)


def _remove(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)
