"""Qdrant: one named vector per dim; nested ``prefetch`` shortlists by the first, rescores by the next, in one request.

Works with a server, Qdrant Cloud and the client's own local mode. The graph is built over the first dim only (``m=0``
for the others), whose vectors may lie on disk.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import ArrayLike

from matryoshka_st.errors import OptionalDependencyError, UserError
from matryoshka_st.retrieval.ids import Ids
from matryoshka_st.retrieval.rerank import Scores
from matryoshka_st.retrieval.settings import Settings
from matryoshka_st.retrieval.stores.base import (
    DEFAULT_SHORTLISTS,
    Store,
    check_build,
    stored_dims,
    vector_name,
    written,
)
from matryoshka_st.retrieval.vectors import Vectors

if TYPE_CHECKING:
    from qdrant_client import QdrantClient

UPLOAD_POINTS = 256
SEARCHED_QUERIES = 64


class QdrantStore(Store):
    """A collection of Qdrant.

    Args:
        client: A client of a server, or ``QdrantClient(":memory:")``. (The client's local *folder* is made of pickles:
            open none that you did not write.)
        collection: Its name.
        settings: Of the cascade.
        exact: Ask for a scan of all first prefixes instead of the graph; local mode always does.
    """

    def __init__(self, client: QdrantClient, collection: str, settings: Settings, *, exact: bool = False) -> None:
        super().__init__(settings)
        self.client = client
        self.collection = collection
        self.exact = exact

    @classmethod
    def build(
        cls,
        client: QdrantClient,
        collection: str,
        vectors: ArrayLike,
        ids: Sequence[int] | None = None,
        *,
        dims: Sequence[int],
        shortlists: Sequence[int] = DEFAULT_SHORTLISTS,
        exact: bool = False,
    ) -> Self:
        """Make a collection of vectors; payloads can be set afterwards by id.

        Args:
            client: As above.
            collection: A name that is not taken.
            vectors: Shape ``[n, width]``, n of 1 or more.
            ids: One per vector, all different whole numbers of 0 or more; default: 0 to n - 1.
            dims: Ascending, the last one the width.
            shortlists: How many candidates each dim but the last keeps.
            exact: As above.

        Raises:
            OptionalDependencyError: If qdrant-client is not installed.
            UserError: If the name is taken, or vectors, ids or dims will not do.
        """
        _require()
        rows = check_build(vectors, ids, dims, shortlists)
        if rows.ids.dtype.kind != "i" or rows.ids.min() < 0:
            raise UserError(
                "Qdrant's ids are whole numbers of 0 or more; give such, and keep your own in the payload."
            )
        if client.collection_exists(collection):
            raise UserError(
                f"Qdrant holds a collection {collection!r} already; give another name, or delete it first."
            )
        client.create_collection(collection, vectors_config=_vectors_config(rows.settings))
        try:
            for part, named in written(rows, rows.settings.dims):
                client.upload_collection(
                    collection, vectors=named, ids=part.tolist(), batch_size=UPLOAD_POINTS, wait=True
                )
        except BaseException:
            client.delete_collection(collection)
            raise
        return cls(client, collection, rows.settings, exact=exact)

    @classmethod
    def load(
        cls,
        client: QdrantClient,
        collection: str,
        *,
        shortlists: Sequence[int] = DEFAULT_SHORTLISTS,
        exact: bool = False,
    ) -> Self:
        """Use a collection that :meth:`build` made.

        Raises:
            OptionalDependencyError: If qdrant-client is not installed.
            UserError: If there is no such collection, or it does not hold the vectors of a cascade.
        """
        _require()
        if not client.collection_exists(collection):
            names = ", ".join(repr(found.name) for found in client.get_collections().collections) or "none"
            raise UserError(f"Qdrant has no collection {collection!r} (it has {names}); make it with build.")
        named = client.get_collection(collection).config.params.vectors
        sizes = {name: params.size for name, params in named.items()} if isinstance(named, dict) else {}
        dims = stored_dims(sizes, f"Collection {collection!r}")
        return cls(client, collection, Settings.of(dims[-1], dims, shortlists), exact=exact)

    def __len__(self) -> int:
        """Of a server an estimate, which takes no time."""
        return int(self.client.count(self.collection, exact=False).count)

    def _search(self, prefixes: Sequence[Vectors], keep: Sequence[int]) -> Iterator[tuple[Ids, Scores]]:
        requests = [self._request(query, keep) for query in zip(*prefixes, strict=True)]
        for start in range(0, len(requests), SEARCHED_QUERIES):
            for response in self.client.query_batch_points(
                self.collection, requests[start : start + SEARCHED_QUERIES]
            ):
                points = response.points
                yield (
                    np.array([point.id for point in points], dtype=np.int64),
                    np.array([point.score for point in points], dtype=np.float32),
                )

    def _request(self, query: Sequence[Any], keep: Sequence[int]) -> Any:
        """The first stage is the innermost prefetch."""
        models = _require()
        names = [vector_name(dim) for dim in self.settings.dims]
        stage = models.Prefetch(
            query=query[0].tolist(), using=names[0], limit=keep[0], params=models.SearchParams(exact=self.exact)
        )
        for vector, name, limit in zip(query[1:-1], names[1:-1], keep[1:-1], strict=True):
            stage = models.Prefetch(prefetch=stage, query=vector.tolist(), using=name, limit=limit)
        return models.QueryRequest(prefetch=stage, query=query[-1].tolist(), using=names[-1], limit=keep[-1])


def _vectors_config(settings: Settings) -> dict[str, Any]:
    models = _require()
    params = {"distance": models.Distance.COSINE}
    first, *others = settings.dims
    unlinked = {"hnsw_config": models.HnswConfigDiff(m=0), "on_disk": True}
    return {
        vector_name(first): models.VectorParams(size=first, **params),
        **{vector_name(dim): models.VectorParams(size=dim, **params, **unlinked) for dim in others},
    }


def _require() -> Any:
    try:
        from qdrant_client import models
    except ImportError as error:
        raise OptionalDependencyError("qdrant_client", "stores") from error
    return models
