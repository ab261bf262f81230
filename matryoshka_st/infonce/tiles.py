"""Cutting score matrices into tiles that fit a cache: shapes, positions, and where a row's own sample lies in them.

Legend: B local rows, W samples of all processes, R x C a tile of rows and columns.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch

from matryoshka_st.infonce.problem import Direction, Layout

_CACHE_SIZE = Path("/sys/devices/system/cpu/cpu0/cache/index2/size")
_CACHE_WHERE_UNKNOWN = 2**20  # bytes per core
_MOST_CPU_TILE, _MOST_GPU_TILES = 2**22, 2**30  # bytes

_override: ContextVar[tuple[int, int] | None] = ContextVar("tile_size", default=None)


class Tile(NamedTuple):
    """A rectangle of one direction's score matrix.

    ``rows`` are local rows, ``x_rows`` the same rows as they lie in the matrix ``direction.rows``; ``own`` holds, for
    each column number c whose documents (or queries) of the rows' own samples cross the tile, c and the diagonal.
    """

    direction: Direction
    rows: slice
    x_rows: slice
    columns: slice
    own: tuple[tuple[int, int], ...]

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.rows.stop - self.rows.start, self.columns.stop - self.columns.start


@contextmanager
def tile_size(rows: int, columns: int) -> Iterator[None]:
    """Within it, tiles are ``rows x columns`` at most, whatever the device's memory says."""
    token = _override.set((rows, columns))
    try:
        yield
    finally:
        _override.reset(token)


def tile_shape(device: torch.device, itemsize: int, tiles: int) -> tuple[int, int]:
    """Rows and columns of a tile: a quarter of the cache on a CPU; on CUDA, ``tiles`` of them in free memory.

    Measured on two cores with 2 MiB of cache each, 6 and 24 prefixes: smaller tiles slow the matrix products down,
    larger ones the rest, and four times as many rows as columns suit the products with narrow blocks best.
    """
    override = _override.get()
    if override is not None:
        return override
    if device.type == "cuda":
        tile = min(torch.cuda.mem_get_info(device)[0] // 8, _MOST_GPU_TILES) // tiles
    else:
        tile = min(_cache_per_core() * torch.get_num_threads() // 4, _MOST_CPU_TILE)
    elements = max(tile // itemsize, 2**14)
    rows = 2 ** (int(math.log2(elements) / 2) + 1)
    return rows, elements // rows


def iterate_tiles(
    directions: Sequence[Direction],
    layout: Layout,
    row_starts: tuple[int, int],
    counts: tuple[int, int],
    shape: tuple[int, int],
) -> Iterator[Tile]:
    """All tiles of all directions.

    Args:
        directions: Which score matrices.
        layout: Whose rows they are.
        row_starts: Where the local rows start in the queries and in the documents.
        counts: How many queries and documents there are.
        shape: Rows and columns of a tile, at most.
    """
    for direction in directions:
        start = row_starts[direction.rows]
        for rows in _ranges(layout.batch, shape[0]):
            for columns in _ranges(counts[direction.columns], shape[1]):
                x_rows = slice(start + rows.start, start + rows.stop)
                own = _own_diagonals(layout, rows, columns, counts[direction.columns])
                yield Tile(direction, rows, x_rows, columns, own)


def _own_diagonals(layout: Layout, rows: slice, columns: slice, count: int) -> tuple[tuple[int, int], ...]:
    world, first = layout.world_batch, layout.offset + rows.start - columns.start
    height, width = rows.stop - rows.start, columns.stop - columns.start
    diagonals = ((c, first + c * world) for c in range(count // world))
    return tuple((c, diagonal) for c, diagonal in diagonals if -height < diagonal < width)


def _ranges(count: int, step: int) -> list[slice]:
    return [slice(start, min(start + step, count)) for start in range(0, count, step)]


@cache
def _cache_per_core() -> int:
    try:
        size = _CACHE_SIZE.read_text().strip()
        return int(size.removesuffix("K")) * 1024
    except (OSError, ValueError):
        return _CACHE_WHERE_UNKNOWN
