"""Retrieval with prefixes: a shortlist by the first dims, reranked by more (MRL, arXiv 2205.13147, section 4.3)."""

from __future__ import annotations

from matryoshka_st.retrieval.adaptive import AdaptiveRetriever
from matryoshka_st.retrieval.cascade import Cascade, Hits
from matryoshka_st.retrieval.costs import Operations, count_operations
from matryoshka_st.retrieval.funnel import FunnelRetriever
from matryoshka_st.retrieval.settings import Settings
from matryoshka_st.retrieval.tuning import TradeOff, Tuning, tune

__all__ = [
    "AdaptiveRetriever",
    "Cascade",
    "FunnelRetriever",
    "Hits",
    "Operations",
    "Settings",
    "TradeOff",
    "Tuning",
    "count_operations",
    "tune",
]
