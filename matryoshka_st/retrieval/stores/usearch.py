"""usearch: its graph, or its exact scan, over the first prefix; whole vectors beside it, memory-mapped.

usearch holds one vector per key and has no second stage, so candidates are reranked in numpy.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike

from matryoshka_st.errors import OptionalDependencyError, UserError
from matryoshka_st.retrieval.builds import new_build, read_build
from matryoshka_st.retrieval.ids import GivenIds, Ids
from matryoshka_st.retrieval.rerank import Scores
from matryoshka_st.retrieval.settings import Settings
from matryoshka_st.retrieval.stores.base import DEFAULT_SHORTLISTS, Store, check_build, rank_rows, vector_name, written
from matryoshka_st.retrieval.vectors import Vectors

FORMAT = "usearch store"
SCHEMA_VERSION = 1
INDEX, VECTORS, IDS = "prefixes.usearch", "vectors.npy", "ids.npy"


class UsearchStore(Store):
    """A folder with a usearch index.

    Args:
        settings: Of the cascade.
        index: A ``usearch.index.Index`` over the first prefix, its keys the rows of ``vectors``.
        vectors: Unit vectors, shape ``[n, width]``.
        ids: One per vector.
        exact: Scan all prefixes instead of walking the graph.
    """

    def __init__(self, settings: Settings, index: Any, vectors: Vectors, ids: Ids, *, exact: bool = False) -> None:
        super().__init__(settings)
        self.index = index
        self.exact = exact
        self._vectors = vectors
        self._ids = ids

    @classmethod
    def build(
        cls,
        folder: Path | str,
        vectors: ArrayLike,
        ids: GivenIds | None = None,
        *,
        dims: Sequence[int],
        shortlists: Sequence[int] = DEFAULT_SHORTLISTS,
        exact: bool = False,
    ) -> Self:
        """Write vectors to a folder; a store that lies there is replaced once the new one is complete.

        Args:
            folder: New, empty, or with such a store in it.
            vectors: Shape ``[n, width]``, n of 1 or more.
            ids: One per vector, all different, whole numbers or texts; default: 0 to n - 1.
            dims: Ascending, the last one the width.
            shortlists: How many candidates each dim but the last keeps.
            exact: Scan all prefixes instead of walking the graph.

        Raises:
            OptionalDependencyError: If usearch is not installed.
            UserError: If the folder, vectors, ids or dims will not do.
        """
        usearch = _require()
        rows = check_build(vectors, ids, dims, shortlists)
        settings, start = rows.settings, 0
        with new_build(Path(folder), FORMAT, SCHEMA_VERSION) as build:
            index = usearch.Index(ndim=settings.dims[0], metric="ip", dtype="f32")
            shape = rows.vectors.shape
            stored = np.lib.format.open_memmap(build.folder / VECTORS, mode="w+", dtype=np.float32, shape=shape)
            for part, named in written(rows, (settings.dims[0], settings.width)):
                stop = start + len(part)
                index.add(np.arange(start, stop, dtype=np.uint64), named[vector_name(settings.dims[0])])
                stored[start:stop] = named[vector_name(settings.width)]
                start = stop
            stored.flush()
            np.save(build.folder / IDS, rows.ids, allow_pickle=False)
            index.save(build.folder / INDEX)
            build.facts.update(dims=list(settings.dims), count=len(rows.ids))
        return cls.load(folder, shortlists=shortlists, exact=exact)

    @classmethod
    def load(cls, folder: Path | str, *, shortlists: Sequence[int] = DEFAULT_SHORTLISTS, exact: bool = False) -> Self:
        """Open a store that :meth:`build` wrote; its vectors stay on disk, memory-mapped.

        Raises:
            OptionalDependencyError: If usearch is not installed.
            UserError: If there is no such store, or one of its files is not whole.
        """
        usearch = _require()
        build = read_build(Path(folder), FORMAT, SCHEMA_VERSION)
        try:
            dims, count = build.facts["dims"], build.facts["count"]
            vectors = np.load(build.folder / VECTORS, mmap_mode="r", allow_pickle=False)
            ids = np.load(build.folder / IDS, allow_pickle=False)
            index = usearch.Index.restore(build.folder / INDEX)
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            raise UserError(f"A file in {build.folder} is not whole ({error}); build the store anew.") from error
        settings = Settings.of(dims[-1], dims, shortlists)
        if index is None or (len(ids), vectors.shape, len(index)) != (count, (count, settings.width), count):
            raise UserError(f"The files in {build.folder} do not fit its {count} vectors; build the store anew.")
        return cls(settings, index, vectors, ids, exact=exact)

    def __len__(self) -> int:
        return len(self._ids)

    def _search(self, prefixes: Sequence[Vectors], keep: Sequence[int]) -> Iterator[tuple[Ids, Scores]]:
        for query in zip(*prefixes, strict=True):
            keys = self._candidates(query[0], keep[0])
            order, scores = rank_rows(query[1:], self._vectors[keys], keep[1:])
            yield self._ids[keys[order]], scores

    def _candidates(self, query: Vectors, count: int) -> Any:
        keys = self.index.search(query, count, exact=self.exact).keys
        if len(keys) < count:  # a graph may miss some
            keys = self.index.search(query, count, exact=True).keys
        return keys.astype(np.int64)


def _require() -> Any:
    try:
        import usearch.index as module
    except ImportError as error:
        raise OptionalDependencyError("usearch", "stores") from error
    return module
