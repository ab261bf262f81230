"""Exact search over a corpus that arrives in chunks, for several cuts of the same vectors at once.

Each cut keeps its running top k as one integer per query and rank: the bits of the float32 score, in an
order-preserving form, above the position of the document. These integers never tie, so the outcome does not depend on
the chunk size: equal scores go to the later document.

Legend: B queries, N documents of a chunk, D full width, d width of a cut, P (query, document) pairs, K documents kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

Cut = Callable[[Tensor], Tensor]
"""Turns full-width vectors into those whose dot products are compared; first called once there are documents."""

_BLOCK = 2**22  # scores held at once: 16 MB, and 32 MB of keys
_POSITION_BITS = 32


def search_chunks(
    queries: Float[Tensor, "B D"],
    chunks: Iterable[tuple[int, Float[Tensor, "_ D"]]],
    cuts: Sequence[Cut],
    top_k: int,
) -> list[tuple[Float[Tensor, "B K"], Int[Tensor, "B K"]]]:
    """Find the best documents of each query, under each cut.

    Args:
        queries: Full-width vectors of the queries.
        chunks: Position of the chunk's first document, and the full-width vectors of its documents.
        cuts: What to compare; each sees the queries once and every chunk once.
        top_k: Documents kept per query.

    Returns:
        Per cut: dot products and positions in the corpus, best first.
    """
    cut_queries: list[Tensor] = []
    best = [torch.empty(len(queries), 0, dtype=torch.int64, device=queries.device) for _ in cuts]
    for start, documents in chunks:
        cut_queries = cut_queries or [cut(queries) for cut in cuts]
        for i, cut in enumerate(cuts):
            best[i] = _merge(best[i], cut_queries[i], cut(documents), start, top_k)
    return [(_score_of(keys), _position_of(keys)) for keys in best]


def score_pairs(
    queries: Float[Tensor, "B D"],
    chunks: Iterable[tuple[int, Float[Tensor, "_ D"]]],
    cuts: Sequence[Cut],
    pairs: Int[Tensor, "P 2"],
) -> list[Float[Tensor, " P"]]:
    """Score given (query, document) pairs, under each cut.

    Args:
        queries: Full-width vectors of the queries.
        chunks: Position of the chunk's first document, and the full-width vectors of its documents.
        cuts: What to compare.
        pairs: Row of the query and position of the document in the corpus.

    Returns:
        Per cut: the dot product of each pair.
    """
    cut_queries: list[Tensor] = []
    scores = [torch.empty(len(pairs), device=queries.device) for _ in cuts]
    for start, documents in chunks:
        cut_queries = cut_queries or [cut(queries) for cut in cuts]
        document = pairs[:, 1] - start
        here = ((document >= 0) & (document < len(documents))).nonzero().flatten()
        for i, cut in enumerate(cuts):
            cut_documents = cut(documents)
            for block in here.split(max(1, _BLOCK // documents.shape[1])):
                products = cut_queries[i][pairs[block, 0]] * cut_documents[document[block]]
                scores[i][block] = products.sum(dim=-1)
    return scores


def _merge(
    best: Int[Tensor, "B K"],
    queries: Float[Tensor, "B d"],
    documents: Float[Tensor, "N d"],
    start: int,
    top_k: int,
) -> Int[Tensor, "B K2"]:
    rows = max(1, _BLOCK // len(documents))
    merged = []
    for old, block in zip(best.split(rows), queries.split(rows), strict=True):
        keys = torch.cat([old, _keys(block @ documents.T, start)], dim=1)
        merged.append(keys.topk(min(top_k, keys.shape[1]), dim=1).values)
    return torch.cat(merged)


def _keys(scores: Float[Tensor, "B N"], start: int) -> Int[Tensor, "B N"]:
    bits = _flip((scores + 0.0).view(torch.int32))  # + 0.0 turns -0.0 into 0.0
    positions = torch.arange(start, start + scores.shape[1], device=scores.device)
    return (bits.to(torch.int64) << _POSITION_BITS) | positions


def _score_of(keys: Int[Tensor, "B K"]) -> Float[Tensor, "B K"]:
    scores: Tensor = _flip((keys >> _POSITION_BITS).to(torch.int32)).view(torch.float32)
    return scores


def _position_of(keys: Int[Tensor, "B K"]) -> Int[Tensor, "B K"]:
    positions: Tensor = keys & (2**_POSITION_BITS - 1)
    return positions


def _flip(bits: Int[Tensor, "*shape"]) -> Int[Tensor, "*shape"]:
    """Map the bits of float32 to integers of the same order, and back: negative floats count downwards."""
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)
