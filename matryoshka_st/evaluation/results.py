"""Results on disk: mteb's own layout and JSON, written whole or not at all.

Beside ``<Task>.json`` lies ``matryoshka/<Task>.json`` with what mteb's format has no place for: how the vectors were
cut and stored, with which library versions, and the scores per query. mteb does not read that folder. A result counts
once both files are whole; the result itself is written last. mteb writes in place, so it writes to a scratch folder
here, and the files are moved.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from mteb.cache import ResultCache
from mteb.results import TaskResult

from matryoshka_st.errors import UserError

if TYPE_CHECKING:
    from mteb.abstasks.abstask import AbsTask
    from mteb.models.model_meta import ModelMeta

logger = logging.getLogger(__name__)

SCHEMA_VERSION = 2
NOTES_FOLDER = "matryoshka"
_LIBRARIES = ("matryoshka-st", "mteb", "sentence-transformers", "torch", "transformers")

PerQuery = dict[str, dict[str, dict[str, float]]]
"""Split -> subset -> query id -> nDCG@10."""

T = TypeVar("T")


class WriteError(UserError):
    """A result could not be written; those written before are whole."""


@dataclass(frozen=True)
class StoredResult:
    """mteb's result of one view on one task, with the scores per query of retrieval tasks."""

    result: TaskResult
    per_query: PerQuery

    def covers(self, task: AbsTask) -> bool:
        """Whether every split and subset that the task wants has been scored."""
        return not self.result.get_missing_evaluations(task)

    def extended(self, newer: StoredResult) -> StoredResult:
        """These scores and newer ones of the same data; the newer win."""
        per_query = {split: dict(subsets) for split, subsets in self.per_query.items()}
        for split, subsets in newer.per_query.items():
            per_query.setdefault(split, {}).update(subsets)
        return StoredResult(self.result.merge(newer.result), per_query)


class ResultStore:
    """Results below ``<folder>/results/<name>/<revision>/[experiments/embed_dim_<dim>/]``.

    Args:
        folder: Made if missing; the ``cache_path`` of mteb's ``ResultCache``.

    Raises:
        UserError: If the folder is a file.
    """

    def __init__(self, folder: Path) -> None:
        if folder.exists() and not folder.is_dir():
            raise UserError(f"The output {str(folder)!r} is a file; give a folder.")
        self._cache = ResultCache(folder)

    def load(self, meta: ModelMeta, task: AbsTask) -> StoredResult | None:
        """The result of exactly this model, revision, dim and dataset revision, if it is there and whole.

        A file that cannot be read is renamed to ``*.corrupt`` and counts as missing.
        """
        path = self._path(meta, task.metadata.name)
        per_query = _read_whole(_notes_path(path), _read_per_query)
        result = _read_whole(path, lambda file: TaskResult.from_disk(file, load_historic_data=False))
        if result is None or per_query is None or result.dataset_revision != task.metadata.revision:
            return None
        return StoredResult(result, per_query)

    def save(
        self, meta: ModelMeta, stored: StoredResult, *, cut: Mapping[str, Any], encode_kwargs: Mapping[str, Any]
    ) -> None:
        """Write a result, the result file itself last.

        Args:
            meta: Files it.
            stored: What was scored.
            cut: How the vectors were cut and stored, for the record.
            encode_kwargs: What mteb notes of the encoding.

        Raises:
            WriteError: If the disk is full or the folder cannot be written to.
        """
        try:
            self._write(meta, stored, cut, encode_kwargs)
        except OSError as error:
            raise WriteError(
                f"The result of {stored.result.task_name!r} could not be written below "
                f"{str(self._cache.cache_path)!r} ({error.strerror}); make room there and run the same command again, "
                "which keeps all results written so far."
            ) from error

    def _write(
        self, meta: ModelMeta, stored: StoredResult, cut: Mapping[str, Any], encode_kwargs: Mapping[str, Any]
    ) -> None:
        final = self._path(meta, stored.result.task_name)
        final.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".writing-", dir=self._cache.cache_path) as scratch:
            staging = ResultCache(scratch)
            staged = staging.get_task_result_path(stored.result.task_name, meta)
            _notes_path(staged).parent.mkdir(parents=True)
            settings = final.with_name("run_settings.jsonl")
            if settings.exists():  # mteb merges the new entry into the old ones
                shutil.copyfile(settings, staged.with_name(settings.name))
            staging.save_to_cache(stored.result, meta, encode_kwargs=encode_kwargs)
            _notes_path(staged).write_text(json.dumps(_notes(stored, cut), indent=2), encoding="utf-8")
            _move(staged.with_name("model_meta.json"), final.with_name("model_meta.json"))
            _move(staged.with_name(settings.name), settings)
            _move(_notes_path(staged), _notes_path(final))
            _move(staged, final)

    def _path(self, meta: ModelMeta, task_name: str) -> Path:
        return self._cache.get_task_result_path(task_name, meta)


def _notes(stored: StoredResult, cut: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "schema_version": SCHEMA_VERSION,
        **cut,
        "versions": {name: version(name) for name in _LIBRARIES},
        "per_query_ndcg_at_10": stored.per_query,
    }


def _notes_path(result_path: Path) -> Path:
    return result_path.parent / NOTES_FOLDER / result_path.name


def _read_per_query(path: Path) -> PerQuery:
    notes = json.loads(path.read_text(encoding="utf-8"))
    if notes["schema_version"] != SCHEMA_VERSION:
        raise ValueError(f"schema_version is {notes['schema_version']}, not {SCHEMA_VERSION}")
    per_query: PerQuery = notes["per_query_ndcg_at_10"]
    return per_query


def _read_whole(path: Path, read: Callable[[Path], T]) -> T | None:
    if not path.exists():
        return None
    try:
        return read(path)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        aside = path.with_name(path.name + ".corrupt")
        path.replace(aside)
        reason = str(error).splitlines()[0]
        logger.warning("%s is not a whole result (%s); set aside as %s, its task runs again", path, reason, aside.name)
        return None


def _move(source: Path, target: Path) -> None:
    """Make the bytes durable, then put the file in place in one step."""
    with source.open("rb") as file:
        os.fsync(file.fileno())
    target.parent.mkdir(parents=True, exist_ok=True)
    source.replace(target)
