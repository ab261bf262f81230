"""Losses that obey sentence-transformers' loss contract."""

from __future__ import annotations

from matryoshka_st.losses.contrastive import MatryoshkaContrastiveLoss

__all__ = ["MatryoshkaContrastiveLoss"]
