"""Sentence embeddings that can be cut to any length: train them, prove what each length is worth, ship them."""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_PUBLIC = {
    "AdaptiveClassifier": "matryoshka_st.adaptive",
    "CachedMatryoshkaContrastiveLoss": "matryoshka_st.losses",
    "CombinedLoss": "matryoshka_st.losses",
    "LabelHead": "matryoshka_st.label_head",
    "MatryoshkaClassificationLoss": "matryoshka_st.losses",
    "MatryoshkaContrastiveLoss": "matryoshka_st.losses",
    "MatryoshkaDims": "matryoshka_st.nesting",
    "MatryoshkaLinear": "matryoshka_st.losses",
    "NeighbourDistillLoss": "matryoshka_st.losses",
    "SpreadOutLoss": "matryoshka_st.losses",
    "TeacherDistillLoss": "matryoshka_st.losses",
    "UserError": "matryoshka_st.errors",
    "WeightSchedule": "matryoshka_st.losses",
    "load_model": "matryoshka_st.models",
    "nested_infonce": "matryoshka_st.infonce",
    "truncate_normalize": "matryoshka_st.nesting",
}
__all__ = ["__version__", *sorted(_PUBLIC)]


def __getattr__(name: str) -> Any:
    """Import a public name on first use, so that ``import matryoshka_st`` does not pull in torch."""
    if name not in _PUBLIC:
        raise AttributeError(f"module 'matryoshka_st' has no attribute {name!r}")
    return getattr(importlib.import_module(_PUBLIC[name]), name)
