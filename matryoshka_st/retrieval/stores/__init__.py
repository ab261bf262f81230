"""Prefix-then-full search in stores that people already run, from the same calls: ``build``, ``load`` and ``search``.

Qdrant, DuckDB, LanceDB and usearch have adapters; the README beside this file has the query for pgvector, Milvus and
Elasticsearch.
"""

from __future__ import annotations

from matryoshka_st.retrieval.stores.base import Store
from matryoshka_st.retrieval.stores.duckdb import DuckDBStore
from matryoshka_st.retrieval.stores.lancedb import LanceDBStore
from matryoshka_st.retrieval.stores.qdrant import QdrantStore
from matryoshka_st.retrieval.stores.usearch import UsearchStore

__all__ = ["DuckDBStore", "LanceDBStore", "QdrantStore", "Store", "UsearchStore"]
