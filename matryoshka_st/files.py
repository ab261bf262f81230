"""Files that are there whole or not at all."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any


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
