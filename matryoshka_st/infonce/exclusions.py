"""Which columns of a row are left out of its softmax: known matches (equal texts) and false negatives (by margin).

Legend: B local rows, W samples of all processes, N documents, G width of the guide, R x C a tile of rows and columns.
The rules are those of :class:`~matryoshka_st.infonce.problem.Beside` and
:class:`~matryoshka_st.infonce.problem.Margin`; the row's positive is handled by the engine, which never excludes it.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from matryoshka_st.infonce.problem import QUERIES, Beside, Direction, Layout, Margin, Problem, local_rows


class Exclusions(NamedTuple):
    """Masks ready to be cut into tiles; index 0 is queries, 1 is documents, as in ``Direction``.

    ``keys`` are W x 2 and N x 2 (query key, document key; -1 matches nothing); ``bounds`` are the B guide scores that
    a column may not exceed.
    """

    layout: Layout
    keys: tuple[Tensor, Tensor] | None
    guides: tuple[Tensor, Tensor] | None
    bounds: Tensor | None

    def tile(self, direction: Direction, rows: slice, x_rows: slice, columns: slice) -> Bool[Tensor, "rows columns"]:
        """True where a column is excluded.

        Args:
            direction: What is scored.
            rows: The tile's local rows.
            x_rows: The same rows as they lie in the matrix of ``direction.rows``.
            columns: The tile's columns.
        """
        excluded: Tensor | None = None
        if self.keys is not None:
            start = self.layout.offset + rows.start
            left = self.keys[QUERIES][start : start + rows.stop - rows.start]
            right = self.keys[direction.columns][columns]
            excluded = (left[:, :1] == right[:, 0]) | (left[:, 1:] == right[:, 1])
        if self.guides is not None and self.bounds is not None:
            left = F.normalize(self.guides[direction.rows][x_rows], dim=1)
            right = F.normalize(self.guides[direction.columns][columns], dim=1)
            above = left @ right.T > self.bounds[rows, None]
            excluded = above if excluded is None else excluded | above
        assert excluded is not None  # noqa: S101 - `exclusions` returns None where nothing can be excluded
        return excluded


def exclusions(queries: Tensor, documents: Tensor, problem: Problem, beside: Beside) -> Exclusions | None:
    """Prepare the masks of a problem, or None if it has none."""
    if beside.query_ids is None and problem.margin is None:
        return None
    guides = None
    bounds = None
    if problem.margin is not None:
        guides = (
            queries.detach() if beside.query_guide is None else beside.query_guide,
            documents.detach() if beside.document_guide is None else beside.document_guide,
        )
        bounds = margin_bounds(*guides, problem.margin, problem.layout)
    keys = None
    if beside.query_ids is not None and beside.document_ids is not None:
        keys = match_keys(beside.query_ids, beside.document_ids)
    return Exclusions(problem.layout, keys, guides, bounds)


def margin_bounds(
    query_guide: Float[Tensor, "queries guide"],
    document_guide: Float[Tensor, "documents guide"],
    margin: Margin,
    layout: Layout,
) -> Float[Tensor, " batch"]:
    """The guide score above which a column of each local row counts as a false negative."""
    queries = query_guide[local_rows(query_guide, layout)]
    positives = document_guide[layout.offset : layout.offset + layout.batch]
    scores = F.cosine_similarity(queries, positives, dim=1)
    return scores - (margin.value if margin.strategy == "absolute" else margin.value * scores.abs())


def match_keys(
    query_ids: Int64[Tensor, " samples"], document_ids: Int64[Tensor, " documents"]
) -> tuple[Int64[Tensor, "samples 2"], Int64[Tensor, "documents 2"]]:
    """The (query key, document key) of each query column and document column; equal keys are known matches.

    >>> match_keys(torch.tensor([7, 9]), torch.tensor([4, 4, 5, 9]))[1].tolist()
    [[0, 0], [1, 0], [-1, 1], [-1, 2]]
    """
    query_keys = torch.unique(query_ids, return_inverse=True)[1]
    document_keys = torch.unique(document_ids, return_inverse=True)[1]
    samples = len(query_ids)
    padded = F.pad(query_keys, (0, len(document_ids) - samples), value=-1)
    documents = torch.stack([padded, document_keys], dim=1)
    return documents[:samples], documents
