"""Retrieval written down in plain numpy and float64, slow and obvious."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]


def corpus(count: int = 400, width: int = 48, queries: int = 23, seed: int = 7) -> tuple[Floats, Floats]:
    """Documents whose leading coordinates carry most, and queries near some of them."""
    random = np.random.default_rng(seed)
    scale = np.linspace(1.5, 0.3, width)
    documents = (random.normal(size=(count, width)) * scale).astype(np.float32)
    asked = documents[random.integers(count, size=queries)] + random.normal(size=(queries, width)) * scale
    return documents, asked.astype(np.float32)


def cut(x: Floats, dim: int, metric: str) -> Floats:
    x = x[:, :dim].astype(np.float64)
    return x if metric == "dot" else x / np.linalg.norm(x, axis=1, keepdims=True)


def stored(x: Floats, precision: str, ranges_of: Floats) -> Floats:
    """What faiss keeps of prefixes; 8 bits are even steps between the extremes, decoded to the middle of a step."""
    if precision == "float16":
        return x.astype(np.float16).astype(np.float64)
    if precision == "binary":
        return np.where(x > 0, 1.0, -1.0)
    if precision == "int8":
        low, high = ranges_of.min(axis=0), ranges_of.max(axis=0)
        codes = np.clip(np.floor(255 * ((x - low) / (high - low)).clip(0, 1)), 0, 255)
        return low + (codes + 0.5) / 255 * (high - low)
    return x


def first_stage(documents: Floats, queries: Floats, dim: int, metric: str, precision: str) -> Floats:
    """Score of every document by the prefix, higher is better: shape ``[m, n]``."""
    prefixes, asked = cut(documents, dim, metric), cut(queries, dim, metric)
    kept = stored(prefixes, precision, prefixes)
    return (np.sign(asked) if precision == "binary" else asked) @ kept.T


def retrieve(
    documents: Floats, queries: Floats, dims: list[int], shortlists: list[int], k: int, metric: str, precision: str
) -> tuple[NDArray[np.int64], Floats]:
    """Positions and scores of the cascade, ``[m, k]`` each."""
    first = first_stage(documents, queries, dims[0], metric, precision)
    ids, scores = [], []
    for i in range(len(queries)):
        candidates, values = np.arange(len(documents)), first[i]
        for dim, length in zip([*dims[1:], None], [*shortlists, k], strict=True):
            best = np.argsort(-values, kind="stable")[:length]
            candidates, values = candidates[best], values[best]
            if dim is not None:
                values = cut(documents[candidates], dim, metric) @ cut(queries[i : i + 1], dim, metric)[0]
        ids.append(candidates)
        scores.append(values)
    return np.array(ids), np.array(scores)
