"""What a nested InfoNCE engine is asked for: everything but the embeddings, so that all engines share one signature.

Legend: B rows (this process's samples), W samples of all processes, N documents, G width of the guide, K prefixes.

Layout, with or without several processes: rows are this process's B samples, columns are everybody's. ``documents`` is
``torch.cat`` of each gathered column, so document ``c * W + s`` is column c of sample s and the first W are the
positives; the positive of row i is document ``offset + i``. ``queries`` holds all W queries where a direction scores
queries as columns, else it may hold only the B local ones. The loss is the mean over the B local rows.

An engine is a function::

    nested_losses(queries, documents, problem, beside=Beside()) -> Tensor  # terms x K

whose entries are independently differentiable, once, and carry no weights: the caller multiplies. Terms are, in this
order, InfoNCE and, with ``Problem.distill``, the self-distillation. Embeddings are float32 or float64 for the tiled
engine; coordinates past ``dims[-1]`` are read only as the guide. The Triton engine's module also has
``why_not(queries, problem) -> str | None``: why it cannot run this, or None.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

from jaxtyping import Float, Int64
from torch import Tensor

Similarity = Literal["cosine", "dot"]
HardnessMode = Literal["in_batch_negatives", "hard_negatives", "all_negatives"]
MarginStrategy = Literal["absolute", "relative"]
QUERIES, DOCUMENTS = 0, 1


class Direction(NamedTuple):
    """Rows of one matrix scored against all rows of another, inside one softmax group.

    ``rows`` and ``columns`` say which tensor: ``QUERIES`` or ``DOCUMENTS`` (as rows: only the B local positives).
    ``own`` excludes the columns of the row's own sample: column index modulo W equals ``offset + i``.
    """

    rows: int
    columns: int
    own: bool
    group: int


@dataclass(frozen=True)
class Layout:
    """Which samples the rows are: ``batch`` local ones out of ``world_batch``, the first of them number ``offset``."""

    batch: int
    world_batch: int
    offset: int = 0


@dataclass(frozen=True)
class Margin:
    """False negatives by score: a column is excluded if its guide score exceeds a bound set by the row's positive.

    With t the guide score of the row's query and its positive, the bound is ``t - value`` (``absolute``) or
    ``t - |t| * value`` (``relative``), as in sentence-transformers' ``GISTEmbedLoss``. The guide score of a column is
    the cosine of the guide's vectors of the row's text and the column's text, in every direction; hard negatives are
    columns like any other; the positive itself is never excluded.
    """

    value: float
    strategy: MarginStrategy = "absolute"


@dataclass(frozen=True)
class Problem:
    """A nested InfoNCE problem.

    Args:
        dims: Ascending prefixes.
        layout: Rows and columns.
        directions: What each softmax group is made of; the first is query_to_doc.
        scale: 1 / temperature.
        similarity: ``cosine`` of the truncated vectors, or their plain ``dot`` product (no norms).
        hardness_mode: Which query_to_doc logits gain ``hardness_strength * similarity`` (detached, not scaled), as in
            sentence-transformers' ``MultipleNegativesRankingLoss``: columns of other samples, the row's own hard
            negatives, or both. Never the positive.
        hardness_strength: 0 or more.
        margin: Excludes false negatives by score, if given. The guide is ``Beside.query_guide`` and
            ``Beside.document_guide``, or else the embeddings themselves at the full width they come in, detached.
        distill: Also return the self-distillation ``KL(full || prefix)``, averaged over rows, where both are softmaxes
            over the query_to_doc logits that InfoNCE uses and ``full`` is the last dim's, detached (Starbucks,
            arXiv 2410.13230). It is 0 at the last dim.
    """

    dims: tuple[int, ...]
    layout: Layout
    directions: tuple[Direction, ...] = (Direction(QUERIES, DOCUMENTS, own=False, group=0),)
    scale: float = 20.0
    similarity: Similarity = "cosine"
    hardness_mode: HardnessMode | None = None
    hardness_strength: float = 0.0
    margin: Margin | None = None
    distill: bool = False


class Beside(NamedTuple):
    """Optional tensors beside the embeddings.

    ``query_ids`` and ``document_ids`` (both or neither) mark equal texts with equal integers, say hashes. A column
    stands for a known match of the row, and is excluded, if it is not the row's positive and

    - its document id equals that of the row's positive, or
    - its sample's query id equals the row's query id,

    where a query column carries its query's id and the id of its sample's positive, a positive's column likewise, and
    a hard negative's column only its own document id. The rule is the same in all four directions. ``query_ids`` are
    those of all W samples, whichever queries are given.
    ``query_guide`` has as many rows as ``queries``, ``document_guide`` as ``documents``.
    """

    query_ids: Int64[Tensor, " samples"] | None = None
    document_ids: Int64[Tensor, " documents"] | None = None
    query_guide: Float[Tensor, "queries guide"] | None = None
    document_guide: Float[Tensor, "documents guide"] | None = None


def local_rows(queries: Tensor, layout: Layout) -> slice:
    """Where the local queries lie: everywhere, or from ``offset`` on if all processes' queries are there."""
    start = layout.offset if queries.shape[0] == layout.world_batch else 0
    return slice(start, start + layout.batch)
