"""What both retrievers do: search, add, delete, save and load a cascade of shortlists.

The first prefix lies in RAM, in faiss. The wider ones are float32 rows that a loaded index maps from its folder, so
they cost page cache, not RAM; of them only the candidates are read.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import ArrayLike

from matryoshka_st.errors import UserError
from matryoshka_st.retrieval import folder as files
from matryoshka_st.retrieval.costs import Operations, count_operations
from matryoshka_st.retrieval.ids import GivenIds, Ids, check_ids, new_ids, rows_of
from matryoshka_st.retrieval.rerank import Rows, Scores
from matryoshka_st.retrieval.settings import Settings
from matryoshka_st.retrieval.shortlist import Positions, Shortlist
from matryoshka_st.retrieval.vectors import Vectors, check_vectors, prefix

_CANDIDATES = 2**21  # of all queries searched at a time: 16 MB of positions


class Hits(NamedTuple):
    """What a search found.

    Attributes:
        ids: Shape ``[m, k]``, best first.
        scores: Cosines or dot products at the last dim, float32, shape ``[m, k]``.
    """

    ids: Ids
    scores: Scores


class Cascade:
    """An index searched with few dims first and with more dims the fewer candidates are left.

    Use :class:`AdaptiveRetriever` or :class:`FunnelRetriever`; the constructor takes parts that fit together.

    When a shortlist is as long as the index, its stage is skipped. When all are, the search is exact: ids, order and
    scores are those of ``faiss.IndexFlatIP`` over the same vectors. (faiss sums in another order for 20 queries or
    more than for fewer, so vectors whose scores differ in the last digit may change places between the two.)
    Otherwise equal scores come in the order of the shortlist, and which of several equal ones is the last to be kept
    is not defined.
    """

    def __init__(
        self,
        settings: Settings,
        ids: Ids,
        shortlist: Shortlist,
        stages: Sequence[Rows],
        rows: Positions | None = None,
    ) -> None:
        self.settings = settings
        self._ids = ids
        self._shortlist = shortlist
        self._stages = tuple(stages)
        self._rows = rows

    @classmethod
    def _of(cls, vectors: Vectors, ids: GivenIds | None, settings: Settings) -> Self:
        if not len(vectors):
            raise UserError("There are no vectors to index; give at least one.")
        checked = check_ids(ids, len(vectors))
        shortlist = Shortlist.of(prefix(vectors, settings.dims[0], settings.metric), settings)
        stages = [Rows(prefix(vectors, dim, settings.metric)) for dim in settings.dims[1:]]
        return cls(settings, checked, shortlist, stages)

    @classmethod
    def load(cls, folder: Path | str, *, verify: bool = True) -> Self:
        """Load an index that :meth:`save` wrote; vectors but the first prefix stay on disk, memory-mapped.

        Args:
            folder: Where it lies.
            verify: Compare the files with their checksums, which reads them once; sizes are compared anyway.

        Raises:
            OptionalDependencyError: If faiss is not installed.
            UserError: If there is no index, it is of another kind or version, or one of its files is not whole.
        """
        found = files.read_index(Path(folder), cls.__name__, verify=verify)
        return cls(found.settings, found.ids, found.shortlist, [Rows(vectors) for vectors in found.vectors])

    def save(self, folder: Path | str) -> None:
        """Write the index; an index that lies there is replaced once the new one is complete.

        One process may write at a time.

        Raises:
            UserError: If the folder holds something else, or cannot be written; what was there stays usable.
        """
        files.write_index(
            Path(folder), type(self).__name__, self.settings, self._ids, self._shortlist, self._stages, self._rows
        )

    def __len__(self) -> int:
        return len(self._ids)

    @property
    def ids(self) -> Ids:
        """The ids, in the order of the vectors."""
        return self._ids.copy()

    @property
    def ram_bytes(self) -> int:
        """Bytes held in RAM: first prefix, links, ids, and vectors that are not memory-mapped."""
        rows = 0 if self._rows is None else self._rows.nbytes
        return self._shortlist.ram_bytes + self._ids.nbytes + rows + sum(stage.ram_bytes for stage in self._stages)

    @property
    def ram_bytes_per_million(self) -> float:
        """Bytes held in RAM per million vectors."""
        return self.ram_bytes / max(1, len(self)) * 1e6

    def operations(self, *, visited: int | None = None) -> Operations:
        """Operations of one query in theory.

        Args:
            visited: Vectors that the first stage compares with the query, as ``tune`` measures them for a graph;
                a flat one compares all.

        Raises:
            UserError: If the shortlist is a graph and ``visited`` is not given.
        """
        shown = self.settings
        if shown.index == "hnsw" and visited is None:
            raise UserError("What a graph costs depends on how far it walks; pass visited, or see what tune measures.")
        return count_operations(len(self), shown.dims, shown.shortlists, shown.precision, visited=visited)

    def add(self, vectors: ArrayLike, ids: GivenIds | None = None) -> None:
        """Append vectors; until the index is saved and loaded they lie in RAM at full width.

        Args:
            vectors: Shape ``[n, width]``.
            ids: One per vector, none of them in the index; default: from the largest number in the index on.

        Raises:
            UserError: If vectors or ids will not do; the index is then as it was.
        """
        rows = check_vectors(vectors, "document", self.settings.width)
        checked = new_ids(ids, len(rows), self._ids)
        start = len(self._stages[0])
        self._shortlist.add(prefix(rows, self.settings.dims[0], self.settings.metric))
        for stage, dim in zip(self._stages, self.settings.dims[1:], strict=True):
            stage.append(prefix(rows, dim, self.settings.metric))
        if self._rows is not None:
            self._rows = np.concatenate([self._rows, np.arange(start, start + len(rows))])
        self._ids = np.concatenate([self._ids, checked])

    def delete(self, ids: GivenIds) -> None:
        """Remove vectors.

        Args:
            ids: All of them in the index.

        Raises:
            UserError: If one is not in the index; the index is then as it was.
        """
        kept = np.ones(len(self), dtype=np.bool_)
        kept[rows_of(ids, self._ids)] = False
        self._shortlist.keep(kept)
        self._rows = np.flatnonzero(kept) if self._rows is None else self._rows[kept]
        self._ids = self._ids[kept]
        if self._shortlist.needs_rebuild and len(self):
            widest = self._stages[-1].take(self._rows)
            self._shortlist = Shortlist.of(prefix(widest, self.settings.dims[0], self.settings.metric), self.settings)

    def search(self, queries: ArrayLike, k: int, *, shortlists: Sequence[int] | None = None) -> Hits:
        """Find the best vectors of each query.

        Args:
            queries: Shape ``[m, width]``.
            k: Vectors per query, 1 to the size of the index and of the last shortlist.
            shortlists: Other lengths than the index was built with.

        Raises:
            UserError: If the index is empty, or queries, k or lengths will not do.
        """
        rows = check_vectors(queries, "query", self.settings.width)
        keep = [*self.settings.lengths(k, len(self), shortlists), k]
        first = next((i for i, length in enumerate(keep[:-1]) if length < len(self)), len(keep) - 1)
        step = max(1, len(rows) if first == len(keep) - 1 else _CANDIDATES // keep[first])
        parts = [self._search(rows[start : start + step], keep, first) for start in range(0, len(rows) or 1, step)]
        scores, positions = (np.concatenate(part) for part in zip(*parts, strict=True))
        return Hits(self._ids[positions], scores)

    def _search(self, queries: Vectors, keep: Sequence[int], first: int) -> tuple[Scores, Positions]:
        """Scores and positions, from the first stage that leaves something out; ``keep`` ends with k."""
        prefixes = [prefix(queries, dim, self.settings.metric) for dim in self.settings.dims]
        scores = np.empty((len(queries), 0), dtype=np.float32)
        if first == 0:
            positions = self._shortlist.search(prefixes[0], keep[0])
        else:
            scores, positions = self._stages[first - 1].exact(prefixes[first], keep[first], self._rows)
        for i in range(first + 1, len(keep)):
            scores, columns = self._stages[i - 1].best_of(prefixes[i], self._to_rows(positions), keep[i])
            positions = np.take_along_axis(positions, columns, axis=1)
        missed = np.flatnonzero(positions[:, -1] < 0)
        if len(missed):  # a graph that found fewer than k
            best = self._stages[-1].exact(prefixes[-1][missed], keep[-1], self._rows)
            scores[missed], positions[missed] = best
        return scores, positions

    def _to_rows(self, positions: Positions) -> Positions:
        return positions if self._rows is None else np.where(positions < 0, -1, self._rows[positions])
