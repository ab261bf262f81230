"""What is scored beside the dims themselves: precisions, and baselines in another basis."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Grid:
    """What to score besides the dims themselves.

    Args:
        precisions: How vectors are stored, see :mod:`matryoshka_st.evaluation.precision`.
        normalized: Scale to unit length after the cut. False is what mteb's own ``embed_dim`` does, where a cut vector
            keeps its length; cosines do not change, but classification and clustering do.
        before_cut: ``layer_norm``, or ``package.module:function``, applied to the full width first.
        baselines: ``pca``, ``svd`` and ``random``, scored in float32 beside the plain cut.
        seeds: One ``random`` baseline for each.
        texts: A source of texts (pairs, or a .txt file) that baselines are fitted on and int8 is calibrated with;
            without it each task calibrates int8 on its own documents or texts.
    """

    precisions: Sequence[str] = ("float32",)
    normalized: bool = True
    before_cut: str | None = None
    baselines: Sequence[str] = ()
    seeds: Sequence[int] = (0,)
    texts: str | None = None
