"""nDCG of rankings, as trec_eval computes it (Järvelin and Kekäläinen, 2002): gains as they are, log2 of rank + 1."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Qrels = Sequence[Mapping[Any, float]]
"""Per query: gain of each relevant document; documents that are not named have none."""


def ndcg(found: NDArray[Any], qrels: Qrels) -> NDArray[np.float64]:
    """NDCG@k of each query.

    Args:
        found: Documents as the judgements name them, shape ``[m, k]``, best first.
        qrels: One mapping per query; a query without gains scores 0.

    Returns:
        Shape ``[m]``, 0 to 1.

    >>> ndcg(np.array([[7, 3], [1, 2]]), [{3: 1.0}, {1: 1.0, 2: 1.0, 9: 1.0}]).round(4)
    array([0.6309, 1.    ])
    """
    k = found.shape[1]
    discounts = 1 / np.log2(np.arange(2, k + 2))
    gains = np.array(
        [[judged.get(one, 0.0) for one in row] for row, judged in zip(found.tolist(), qrels, strict=True)]
    )
    ideal = np.zeros_like(gains.reshape(-1, k))
    for row, judged in enumerate(qrels):
        best = sorted(judged.values(), reverse=True)[:k]
        ideal[row, : len(best)] = best
    most = ideal @ discounts
    return np.divide(gains.reshape(-1, k) @ discounts, most, out=np.zeros_like(most), where=most > 0)


def by_position(qrels: Qrels, ids: NDArray[Any]) -> list[dict[int, float]]:
    """Judgements that name documents by their position in ``ids``; -2 and below stand for those that are not there."""
    position = {name: place for place, name in enumerate(ids.tolist())}
    return [
        {position.get(name, -2 - place): float(gain) for place, (name, gain) in enumerate(judged.items())}
        for judged in qrels
    ]
