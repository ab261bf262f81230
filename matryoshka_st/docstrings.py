"""Real training text that every machine with this package has: the docstrings of the installed Python packages.

A docstring's first sentence summarises the prose after it, as a title does an abstract, so the two make a pair. Files
are parsed, never imported. Modules are split into train, dev and test by hash, and no text occurs in two splits.
"""

from __future__ import annotations

import ast
import gc
import hashlib
import logging
import os
import sysconfig
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from matryoshka_st.data.prose import split_docstring
from matryoshka_st.data.splits import normalize_text
from matryoshka_st.errors import UserError

if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.getLogger(__name__)

SPLITS = ("train", "dev", "test")
SHARES = {"test": 25, "dev": 5}
MOST_FILES = 3_200
MOST_FILE_BYTES = 1_000_000
# Tests, copies of other packages, and families of near-identical files (model code, benchmark tasks).
SKIPPED_FOLDERS = {
    "__pycache__", "_vendor", "_vendored", "idlelib", "lib2to3", "models", "site-packages", "tasks", "test", "testing",
    "tests", "vendor",
}  # fmt: skip
OPENING_WORDS = 12


class DocPair(NamedTuple):
    """A summary sentence, the prose that follows it, and the dotted name of the module that holds both."""

    summary: str
    body: str
    module: str


class _Module(NamedTuple):
    name: str
    path: Path
    digest: int


def harvest_docstrings(
    packages: Sequence[str] | None = None,
    *,
    limit: int | None = None,
    seed: int = 13,
    roots: Sequence[Path] | None = None,
) -> dict[str, list[DocPair]]:
    """Collect pairs from the installed packages and the standard library, split by module.

    The order depends on the names of the modules and the seed alone. Up to 3,200 files are read, drawn by the seed.

    Args:
        packages: Top-level packages to read; default: all.
        limit: Pairs to keep per split, the first ones; default: all.
        seed: Decides which modules are read and which split they fall into.
        roots: Folders that hold packages; default: those of the running Python.

    Returns:
        The pairs of ``train`` (about 70%), ``dev`` (5%) and ``test`` (25%).
    """
    found: dict[str, list[DocPair]] = {split: [] for split in SPLITS}
    with _collector_paused():
        for module in _modules(_installed_roots() if roots is None else roots, packages, seed)[:MOST_FILES]:
            found[_split_of(module.digest)].extend(_pairs_in(module))
    unique = _without_repeats(found)
    return {split: pairs[:limit] for split, pairs in unique.items()}


def load_docstrings(split: str, *, seed: int = 13, limit: int | None = None) -> Dataset:
    """The pairs of one split as a dataset: ``anchor`` is the summary, ``positive`` the prose.

    Args:
        split: ``train``, ``dev`` or ``test``.
        seed: As in :func:`harvest_docstrings`; use one seed for all splits.
        limit: Rows to keep, the first ones; default: all.

    Raises:
        UserError: If there is no such split.
    """
    from datasets import Dataset

    if split not in SPLITS:
        raise UserError(f"The docstrings have no split {split!r}; use one of {', '.join(SPLITS)}.")
    pairs = _harvest_once(seed)[split][:limit]
    return Dataset.from_dict({"anchor": [pair.summary for pair in pairs], "positive": [pair.body for pair in pairs]})


@cache
def _harvest_once(seed: int) -> dict[str, list[DocPair]]:
    return harvest_docstrings(seed=seed)


@contextmanager
def _collector_paused() -> Iterator[None]:
    """Syntax trees hold no cycles, and looking for some in millions of nodes takes half of the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _installed_roots() -> list[Path]:
    paths = sysconfig.get_paths()
    return [Path(path) for path in dict.fromkeys(paths[key] for key in ("stdlib", "purelib", "platlib"))]


def _modules(roots: Sequence[Path], packages: Sequence[str] | None, seed: int) -> list[_Module]:
    modules: dict[str, _Module] = {}
    for root in roots:
        for path in _python_files(root):
            parts = path.relative_to(root).with_suffix("").parts
            if packages is None or parts[0] in packages:
                name = ".".join(parts).removesuffix(".__init__")
                digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
                modules.setdefault(name, _Module(name, path, int.from_bytes(digest[:8])))
    return sorted(modules.values(), key=lambda module: (module.digest, module.name))


def _python_files(root: Path) -> Iterator[Path]:
    for folder, subfolders, files in os.walk(root):
        subfolders[:] = [name for name in subfolders if name not in SKIPPED_FOLDERS]
        for name in files:
            if name.endswith(".py") and not name.startswith("test_"):
                yield Path(folder, name)


def _split_of(digest: int) -> str:
    place = digest % 100
    if place < SHARES["test"]:
        return "test"
    return "dev" if place < SHARES["test"] + SHARES["dev"] else "train"


def _pairs_in(module: _Module) -> list[DocPair]:
    tree = _parse(module.path)
    split = (split_docstring(text) for text in _docstrings(tree)) if tree else ()
    return [DocPair(*pair, module.name) for pair in split if pair]


def _parse(path: Path) -> ast.Module | None:
    try:
        source = path.read_bytes()
    except OSError as error:
        logger.debug("%s was skipped: %s", path, error)
        return None
    if len(source) > MOST_FILE_BYTES or b'"""' not in source:
        return None
    return parse_source(source, str(path))


def parse_source(source: bytes, name: str) -> ast.Module | None:
    """The syntax tree of a Python file, without its warnings; ``None``, with a word in the log, if it has none."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return ast.parse(source)
    except (SyntaxError, ValueError, RecursionError) as error:
        logger.debug("%s was skipped: %s", name, error)
        return None


def _docstrings(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        text = ast.get_docstring(node)
        if text:
            yield text
    for child in getattr(node, "body", ()):
        if hasattr(child, "body"):
            yield from _docstrings(child)


def _without_repeats(found: dict[str, list[DocPair]]) -> dict[str, list[DocPair]]:
    seen: set[str] = set()
    unique: dict[str, list[DocPair]] = {split: [] for split in SPLITS}
    for split in reversed(SPLITS):
        for pair in found[split]:
            keys = _keys(pair)
            if seen.isdisjoint(keys):
                unique[split].append(pair)
                seen.update(keys)
    return unique


def _keys(pair: DocPair) -> set[str]:
    summary, body = normalize_text(pair.summary), normalize_text(pair.body)
    return {summary, body, " ".join(body.split()[:OPENING_WORDS])}
