"""A folder whose content is exchanged as a whole: each build fills a new subfolder, and one file names the newest.

A build that fails or is killed leaves that file, and so what was built before, as it was.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from matryoshka_st.errors import UserError
from matryoshka_st.files import check_parents, write_json

MANIFEST = "build.json"
_BUILD = re.compile(r"build-[0-9a-f]{16}")
_MANIFESTS = (MANIFEST, f".{MANIFEST}.partial")


class Build(NamedTuple):
    """A finished build or one in the making.

    Attributes:
        folder: The subfolder with its files.
        facts: What the manifest says of it, as JSON; to be filled while it is made.
    """

    folder: Path
    facts: dict[str, Any]


@contextmanager
def new_build(folder: Path, what: str, version: int) -> Iterator[Build]:
    """Make a subfolder to fill; at the end of the block it is flushed and becomes the build of the folder.

    Args:
        folder: New, empty, or with a build of the same kind in it, which is then removed.
        what: Kind of the build, which :func:`read_build` asks for.
        version: Of its layout.

    Raises:
        UserError: If the folder holds something else or cannot be written; what was there before stays usable.
    """
    check_folder(folder, what)
    build = Build(folder / f"build-{secrets.token_hex(8)}", {})
    try:
        build.folder.mkdir(parents=True)
        yield build
        _flush(build.folder)
        facts = {"format": what, "schema_version": version, "build": build.folder.name, **build.facts}
        write_json(folder / MANIFEST, facts)
    except BaseException as error:
        shutil.rmtree(build.folder, ignore_errors=True)
        if isinstance(error, OSError):
            raise UserError(
                f"{folder} cannot be written ({error.strerror or error}); what was built there before is unchanged."
            ) from error
        raise
    for path in folder.iterdir():
        if path != build.folder and _BUILD.fullmatch(path.name):
            shutil.rmtree(path, ignore_errors=True)


def read_build(folder: Path, what: str, version: int) -> Build:
    """The build that a folder holds.

    Raises:
        UserError: If there is none, it is of another kind or version, or its files are gone.
    """
    path = folder / MANIFEST
    facts = _manifest(folder, what)
    if facts.get("schema_version") != version:
        raise UserError(
            f"{path} has schema version {facts.get('schema_version')!r}, this release reads {version}; build it anew."
        )
    name = str(facts.get("build"))
    if not _BUILD.fullmatch(name) or not (folder / name).is_dir():
        raise UserError(f"{path} names the subfolder {name!r}, which is not there; build it anew.")
    return Build(folder / name, facts)


def check_folder(folder: Path, what: str) -> None:
    """Refuse to build over something else.

    Raises:
        UserError: If nothing can be written at the path, or it is a file, or a folder that holds other files or a
            build of another kind.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is not a folder; give a new or an empty one.")
    check_parents(folder / MANIFEST)
    if not folder.is_dir():
        return
    names = (path.name for path in folder.iterdir())
    others = sorted(name for name in names if name not in _MANIFESTS and not _BUILD.fullmatch(name))
    if others:
        raise UserError(f"{folder} holds other files ({others[0]}); give a new or an empty folder.")
    if (folder / MANIFEST).exists():
        _manifest(folder, what)


def is_built(path: Path) -> bool:
    """Whether a path looks like a file of a build."""
    return any(_BUILD.fullmatch(part) for part in path.parts)


def _manifest(folder: Path, what: str) -> dict[str, Any]:
    path = folder / MANIFEST
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"There is no {what} in {folder} (no {MANIFEST}); give the folder it was built in.") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as JSON; give another folder, or delete it and build anew.") from error
    if not isinstance(facts, dict) or facts.get("format") != what:
        raise UserError(f"{path} is of no {what}; give another folder.")
    return facts


def _flush(folder: Path) -> None:
    for path in (*folder.rglob("*"), folder):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
