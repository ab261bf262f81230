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
    """Queries or documents, where the local rows start in them, and K x N inverse prefix norms.

    The inverse is 0 for a zero prefix, and there is none for dot products.
    """

    x: Tensor
    start: int
    inverse: Tensor | None


class Scores(NamedTuple):
    """A problem with its tensors: what all logits are made from. ``matrices`` are queries, documents."""

    problem: Problem
    matrices: tuple[Matrix, Matrix]
    masks: Exclusions | None


class Part(NamedTuple):
    """What one tile's logits are made from.

    Per prefix: the new block of the rows (R x w) and of the columns (w x C), the rows' inverse norms times the logits'
    factor (R x 1) and the columns' inverse norms (C), None for dot products. ``excluded`` is R x C, True where a
    column is masked; the positive never is.
    """

    problem: Problem
    tile: Tile
    factor: float
    rows: tuple[Tensor, ...]
    columns: tuple[Tensor, ...]
    row_factors: tuple[Tensor, ...] | None
    column_factors: tuple[Tensor, ...] | None
    excluded: Tensor | None


def parts(scores: Scores, shape: tuple[int, int], directions: Sequence[Direction] | None = None) -> Iterator[Part]:
    """All tiles of the given directions (default: the problem's), ready to be scored."""
    queries, documents = scores.matrices
    starts, counts = (queries.start, documents.start), (len(queries.x), len(documents.x))
    directions = scores.problem.directions if directions is None else directions
    for tile in iterate_tiles(directions, scores.problem.layout, starts, counts, shape):
        yield _part(scores, tile)


def matrices(
    queries: Tensor, documents: Tensor, problem: Problem, inverses: Sequence[Tensor | None] = (None, None)
) -> tuple[Matrix, Matrix]:
    """Both sides; the inverse norms are computed unless they are known."""
    if inverses[0] is None and problem.similarity == "cosine":
        inverses = [_inverse_norms(x, problem) for x in (queries, documents)]
    start = local_rows(queries, problem.layout).start
    return Matrix(queries, start, inverses[0]), Matrix(documents, problem.layout.offset, inverses[1])


def block_widths(problem: Problem) -> list[int]:
    """Coordinates between consecutive dims."""
    return [high - low for low, high in zip((0, *problem.dims), problem.dims, strict=False)]


def accumulate(total: Tensor, k: int, part: Part, before: Tensor | None = None) -> None:
    """Make ``total`` (R x C) the raw scores of prefix k from those of prefix k - 1: itself, or ``before``."""
    if k == 0:
        torch.mm(part.rows[k], part.columns[k], out=total)
    else:
        torch.addmm(total if before is None else before, part.rows[k], part.columns[k], out=total)


def logits(
    total: Tensor, k: int, part: Part, *, out: Tensor, plus: Tensor | None = None, masked: bool = True
) -> Tensor:
    """The logits of prefix k into ``out``, from the raw scores ``total``; excluded ones are -inf if ``masked``.

    Args:
        total: R x C raw scores.
        k: Which prefix.
        part: What they are made from.
        out: R x C, overwritten.
        plus: R x 1, added to each row, if given.
        masked: False leaves the excluded ones as they are.
    """
    torch.mul(total, part.factor if part.row_factors is None else part.row_factors[k], out=out)
    if _is_hardened(part.problem, part.tile):
        _own_hardness(out, part)
    if part.column_factors is not None and plus is not None:
        torch.addcmul(plus, out, part.column_factors[k], out=out)
    elif part.column_factors is not None:
        out.mul_(part.column_factors[k])
    elif plus is not None:
        out.add_(plus)
    if masked and part.excluded is not None:
        out.masked_fill_(part.excluded, -torch.inf)
    if part.tile.direction.own:
        for _, diagonal in part.tile.own:
            out.diagonal(diagonal).fill_(-torch.inf)
    return out


def positive_scores(scores: Scores) -> Tensor:
    """K x B: the similarity of each local query with its positive."""
    queries, documents = scores.matrices
    left, right = local_slices(scores)
    blocks = zip(split(queries.x[left], scores.problem), split(documents.x[right], scores.problem), strict=True)
    total = torch.stack([torch.linalg.vecdot(q, d) for q, d in blocks]).cumsum(0)
    if queries.inverse is None or documents.inverse is None:
        return total
    return total.mul_(queries.inverse[:, left]).mul_(documents.inverse[:, right])


def split(x: Tensor, problem: Problem) -> tuple[Tensor, ...]:
    """Views of the K blocks."""
    blocks: tuple[Tensor, ...] = x.split(block_widths(problem), dim=1)
    return blocks


def local_slices(scores: Scores) -> tuple[slice, slice]:
    """Where the local queries and their positives lie."""
    batch = scores.problem.layout.batch
    queries, documents = scores.matrices
    return slice(queries.start, queries.start + batch), slice(documents.start, documents.start + batch)


def positives_in(tile: Tile) -> Iterator[tuple[int, slice]]:
    """Where the targets of the tile's softmax lie, if there are any: a diagonal and the local rows it crosses.

    A softmax over several directions has its positive in the first of them.
    """
    if is_query_to_doc(tile) or tile.direction.group:
        height, width = tile.shape
        for column, diagonal in tile.own:
            if column == 0:
                above = max(-diagonal, 0)
                first = tile.rows.start + above
                yield diagonal, slice(first, first + min(height - above, width - max(diagonal, 0)))


def is_query_to_doc(tile: Tile) -> bool:
    """Whether the tile's scores are of queries with documents."""
    return tile.direction[:2] == (QUERIES, DOCUMENTS)


def _part(scores: Scores, tile: Tile) -> Part:
    problem = scores.problem
    x, y = scores.matrices[tile.direction.rows], scores.matrices[tile.direction.columns]
    penalised = _is_hardened(problem, tile) and problem.hardness_mode != "hard_negatives"
    factor = problem.scale + (problem.hardness_strength if penalised else 0.0)
    widths = block_widths(problem)
    return Part(
        problem,
        tile,
        factor,
        x.x[tile.x_rows].split(widths, dim=1),
        y.x[tile.columns].T.split(widths),
        None if x.inverse is None else (factor * x.inverse[:, tile.x_rows, None]).unbind(),
        None if y.inverse is None else y.inverse[:, tile.columns].unbind(),
        _excluded(scores, tile),
    )


def _excluded(scores: Scores, tile: Tile) -> Tensor | None:
    if scores.masks is None:
        return None
    excluded = scores.masks.tile(tile.direction, tile.rows, tile.x_rows, tile.columns)
    for column, diagonal in tile.own:
        if column == 0 and not tile.direction.own:
            excluded.diagonal(diagonal).fill_(False)
    return excluded


def _is_hardened(problem: Problem, tile: Tile) -> bool:
    return problem.hardness_mode is not None and is_query_to_doc(tile)


def _own_hardness(out: Tensor, part: Part) -> None:
    """Correct the diagonals of the rows' own documents, whose factor may differ from that of all others."""
    problem = part.problem
    hard = problem.scale + problem.hardness_strength
    for column, diagonal in part.tile.own:
        own = problem.scale if column == 0 or problem.hardness_mode == "in_batch_negatives" else hard
        out.diagonal(diagonal).mul_(own / part.factor)


def _inverse_norms(x: Tensor, problem: Problem) -> Tensor:
    squares = torch.stack([torch.linalg.vector_norm(block, dim=1) for block in split(x, problem)]).square_()
    norms = squares.cumsum(0).sqrt_()
    return torch.where(norms > _NO_NORM, 1 / norms, torch.zeros_like(norms))
