"""One encode for many cuts: every text goes through the transformer once, whatever the number of dims compared.

Encoder tasks (similarity, classification, clustering, ...) read from a memo of full-width vectors that lives for one
task. Retrieval streams: queries once, corpus once in chunks, every waiting cut scored on each chunk, nothing kept but
the top k. mteb's own ``CachedEmbeddingWrapper`` is no base for this: it re-encodes for every dim and joins document
titles twice.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import torch
from datasets import Dataset
from mteb._create_dataloaders import create_dataloader
from mteb.models import SentenceTransformerEncoderWrapper
from mteb.types import PromptType
from sentence_transformers import SentenceTransformer
from torch import Tensor
from torch.utils.data import DataLoader

from matryoshka_st.errors import UserError
from matryoshka_st.evaluation.ranking import score_pairs, search_chunks
from matryoshka_st.models import embedding_width

if TYPE_CHECKING:
    from mteb.abstasks.task_metadata import TaskMetadata

Ranking = dict[str, dict[str, float]]
"""Query id -> document id -> score."""

_MemoKey = tuple[PromptType | None, str | None, str]


class View(Protocol):
    """Anything that cuts full-width vectors to those it compares."""

    @property
    def dot_of_equals(self) -> float:
        """The dot product of a compared vector with itself."""
        ...

    def calibrate(self, vectors: Tensor, source: str) -> None:
        """Look at full-width vectors before any are cut."""
        ...

    def compared(self, vectors: Tensor) -> Tensor:
        """Cut full-width vectors."""
        ...


class Bank:
    """The encoder behind all views of one model.

    Args:
        model: The model, at its full width.
        chunk_size: Documents encoded at once in retrieval; it changes memory, not results (but for int8 below 10,000,
            which the first chunk calibrates).
        devices: One process for each of these torch devices; used as a context, the bank stops them at the end.

    Attributes:
        meta: mteb's description of the model, without a name or revision.
        encoded: Texts that went through the transformer so far.
    """

    def __init__(
        self, model: SentenceTransformer, *, chunk_size: int = 50_000, devices: Sequence[str] | None = None
    ) -> None:
        with warnings.catch_warnings():  # mteb calls its own and sentence-transformers' deprecated names
            warnings.filterwarnings("ignore", category=DeprecationWarning)
            warnings.filterwarnings("ignore", category=FutureWarning)
            self._encoder = SentenceTransformerEncoderWrapper(model)
        self.meta = self._encoder.mteb_model_meta
        self.width = embedding_width(model)
        self.encoded = 0
        self._chunk_size = chunk_size
        self._score_device = model.device if model.device.type == "cuda" else torch.device("cpu")
        self._pool = model.start_multi_process_pool(list(devices)) if devices else None
        self.begin([])

    def __enter__(self) -> Bank:
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            SentenceTransformer.stop_multi_process_pool(self._pool)

    def begin(self, views: Sequence[View]) -> None:
        """Forget the last task, and expect these views to ask for the next one."""
        self._views = tuple(views)
        self._rows: dict[_MemoKey, int] = {}
        self._vectors = torch.empty(0, self.width)
        self._found: dict[tuple[str, str, str], dict[View, Callable[[], Ranking]]] = {}

    def encode(
        self,
        inputs: DataLoader[Any],
        *,
        task_metadata: TaskMetadata,
        prompt_type: PromptType | None = None,
        **encode_kwargs: Any,
    ) -> Tensor:
        """Full-width float32 vectors of the texts, on the CPU; only texts not seen in this task are encoded.

        Args:
            inputs: A loader over a dataset with a ``text`` column, as mteb prepared it.
            task_metadata: Selects the prompt, with ``prompt_type``.
            prompt_type: Query, document or neither.
            encode_kwargs: ``hf_split``, ``hf_subset`` and what ``SentenceTransformer.encode`` takes.

        Raises:
            UserError: If the model gives a vector that is not finite.
        """
        prompt = self._prompt(task_metadata, prompt_type)
        keys: list[_MemoKey] = [(prompt_type, prompt, text) for text in inputs.dataset["text"]]
        missing = list(dict.fromkeys(key for key in keys if key not in self._rows))
        if missing:
            texts = [text for *_, text in missing]
            vectors = self._forward(texts, task_metadata=task_metadata, prompt_type=prompt_type, **encode_kwargs)
            self._rows.update({key: len(self._vectors) + i for i, key in enumerate(missing)})
            self._vectors = torch.cat([self._vectors, vectors])
        return self._vectors[[self._rows[key] for key in keys]]

    def search(
        self,
        view: View,
        corpus: Dataset,
        queries: Dataset,
        *,
        task_metadata: TaskMetadata,
        hf_split: str,
        hf_subset: str,
        top_k: int,
        encode_kwargs: Mapping[str, Any],
        top_ranked: Mapping[str, Sequence[str]] | None = None,
        num_proc: int | None = None,
    ) -> Ranking:
        """Rank the corpus, or the ``top_ranked`` candidates of each query, for one view.

        The first view to ask triggers one pass for all expected views; each takes its ranking away once.

        Raises:
            UserError: If the model gives a vector that is not finite.
        """
        found = self._found.setdefault((task_metadata.name, hf_split, hf_subset), {})
        if view not in found:
            options = {"task_metadata": task_metadata, "hf_split": hf_split, "hf_subset": hf_subset, **encode_kwargs}

            def vectors_of(rows: Dataset, prompt_type: PromptType) -> Tensor:
                return self._vectors_of(rows, prompt_type, num_proc, options)

            views = list(dict.fromkeys([*self._views, view]))
            source = f"documents of {task_metadata.name}"
            ranked = self._rank(views, corpus, queries, top_k, top_ranked, vectors_of, source)
            found.update(zip(views, ranked, strict=True))
        return found.pop(view)()

    def _prompt(self, task_metadata: TaskMetadata, prompt_type: PromptType | None) -> str | None:
        name = self._encoder.get_prompt_name(task_metadata, prompt_type)
        return (self._encoder.model_prompts or {}).get(name) if name else None

    def _rank(
        self,
        views: Sequence[View],
        corpus: Dataset,
        queries: Dataset,
        top_k: int,
        top_ranked: Mapping[str, Sequence[str]] | None,
        vectors_of: Callable[[Dataset, PromptType], Tensor],
        source: str,
    ) -> list[Callable[[], Ranking]]:
        """One pass; tensors are kept, and become dictionaries, many times larger, when a view asks."""
        query_ids, document_ids = list(queries["id"]), list(corpus["id"])
        query_vectors = vectors_of(queries, PromptType.query)
        cuts = [view.compared for view in views]

        def chunks() -> Iterator[tuple[int, Tensor]]:
            for start in range(0, len(corpus), self._chunk_size):
                rows = corpus.select(range(start, min(start + self._chunk_size, len(corpus))))
                vectors = vectors_of(rows, PromptType.document)
                for view in views:
                    view.calibrate(vectors, source)
                yield start, vectors

        if top_ranked is None:
            best = search_chunks(query_vectors, chunks(), cuts, top_k)
            return [
                partial(_ranking, query_ids, document_ids, scores / view.dot_of_equals, positions)
                for view, (scores, positions) in zip(views, best, strict=True)
            ]
        pairs = _candidate_pairs(query_ids, document_ids, top_ranked)
        scored = score_pairs(query_vectors, chunks(), cuts, pairs.to(query_vectors.device))
        return [
            partial(_reranking, query_ids, document_ids, pairs, scores / view.dot_of_equals, top_k)
            for view, scores in zip(views, scored, strict=True)
        ]

    def _vectors_of(
        self, rows: Dataset, prompt_type: PromptType, num_proc: int | None, options: Mapping[str, Any]
    ) -> Tensor:
        """Queries or documents through mteb's own preparation: titles and instructions are joined here, once."""
        loader = create_dataloader(
            rows, task_metadata=options["task_metadata"], prompt_type=prompt_type, num_proc=num_proc
        )
        texts = list(loader.dataset["text"])
        position = {text: i for i, text in enumerate(dict.fromkeys(texts))}
        vectors = self._forward(list(position), prompt_type=prompt_type, **options)
        return vectors.to(self._score_device)[[position[text] for text in texts]]

    def _forward(self, texts: list[str], *, task_metadata: TaskMetadata, **options: Any) -> Tensor:
        loader: DataLoader[Any] = DataLoader(
            Dataset.from_dict({"text": texts}),
            batch_size=options.get("batch_size", 32),
        )
        if self._pool is not None:
            options["pool"] = self._pool
        vectors = torch.as_tensor(self._encoder.encode(loader, task_metadata=task_metadata, **options)).float()
        self.encoded += len(texts)
        if not vectors.isfinite().all():
            raise UserError(
                f"The model gives vectors with NaN or infinity on task {task_metadata.name!r}; "
                "evaluate a checkpoint from before the training diverged."
            )
        return vectors


def _ranking(query_ids: list[str], document_ids: list[str], scores: Tensor, positions: Tensor) -> Ranking:
    rows = zip(query_ids, scores.tolist(), positions.tolist(), strict=True)
    return {
        query: {document_ids[at]: score for score, at in zip(row_scores, row_positions, strict=True)}
        for query, row_scores, row_positions in rows
    }


def _candidate_pairs(query_ids: list[str], document_ids: list[str], top_ranked: Mapping[str, Sequence[str]]) -> Tensor:
    position = {document: i for i, document in enumerate(document_ids)}
    pairs = [(row, position[doc]) for row, query in enumerate(query_ids) for doc in top_ranked.get(query, ())]
    return torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2)


def _reranking(query_ids: list[str], document_ids: list[str], pairs: Tensor, scores: Tensor, top_k: int) -> Ranking:
    ranking: Ranking = {query: {} for query in query_ids}
    order = scores.cpu().argsort(descending=True, stable=True)
    for (row, at), score in zip(pairs[order].tolist(), scores.cpu()[order].tolist(), strict=True):
        if len(ranking[query_ids[row]]) < top_k:
            ranking[query_ids[row]][document_ids[at]] = score
    return ranking
