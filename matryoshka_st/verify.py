"""Check a saved model as a consumer would: load it with plain sentence-transformers and try every declared dim."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from huggingface_hub import metadata_load
from safetensors import SafetensorError, safe_open
from sentence_transformers import SentenceTransformer

from matryoshka_st.card import TAG, read_section
from matryoshka_st.errors import UserError
from matryoshka_st.export import DIMS_KEY, read_config
from matryoshka_st.models import embedding_width

SENTENCES = (
    "The first coordinates of a nested embedding are an embedding.",
    "Paris is the capital of France.",
    "def add(a, b): return a + b",
    "?",
)
NORM_TOLERANCE = 1e-4
PREFIX_TOLERANCE = 1e-5
_ROUTERS = "*/router_config.json"
PICKLE_SUFFIXES = frozenset({".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib"})


@dataclass(frozen=True)
class Check:
    """One thing that was looked at: what, whether it holds, and what was seen."""

    name: str
    ok: bool
    detail: str


@dataclass(frozen=True)
class VerifyReport:
    """Every check of one saved model."""

    folder: Path
    checks: tuple[Check, ...]

    @property
    def ok(self) -> bool:
        """Whether every check holds."""
        return all(check.ok for check in self.checks)


def verify_model(folder: str | Path) -> VerifyReport:
    """Check that every dim a saved model declares works, and that its folder is safe and complete.

    Nothing is downloaded, no pickle is read and no remote code runs; a folder that needs such is not loaded and fails.

    Args:
        folder: A saved model.

    Returns:
        The checks ``modules``, ``weight files``, ``finite weights``, ``truncate_dim``, ``card``, ``loads`` and, if it
        does, ``declared dims`` and one ``dim D`` for each.

    Raises:
        UserError: If there is no such folder, or it holds no sentence-transformers model.
    """
    path = Path(folder)
    config = _optional_config(path, "config.json")
    modules, weight_files = _check_modules(path), _check_weight_files(path)
    static = (
        modules,
        weight_files,
        _check_finite(path),
        _check_truncate_dim(_optional_config(path, "config_sentence_transformers.json")),
        _check_card(path, config.get(DIMS_KEY)),
    )
    if not (modules.ok and weight_files.ok):
        return VerifyReport(path, (*static, Check("loads", False, "not tried, since its files are not safe to load")))
    return VerifyReport(path, (*static, *_check_loaded(path, config)))


def _check_modules(folder: Path) -> Check:
    path = folder / "modules.json"
    try:
        types = [str(module["type"]) for module in json.loads(path.read_text(encoding="utf-8"))]
        inner: list[str] = []
        for path in sorted(folder.glob(_ROUTERS)):
            inner += map(str, json.loads(path.read_text(encoding="utf-8"))["types"].values())
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(
            f"{folder} is no sentence-transformers model ({path.relative_to(folder)}: {error}); "
            "give the folder of a saved model."
        ) from error
    if not types:
        raise UserError(
            f"{folder} is no sentence-transformers model (modules.json names no module); give another folder."
        )
    foreign = [name for name in (*types, *inner) if not name.startswith("sentence_transformers.")]
    problem = f"{foreign[0]} is no module of sentence-transformers" if foreign else None
    return _check("modules", problem, " > ".join(name.rpartition(".")[-1] for name in types))


def _check_weight_files(folder: Path) -> Check:
    pickles = sorted(path for path in folder.rglob("*") if path.suffix in PICKLE_SUFFIXES)
    weights = _safetensors(folder)
    problem = None if weights else "no safetensors file"
    if pickles:
        problem = f"{pickles[0].relative_to(folder)} may hold a pickle; only safetensors are safe to load"
    return _check("weight files", problem, f"{len(weights)} safetensors")


def _check_finite(folder: Path) -> Check:
    count = 0
    for path in _safetensors(folder):
        try:
            with safe_open(path, framework="pt") as tensors:
                for name in tensors.keys():  # noqa: SIM118 (not a mapping)
                    count += 1
                    if not tensors.get_tensor(name).isfinite().all():
                        return Check("finite weights", False, f"{name} in {path.relative_to(folder)} is not finite")
        except (OSError, SafetensorError) as error:
            return Check("finite weights", False, f"{path.relative_to(folder)} cannot be read: {error}")
    return Check("finite weights", True, f"{count} tensors")


def _check_truncate_dim(settings: dict[str, Any]) -> Check:
    saved = settings.get("truncate_dim")
    problem = f"config_sentence_transformers.json cuts every load to {saved}" if saved is not None else None
    return _check("truncate_dim", problem, "not set")


def _check_card(folder: Path, dims: Any) -> Check:
    path = folder / "README.md"
    if not path.is_file():
        return Check("card", False, "README.md is missing")
    try:
        metadata = metadata_load(path) or {}
    except (ValueError, yaml.YAMLError) as error:
        return Check("card", False, f"the front matter of README.md cannot be read: {error}")
    section = read_section(path.read_text(encoding="utf-8"))
    if section is None:
        return Check("card", False, "README.md has no section on dims")
    missing = [dim for dim in (dims if isinstance(dims, list) else ()) if f"\n| {dim} |" not in section]
    if missing:
        return Check("card", False, f"the section on dims of README.md does not list {missing[0]}")
    if "truncate_dim=" not in section:
        return Check("card", False, "the section on dims of README.md shows no truncate_dim")
    problem = None if TAG in (metadata.get("tags") or []) else f"README.md lacks the tag {TAG!r}"
    return _check("card", problem, "section on dims, snippet and tag")


def _check_loaded(folder: Path, config: dict[str, Any]) -> list[Check]:
    try:
        model = _load(folder)
    except Exception as error:
        reason = str(error).strip().partition("\n")[0]
        return [Check("loads", False, f"plain sentence-transformers cannot load it: {type(error).__name__}: {reason}")]
    model.truncate_dim = None
    width = embedding_width(model)
    full = _embed(model)
    checks = [
        Check("loads", True, f"plain sentence-transformers, width {width}"),
        _check("declared dims", _dims_problem(config, width), f"{config.get(DIMS_KEY)}"),
    ]
    if checks[-1].ok:
        checks += [_check_dim(folder, dim, full) for dim in config[DIMS_KEY]]
    return checks


def _dims_problem(config: dict[str, Any], width: int) -> str | None:
    dims = config.get(DIMS_KEY)
    if config.get("is_matryoshka") is not True or not dims:
        return f"config.json declares no {DIMS_KEY} with is_matryoshka"
    if not isinstance(dims, list) or any(type(dim) is not int or dim < 1 for dim in dims):
        return f"{DIMS_KEY} is {dims}, not a list of whole numbers of 1 or more"
    if sorted(set(dims)) != dims:
        return f"{DIMS_KEY} is {dims}, which is not ascending"
    if dims[-1] != width:
        return f"{DIMS_KEY} ends at {dims[-1]}, not at the full width {width}"
    if width != config.get("hidden_size") and config.get("embedding_size") != width:
        return f"the width {width} is not the hidden_size, and embedding_size does not tell it"
    return None


def _check_dim(folder: Path, dim: int, full: Mapping[str, np.ndarray]) -> Check:
    model = _load(folder, truncate_dim=dim)
    unit = _embed(model, normalize_embeddings=True)
    name = f"dim {dim}"
    for way, prefix in _embed(model).items():
        if prefix.shape != (len(SENTENCES), dim):
            return Check(name, False, f"truncate_dim={dim} gives {prefix.shape[-1]} values ({way})")
        apart = float(np.abs(prefix - full[way][:, :dim]).max())
        if not apart <= PREFIX_TOLERANCE:
            return Check(name, False, f"its vectors are not the prefix of the full ones (apart by {apart:.1e}, {way})")
        norms = np.linalg.norm(unit[way], axis=-1)
        if not np.abs(norms - 1).max() <= NORM_TOLERANCE:
            return Check(name, False, f"normalized vectors have norms {norms.min():.4f} to {norms.max():.4f} ({way})")
    return Check(name, True, "prefix of the full vectors, unit norm when normalized")


def _embed(model: SentenceTransformer, **kwargs: Any) -> dict[str, np.ndarray]:
    ways = (model.encode, model.encode_query, model.encode_document)
    return {way.__name__: way(list(SENTENCES), **kwargs) for way in ways}


def _load(folder: Path, truncate_dim: int | None = None) -> SentenceTransformer:
    model_kwargs = {"use_safetensors": True, "dtype": torch.float32}
    return SentenceTransformer(
        str(folder), truncate_dim=truncate_dim, local_files_only=True, model_kwargs=model_kwargs
    )


def _optional_config(folder: Path, name: str) -> dict[str, Any]:
    return read_config(folder, name) if (folder / name).exists() else {}


def _safetensors(folder: Path) -> Sequence[Path]:
    return sorted(folder.rglob("*.safetensors"))


def _check(name: str, problem: str | None, fine: str) -> Check:
    return Check(name, problem is None, problem or fine)
