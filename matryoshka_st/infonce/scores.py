"""The logits of a tile at every prefix: nested scores, norms, hardness and masks.

Legend: W samples, N columns, D width, K prefixes d_1 < ... < d_K, blocks b_k = [d_{k-1}, d_k), R x C a tile.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from matryoshka_st.infonce.exclusions import Exclusions
from matryoshka_st.infonce.problem import DOCUMENTS, QUERIES, Direction, Problem, local_rows
from matryoshka_st.infonce.tiles import Tile, iterate_tiles

_NO_NORM = 1e-12  # the eps of torch.nn.functional.normalize


class Matrix(NamedTuple):
    """Queries or documents: where the local rows start, a view of each block, and K x N inverse prefix norms.

    The inverse is 0 for a zero prefix, and there is none for dot products.
    """

    start: int
    blocks: tuple[Tensor, ...]
    inverse: Tensor | None


class Scores(NamedTuple):
    """A problem with its tensors: what the logits of a tile are made from. ``matrices`` are queries, documents."""

    problem: Problem
    matrices: tuple[Matrix, Matrix]
    masks: Exclusions | None

    def tiles(self, shape: tuple[int, int], directions: Sequence[Direction] | None = None) -> Iterator[Tile]:
        """All tiles of the given directions (default: of the problem's)."""
        starts = self.matrices[0].start, self.matrices[1].start
        counts = len(self.matrices[0].blocks[0]), len(self.matrices[1].blocks[0])
        directions = self.problem.directions if directions is None else directions
        return iterate_tiles(directions, self.problem.layout, starts, counts, shape)

    def sides(self, tile: Tile) -> tuple[Matrix, Matrix]:
        """The matrices that the tile's rows and columns belong to."""
        return self.matrices[tile.direction.rows], self.matrices[tile.direction.columns]

    def excluded(self, tile: Tile) -> Tensor | None:
        """R x C, True where a column is masked; the positive never is."""
        if self.masks is None:
            return None
        excluded = self.masks.tile(tile.direction, tile.rows, tile.x_rows, tile.columns)
        if not tile.direction.own:
            for column, diagonal in tile.own:
                if column == 0:
                    excluded.diagonal(diagonal).fill_(False)
        return excluded


def matrices(
    queries: Tensor, documents: Tensor, problem: Problem, inverses: Sequence[Tensor | None] = (None, None)
) -> tuple[Matrix, Matrix]:
    """Cut both into blocks; ``inverses`` are computed unless they are known."""
    starts = local_rows(queries, problem.layout).start, problem.layout.offset
    pair = []
    for x, start, inverse in zip((queries, documents), starts, inverses, strict=True):
        blocks = x.split(block_widths(problem), dim=1)
        if inverse is None and problem.similarity == "cosine":
            inverse = _inverse_norms(blocks)
        pair.append(Matrix(start, blocks, inverse))
    return pair[0], pair[1]


def block_widths(problem: Problem) -> list[int]:
    """Coordinates between consecutive dims."""
    return [high - low for low, high in zip((0, *problem.dims), problem.dims, strict=False)]


def accumulate(total: Tensor, k: int, tile: Tile, scores: Scores, before: Tensor | None = None) -> None:
    """Make ``total`` (R x C) the raw scores of prefix k from those of prefix k - 1: itself, or ``before``."""
    x, y = scores.sides(tile)
    left, right = x.blocks[k][tile.x_rows], y.blocks[k][tile.columns].T
    if k == 0:
        torch.mm(left, right, out=total)
    else:
        torch.addmm(total if before is None else before, left, right, out=total)


def logits(
    total: Tensor,
    k: int,
    tile: Tile,
    scores: Scores,
    *,
    out: Tensor,
    excluded: Tensor | None,
    less: Tensor | None = None,
) -> Tensor:
    """The logits of prefix k into ``out``, from the raw scores ``total``; excluded ones are -inf.

    Args:
        total: R x C raw scores.
        k: Which prefix.
        tile: Where it lies.
        scores: What it is made from.
        out: R x C, overwritten.
        excluded: R x C, True where a column is masked.
        less: Subtracted from each row, if given.
    """
    problem, (x, y) = scores.problem, scores.sides(tile)
    query_to_doc = tile.direction[:2] == (QUERIES, DOCUMENTS)
    hardness = problem.hardness_mode if query_to_doc else None
    factor = problem.scale + (problem.hardness_strength if hardness in ("in_batch_negatives", "all_negatives") else 0)
    if x.inverse is None:
        torch.mul(total, factor, out=out)
    else:
        torch.mul(total, (factor * x.inverse[k, tile.x_rows])[:, None], out=out)
    if hardness is not None:
        _own_hardness(out, tile, problem, factor)
    if y.inverse is not None and less is not None:
        torch.addcmul(-less[:, None], out, y.inverse[k, tile.columns], out=out)
    elif y.inverse is not None:
        out.mul_(y.inverse[k, tile.columns])
    elif less is not None:
        out.sub_(less[:, None])
    if excluded is not None:
        out.masked_fill_(excluded, -torch.inf)
    if tile.direction.own:
        for _, diagonal in tile.own:
            out.diagonal(diagonal).fill_(-torch.inf)
    return out


def positive_scores(scores: Scores) -> Tensor:
    """K x B: the similarity of each local query with its positive."""
    queries, documents = scores.matrices
    rows = local_slices(scores)
    products = [
        torch.linalg.vecdot(q[rows[0]], d[rows[1]]) for q, d in zip(queries.blocks, documents.blocks, strict=True)
    ]
    total = torch.stack(products).cumsum(0)
    if queries.inverse is None or documents.inverse is None:
        return total
    return total.mul_(queries.inverse[:, rows[0]]).mul_(documents.inverse[:, rows[1]])


def local_slices(scores: Scores) -> tuple[slice, slice]:
    """Where the local queries and their positives lie."""
    batch = scores.problem.layout.batch
    queries, documents = scores.matrices
    return slice(queries.start, queries.start + batch), slice(documents.start, documents.start + batch)


def _own_hardness(out: Tensor, tile: Tile, problem: Problem, factor: float) -> None:
    """Correct the diagonals of the rows' own documents, whose factor may differ from that of all others."""
    hard = problem.scale + problem.hardness_strength
    for column, diagonal in tile.own:
        own = problem.scale if column == 0 or problem.hardness_mode == "in_batch_negatives" else hard
        out.diagonal(diagonal).mul_(own / factor)


def _inverse_norms(blocks: tuple[Tensor, ...]) -> Tensor:
    squares = torch.stack([torch.linalg.vector_norm(block, dim=1) for block in blocks]).square_()
    norms = squares.cumsum(0).sqrt_()
    return torch.where(norms > _NO_NORM, 1 / norms, torch.zeros_like(norms))
