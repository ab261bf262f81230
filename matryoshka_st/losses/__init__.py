"""Losses that obey sentence-transformers' loss contract."""

from __future__ import annotations

from matryoshka_st.losses.cached import CachedMatryoshkaContrastiveLoss
from matryoshka_st.losses.classification import MatryoshkaClassificationLoss, MatryoshkaLinear
from matryoshka_st.losses.combined import CombinedLoss
from matryoshka_st.losses.contrastive import MatryoshkaContrastiveLoss
from matryoshka_st.losses.neighbours import NeighbourDistillLoss
from matryoshka_st.losses.regularizers import SpreadOutLoss, TeacherDistillLoss
from matryoshka_st.losses.schedule import WeightSchedule
from matryoshka_st.losses.taught import TaughtLoss

__all__ = [
    "MatryoshkaContrastiveLoss",
    "CachedMatryoshkaContrastiveLoss",
    "CombinedLoss",
    "MatryoshkaClassificationLoss",
    "MatryoshkaLinear",
    "NeighbourDistillLoss",
    "SpreadOutLoss",
    "TaughtLoss",
    "TeacherDistillLoss",
    "WeightSchedule",
]
