"""Read back what evaluations wrote: one entry per (model, cut, task), whichever folder it lies in."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

from matryoshka_st.errors import UserError
from matryoshka_st.evaluation.prefix_view import OWN_RANGES
from matryoshka_st.evaluation.results import NOTES_FOLDER


@dataclass(frozen=True)
class Run:
    """One view of one model on one task.

    Attributes:
        model: ``organisation/name``.
        revision: A hash of the weights and prompts.
        dim: Length of the prefix.
        width: The model's full width.
        precision: ``float32``, ``float16``, ``int8`` or ``binary``.
        variant: What differs from the plain cut, joined by colons: what was done before it (``pca``, ``layer_norm``,
            ...), ``not normalized``, the texts that int8 has its ranges from where they are not the task's own.
        task: Name of the task.
        task_type: mteb's type of the task.
        metric: The task's main score.
        score: Main score, 0 to 1: the mean over the subsets of ``test``, or of all splits where there is none.
        bytes_per_vector: Of one stored vector.
        parts: What the score is the mean of, as ``split/subset``.
        per_query: nDCG@10 by ``split/subset/query id`` of a retrieval or reranking task; else empty.
    """

    model: str
    revision: str
    dim: int
    width: int
    precision: str
    variant: str
    task: str
    task_type: str
    metric: str
    score: float
    bytes_per_vector: int
    parts: tuple[str, ...] = ()
    per_query: Mapping[str, float] = field(default_factory=dict, repr=False)


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """All results below some folders, in the order of their paths.

    Args:
        folders: Given to ``matryoshka-st eval --output``, or any folder above or below.

    Raises:
        UserError: If a folder does not exist, holds no result, or a result in it is not whole.
    """
    runs = []
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"The results folder {str(folder)!r} does not exist; give what eval --output wrote.")
        notes = sorted(path for path in folder.rglob("*.json") if _is_notes(path.relative_to(folder)))
        found = [_read(path) for path in notes if (path.parent.parent / path.name).exists()]
        if not found:
            raise UserError(f"The folder {str(folder)!r} holds no result; give what eval --output wrote.")
        runs += found
    return runs


def _is_notes(path: Path) -> bool:
    """Whether a file is one of ours, and not what a killed run left half-way."""
    return path.parent.name == NOTES_FOLDER and not any(part.startswith(".") for part in path.parts)


def _read(notes_path: Path) -> Run:
    folder = notes_path.parent.parent
    try:
        notes, result, meta = (
            json.loads(path.read_text(encoding="utf-8"))
            for path in (notes_path, folder / notes_path.name, folder / "model_meta.json")
        )
        scores = _main_scores(result["scores"])
        return Run(
            model=meta["name"],
            revision=meta["revision"],
            dim=notes["embed_dim"],
            width=notes["width"],
            precision=notes["precision"],
            variant=_variant(notes),
            task=result["task_name"],
            task_type=notes["task_type"],
            metric=notes["metric"],
            score=fmean(scores.values()),
            bytes_per_vector=notes["bytes_per_vector"],
            parts=tuple(sorted(scores)),
            per_query={
                f"{split}/{subset}/{query}": value
                for split, subsets in notes["per_query_ndcg_at_10"].items()
                for subset, queries in subsets.items()
                for query, value in queries.items()
            },
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"The result {str(folder / notes_path.name)!r} is not whole ({type(error).__name__}: {error}); "
            "run the same eval command again, which sets it aside and redoes it."
        ) from error


def _variant(notes: Mapping[str, Any]) -> str:
    unscaled = None if notes["normalized_after_cut"] else "not normalized"
    calibration = notes["calibration"] if notes["precision"] == "int8" else None
    own = calibration is not None and calibration.startswith(OWN_RANGES)
    return ":".join(part for part in (notes["before_cut"], unscaled, None if own else calibration) if part)


def _main_scores(scores: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, float]:
    splits = ["test"] if "test" in scores else list(scores)
    return {f"{split}/{entry['hf_subset']}": entry["main_score"] for split in splits for entry in scores[split]}
