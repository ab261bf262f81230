"""The first stage: faiss over the first prefix, in RAM, exact or a graph, in one of four precisions.

Positions are those of the vectors that are left, in the order they were added: a flat index closes its gaps when
vectors are removed; a graph cannot, so it keeps removed vectors as way points, leaves them out of what it finds, and
is built anew when they are more than a quarter.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from matryoshka_st.errors import OptionalDependencyError, UserError
from matryoshka_st.evaluation.precision import bytes_per_vector
from matryoshka_st.retrieval.settings import Settings
from matryoshka_st.retrieval.vectors import Vectors

Positions = NDArray[np.int64]

HNSW_LINKS = 32
HNSW_CONSTRUCTION = 80
_DEAD = 1 / 4


def require_faiss() -> Any:
    """The faiss module.

    Raises:
        OptionalDependencyError: If it is not installed.
    """
    try:
        import faiss
    except ImportError as error:
        raise OptionalDependencyError("faiss", "retrieval") from error
    return faiss


class Shortlist:
    """Finds candidates by the first prefix.

    Args:
        index: A faiss index of the kind that the settings name.
        settings: Of the cascade.
        alive: Graph only: the nodes that were not removed, ascending, one per position; default: all.
    """

    def __init__(self, index: Any, settings: Settings, alive: Positions | None = None) -> None:
        self.index = index
        self._settings = settings
        self._alive = alive

    @classmethod
    def of(cls, prefixes: Vectors, settings: Settings) -> Shortlist:
        """Index prefixes of ``settings.dims[0]`` coordinates; int8 takes its ranges from these."""
        index = _new_index(settings)
        if settings.precision in ("float16", "int8"):
            index.train(prefixes)
        shortlist = cls(index, settings)
        shortlist.add(prefixes)
        return shortlist

    def __len__(self) -> int:
        return int(self.index.ntotal) if self._alive is None else len(self._alive)

    @property
    def alive(self) -> Positions | None:
        """Node of each position of a graph from which vectors were removed; else nothing."""
        return self._alive

    @property
    def needs_rebuild(self) -> bool:
        """Whether so many nodes of a graph are removed that it should be built anew."""
        nodes = int(self.index.ntotal)
        return nodes - len(self) > _DEAD * nodes

    @property
    def ram_bytes(self) -> int:
        """Bytes of codes, links and positions."""
        stored = self.index.ntotal * bytes_per_vector(self._settings.dims[0], self._settings.precision)
        if self._settings.index == "hnsw":
            graph = self.index.hnsw
            stored += graph.neighbors.size() * 4 + graph.offsets.size() * 8 + graph.levels.size() * 4
        return int(stored) + (0 if self._alive is None else self._alive.nbytes)

    def add(self, prefixes: Vectors) -> None:
        """Append; they get the next positions."""
        if self._alive is not None:
            nodes = np.arange(self.index.ntotal, self.index.ntotal + len(prefixes))
            self._alive = np.concatenate([self._alive, nodes])
        self.index.add(self._encoded(prefixes))

    def keep(self, kept: NDArray[np.bool_]) -> None:
        """Remove all other positions."""
        if self._settings.index == "hnsw":
            alive = np.arange(len(self)) if self._alive is None else self._alive
            self._alive = alive[kept]
        else:
            self.index.remove_ids(np.flatnonzero(~kept))

    def search(self, prefixes: Vectors, length: int) -> Positions:
        """Positions of the candidates, best first; -1 behind them where a graph found fewer.

        Args:
            prefixes: Of the queries.
            length: Candidates wanted, 1 to as many as there are.
        """
        if self._alive is None:
            return self._nodes(prefixes, length)
        reach = min(int(self.index.ntotal), -(-length * int(self.index.ntotal) // len(self)))
        nodes = self._nodes(prefixes, reach)
        position = np.full(int(self.index.ntotal) + 1, -1, dtype=np.int64)  # the last is that of node -1
        position[self._alive] = np.arange(len(self._alive))
        found = position[nodes]
        order = np.argsort(found < 0, axis=1, kind="stable")[:, :length]
        return np.take_along_axis(found, order, axis=1)

    def search_counted(self, prefixes: Vectors, length: int) -> tuple[Positions, int]:
        """Search, and tell how many vectors a graph compared with a query on average (no other search may run)."""
        statistics = require_faiss().cvar.hnsw_stats
        statistics.reset()
        found = self.search(prefixes, length)
        return found, round(statistics.ndis / max(1, len(prefixes)))

    def write(self, path: Path) -> None:
        """Write the faiss index to a file."""
        faiss = require_faiss()
        write = faiss.write_index_binary if self._settings.precision == "binary" else faiss.write_index
        write(self.index, str(path))

    @classmethod
    def read(cls, path: Path, settings: Settings, alive: Positions | None = None) -> Shortlist:
        """Read what :meth:`write` wrote.

        Raises:
            UserError: If the file holds no such index.
        """
        faiss = require_faiss()
        read = faiss.read_index_binary if settings.precision == "binary" else faiss.read_index
        try:
            index = read(str(path))
        except RuntimeError as error:
            raise UserError(f"{path} holds no faiss index that can be read; build the index anew.") from error
        expected = _new_index(settings)
        if type(index) is not type(expected) or (index.d, index.metric_type) != (expected.d, expected.metric_type):
            raise UserError(f"{path} holds another index than the manifest names; build the index anew.")
        if settings.precision == "binary" and settings.index == "flat":
            index.use_heap = expected.use_heap
        return cls(index, settings, alive)

    def _nodes(self, prefixes: Vectors, length: int) -> Positions:
        if self._settings.index == "hnsw":
            self.index.hnsw.efSearch = length  # faiss stops by this, not by how many are wanted
        nodes: Positions = self.index.search(self._encoded(prefixes), length)[1]
        return nodes

    def _encoded(self, prefixes: Vectors) -> Any:
        return np.packbits(prefixes > 0, axis=1) if self._settings.precision == "binary" else prefixes


def _new_index(settings: Settings) -> Any:
    faiss = require_faiss()
    dim, product = settings.dims[0], faiss.METRIC_INNER_PRODUCT
    flat = settings.index == "flat"
    if settings.precision == "binary":
        bits = -(-dim // 8) * 8
        index = faiss.IndexBinaryFlat(bits) if flat else faiss.IndexBinaryHNSW(bits, HNSW_LINKS)
    elif settings.precision == "float32":
        index = faiss.IndexFlatIP(dim) if flat else faiss.IndexHNSWFlat(dim, HNSW_LINKS, product)
    else:
        kind = {"float16": faiss.ScalarQuantizer.QT_fp16, "int8": faiss.ScalarQuantizer.QT_8bit}[settings.precision]
        args = (dim, kind) if flat else (dim, kind, HNSW_LINKS)
        index = (faiss.IndexScalarQuantizer if flat else faiss.IndexHNSWSQ)(*args, product)
    if not flat:
        index.hnsw.efConstruction = HNSW_CONSTRUCTION
    elif settings.precision == "binary":
        index.use_heap = False  # counting is faster for hundreds of candidates
    return index
