"""An index on disk: a manifest, written last, that names the files of one save with their sizes and checksums.

Every save writes files under new names, then replaces the manifest, then removes the files of the save before. A save
that is killed at any moment leaves the manifest before it and the files which that one names.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import secrets
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from matryoshka_st.errors import UserError
from matryoshka_st.files import write_json
from matryoshka_st.models import sha256_of
from matryoshka_st.retrieval.ids import Ids
from matryoshka_st.retrieval.rerank import BLOCK, Rows
from matryoshka_st.retrieval.settings import Settings
from matryoshka_st.retrieval.shortlist import Positions, Shortlist
from matryoshka_st.retrieval.vectors import Vectors

MANIFEST = "manifest.json"
FORMAT = "matryoshka-st retrieval index"
SCHEMA_VERSION = 1
_OURS = re.compile(r"(ids|nodes|shortlist|vectors_\d+)-[0-9a-f]{16}\.(npy|faiss)|\.manifest\.json\.partial")


class Parts(NamedTuple):
    """What an index is put together from."""

    settings: Settings
    ids: Ids
    shortlist: Shortlist
    vectors: list[Vectors]


def write_index(
    folder: Path,
    kind: str,
    settings: Settings,
    ids: Ids,
    shortlist: Shortlist,
    stages: Sequence[Rows],
    rows: Positions | None,
) -> None:
    """Write an index; one that lies in the folder stays usable until this one is complete, and is then removed.

    Args:
        folder: New, empty, or with an index in it.
        kind: Name of the class of the retriever.
        settings: Of the index.
        ids: One per vector.
        shortlist: First stage.
        stages: The others.
        rows: Row in the stages of each vector; default: its position.

    Raises:
        UserError: If the folder holds something else or cannot be written.
    """
    check_folder(folder)
    token = secrets.token_hex(8)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        written = {"ids": _write(folder / f"ids-{token}.npy", _array_blocks(ids))}
        if shortlist.alive is not None:
            written["nodes"] = _write(folder / f"nodes-{token}.npy", _array_blocks(shortlist.alive))
        for stage, dim in zip(stages, settings.dims[1:], strict=True):
            name = f"vectors_{dim}"
            written[name] = _write(folder / f"{name}-{token}.npy", _row_blocks(stage, rows))
        written["shortlist"] = _write_shortlist(folder / f"shortlist-{token}.faiss", shortlist)
        manifest = {
            "format": FORMAT,
            "schema_version": SCHEMA_VERSION,
            "retriever": kind,
            "count": len(ids),
            "settings": settings.as_dict(),
            "files": written,
        }
        write_json(folder / MANIFEST, manifest)
    except (OSError, RuntimeError) as error:  # faiss raises RuntimeError when a disk is full
        for path in folder.glob(f"*-{token}.*"):
            path.unlink(missing_ok=True)
        reason = (str(error).strip() or type(error).__name__).splitlines()[-1]
        raise UserError(
            f"The index could not be saved in {folder} ({reason}); an index that was there before is unchanged."
        ) from error
    _remove_others(folder, {str(entry["name"]) for entry in written.values()})


def read_index(folder: Path, kind: str, *, verify: bool) -> Parts:
    """Read an index; vectors are memory-mapped.

    Args:
        folder: Where it lies.
        kind: Name of the class of the retriever that is wanted.
        verify: Compare checksums too, not only sizes.

    Raises:
        UserError: If it is not there, is of another kind or version, or a file is not whole.
    """
    manifest = read_manifest(folder)
    if manifest["retriever"] != kind:
        raise UserError(f"{folder} holds an index of {manifest['retriever']}, not of {kind}; load it with that class.")
    try:
        settings, count = Settings.from_dict(manifest["settings"]), int(manifest["count"])
        paths = {name: _checked(folder, entry, verify) for name, entry in manifest["files"].items()}
        ids, vectors = paths["ids"], [paths[f"vectors_{dim}"] for dim in settings.dims[1:]]
        alive = _array(paths["nodes"]) if "nodes" in paths else None
        shortlist = Shortlist.read(paths["shortlist"], settings, alive)
        parts = Parts(settings, _array(ids), shortlist, [_array(path, mapped=True) for path in vectors])
    except UserError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{folder / MANIFEST} is not complete ({error}); build the index anew.") from error
    shapes = [(count, dim) for dim in settings.dims[1:]]
    if (
        len(parts.ids) != count
        or len(shortlist) != count
        or [rows.shape for rows in parts.vectors] != shapes
        or any(rows.dtype != np.float32 for rows in parts.vectors)
    ):
        raise UserError(f"The files in {folder} do not fit the {count} vectors of its manifest; build the index anew.")
    return parts


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of an index.

    Raises:
        UserError: If there is none, it cannot be read, or it is of another format or version.
    """
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"There is no index in {folder} (no {MANIFEST}); give the folder that save wrote.") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as JSON; build the index anew.") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise UserError(f"{path} is not the manifest of a {FORMAT}; give the folder that save wrote.")
    if manifest.get("schema_version") != SCHEMA_VERSION or "retriever" not in manifest:
        raise UserError(
            f"{path} has schema version {manifest.get('schema_version')!r}, this release reads {SCHEMA_VERSION}; "
            "build the index anew or install the release that wrote it."
        )
    return manifest


def check_folder(folder: Path) -> None:
    """Refuse to write an index over something that is not one.

    Raises:
        UserError: If the path is a file, or a folder that holds anything but an index.
    """
    if folder.is_dir():
        if any(_OURS.fullmatch(path.name) is None for path in folder.iterdir() if path.name != MANIFEST):
            raise UserError(f"{folder} holds other files than those of an index; give a new or an empty folder.")
        if (folder / MANIFEST).exists():
            read_manifest(folder)
    elif folder.exists():
        raise UserError(f"{folder} is not a folder; give a new or an empty folder.")


def _write(path: Path, blocks: Iterator[bytes]) -> dict[str, Any]:
    size, digest = 0, hashlib.sha256()
    with path.open("wb") as file:
        for block in blocks:
            size += file.write(block)
            digest.update(block)
        file.flush()
        os.fsync(file.fileno())
    return {"name": path.name, "bytes": size, "sha256": digest.hexdigest()}


def _write_shortlist(path: Path, shortlist: Shortlist) -> dict[str, Any]:
    shortlist.write(path)
    with path.open("rb") as file:
        os.fsync(file.fileno())
    return {"name": path.name, "bytes": path.stat().st_size, "sha256": sha256_of(path)}


def _array_blocks(array: np.ndarray[Any, Any]) -> Iterator[bytes]:
    yield _npy_header(array.dtype, array.shape)
    yield array.tobytes()


def _row_blocks(stage: Rows, rows: Positions | None) -> Iterator[bytes]:
    wanted = np.arange(len(stage)) if rows is None else rows
    yield _npy_header(stage.base.dtype, (len(wanted), stage.base.shape[1]))
    for start in range(0, len(wanted), BLOCK):
        yield stage.take(wanted[start : start + BLOCK]).tobytes()


def _npy_header(dtype: np.dtype[Any], shape: tuple[int, ...]) -> bytes:
    header = io.BytesIO()
    described = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(header, described)
    return header.getvalue()


def _checked(folder: Path, entry: dict[str, Any], verify: bool) -> Path:
    path, size = folder / str(entry["name"]), entry["bytes"]
    if path.parent != folder or _OURS.fullmatch(path.name) is None:
        raise UserError(f"{folder / MANIFEST} names the file {entry['name']!r}, which no index has; build it anew.")
    if not path.is_file():
        raise UserError(f"{path} is missing; build the index anew.")
    found = path.stat().st_size
    if found != size:
        raise UserError(f"{path} has {found} bytes instead of {size}; build the index anew.")
    if verify and sha256_of(path) != entry["sha256"]:
        raise UserError(f"{path} was changed since it was saved (its SHA-256 differs); build the index anew.")
    return path


def _array(path: Path, *, mapped: bool = False) -> Any:
    try:
        return np.load(path, mmap_mode="r" if mapped else None, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} holds no array that can be read; build the index anew.") from error


def _remove_others(folder: Path, kept: set[str]) -> None:
    for path in folder.iterdir():
        if path.name not in kept and _OURS.fullmatch(path.name):
            path.unlink(missing_ok=True)
