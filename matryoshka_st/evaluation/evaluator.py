"""In-training evaluators: encode each text once, score every dim.

Metric names are ``"{name}-{dim}_..."`` and ``"{name}-mean_..."`` (over the dims), so that ``metric_for_best_model`` of
the trainer can be any of them, with ``eval_`` in front.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
from scipy.stats import spearmanr
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.evaluation.evaluator import BaseEvaluator
from sentence_transformers.sentence_transformer.evaluation import InformationRetrievalEvaluator
from sentence_transformers.util import dot_score, pairwise_dot_score, semantic_search
from torch import Tensor

from matryoshka_st.errors import UserError
from matryoshka_st.nesting import MatryoshkaDims, truncate_normalize


class MatryoshkaEvaluator(BaseEvaluator):
    """What the evaluators share: one encoding, one score per dim, names and the model card.

    Args:
        dims: Prefixes to score.
        name: Start of every metric name.
        batch_size: Texts per forward pass.
        show_progress_bar: Whether encoding shows a bar.

    Raises:
        UserError: If a dim is not valid.
    """

    metric: str
    label: str

    def __init__(
        self, dims: Sequence[int], *, name: str = "dev", batch_size: int = 64, show_progress_bar: bool = False
    ) -> None:
        super().__init__()
        self.dims = MatryoshkaDims.of(dims).dims
        self.name = name
        self.batch_size = batch_size
        self.show_progress_bar = show_progress_bar
        self.primary_metric: str = f"{name}-mean_{self.metric}"

    def __call__(  # type: ignore[override]  # these evaluators are for embedding models only
        self, model: SentenceTransformer, output_path: str | None = None, epoch: float = -1, steps: int = -1
    ) -> dict[str, float]:
        """Score every dim, 0 to 1, with the mean over dims last."""
        scores = self.scores(model)
        metrics = {self.metric_name(dim): score for dim, score in scores.items()}
        metrics[self.primary_metric] = sum(scores.values()) / len(scores)
        self.store_metrics_in_model_card_data(model, metrics, int(epoch), steps)
        return metrics

    def metric_name(self, dim: int) -> str:
        """The key under which the score at ``dim`` is reported."""
        return f"{self.name}-{dim}_{self.metric}"

    @abstractmethod
    def scores(self, model: SentenceTransformer) -> dict[int, float]:
        """The score at each dim, 0 to 1 (rank correlations: -1 to 1)."""

    def get_config_dict(self) -> dict[str, Any]:
        """What the model card shows of it."""
        return {"dims": list(self.dims)}

    def _encoding(self) -> dict[str, Any]:
        return {
            "batch_size": self.batch_size,
            "show_progress_bar": self.show_progress_bar,
            "convert_to_tensor": True,
            "truncate_dim": None,
        }


class MatryoshkaSTSEvaluator(MatryoshkaEvaluator):
    """Spearman rank correlation of the cosine with human similarity, at each dim.

    Args:
        sentences1: First sentences.
        sentences2: Second sentences, as many.
        gold: Similarity of each pair, on any scale.
        options: ``dims``, ``name``, ``batch_size``, ``show_progress_bar`` of :class:`MatryoshkaEvaluator`.

    Raises:
        UserError: If the lengths differ or there are fewer than two pairs.
    """

    metric = "spearman_cosine"
    label = "Spearman of the cosine"

    def __init__(
        self, sentences1: Sequence[str], sentences2: Sequence[str], gold: Sequence[float], **options: Any
    ) -> None:
        super().__init__(**options)
        if not len(sentences1) == len(sentences2) == len(gold) or len(gold) < 2:
            raise UserError(
                f"STS needs as many first sentences ({len(sentences1)}) as second ({len(sentences2)}) and scores "
                f"({len(gold)}), two or more."
            )
        self.texts = list(dict.fromkeys([*sentences1, *sentences2]))
        row = {text: i for i, text in enumerate(self.texts)}
        self.pairs = torch.tensor([[row[a], row[b]] for a, b in zip(sentences1, sentences2, strict=True)])
        self.gold = list(gold)

    def scores(self, model: SentenceTransformer) -> dict[int, float]:
        """Spearman correlation at each dim."""
        embeddings = model.encode(self.texts, **self._encoding()).float().cpu()
        return {dim: self._spearman(truncate_normalize(embeddings, dim)) for dim in self.dims}

    def _spearman(self, embeddings: Tensor) -> float:
        cosines = pairwise_dot_score(embeddings[self.pairs[:, 0]], embeddings[self.pairs[:, 1]])
        return float(spearmanr(cosines.numpy(), self.gold).statistic)


class MatryoshkaRetrievalEvaluator(MatryoshkaEvaluator):
    """nDCG@10 of finding each query's positives among all positives, at each dim.

    Args:
        queries: Queries; a repeated one has several positives.
        positives: The positive of each query, as many.
        options: ``dims``, ``name``, ``batch_size``, ``show_progress_bar`` of :class:`MatryoshkaEvaluator`.

    Raises:
        UserError: If the lengths differ or are zero.
    """

    metric = "cosine_ndcg@10"
    label = "nDCG@10"

    def __init__(self, queries: Sequence[str], positives: Sequence[str], **options: Any) -> None:
        super().__init__(**options)
        if len(queries) != len(positives) or not queries:
            raise UserError(
                f"Retrieval needs as many queries ({len(queries)}) as positives ({len(positives)}), one or more."
            )
        relevant: dict[str, set[str]] = {}
        for query, positive in zip(queries, positives, strict=True):
            relevant.setdefault(query, set()).add(positive)
        self.reference = InformationRetrievalEvaluator(
            queries={query: query for query in relevant},
            corpus={positive: positive for positive in dict.fromkeys(positives)},
            relevant_docs=relevant,
        )

    def scores(self, model: SentenceTransformer) -> dict[int, float]:
        """NDCG@10 at each dim."""
        queries = model.encode_query(self.reference.queries, **self._encoding()).float()
        corpus = model.encode_document(self.reference.corpus, **self._encoding()).float()
        return {
            dim: self._ndcg(truncate_normalize(queries, dim), truncate_normalize(corpus, dim)) for dim in self.dims
        }

    def _ndcg(self, queries: Tensor, corpus: Tensor) -> float:
        hits = semantic_search(queries, corpus, top_k=min(10, len(corpus)), score_function=dot_score)
        named: list[object] = [
            [{"corpus_id": self.reference.corpus_ids[int(hit["corpus_id"])], "score": hit["score"]} for hit in found]
            for found in hits
        ]
        return float(self.reference.compute_metrics(named)["ndcg@k"][10])


class MatryoshkaAccuracyEvaluator(MatryoshkaEvaluator):
    """Accuracy of a classifier on each dim.

    Args:
        texts: Texts.
        labels: The class number of each, as many.
        classify: The class numbers for embeddings, n x width, read to a dim.
        options: ``dims``, ``name``, ``batch_size``, ``show_progress_bar`` of :class:`MatryoshkaEvaluator`.

    Raises:
        UserError: If the lengths differ or are zero.
    """

    metric = "accuracy"
    label = "accuracy"

    def __init__(
        self,
        texts: Sequence[str],
        labels: Sequence[int],
        classify: Callable[[Tensor, int], Tensor],
        **options: Any,
    ) -> None:
        super().__init__(**options)
        if len(texts) != len(labels) or not texts:
            raise UserError(f"Accuracy needs as many texts ({len(texts)}) as labels ({len(labels)}), one or more.")
        self.texts = list(texts)
        self.labels = torch.tensor(labels)
        self.classify = classify

    def scores(self, model: SentenceTransformer) -> dict[int, float]:
        """Accuracy at each dim."""
        embeddings = torch.as_tensor(model.encode(self.texts, **self._encoding())).float()
        return {dim: float((self.classify(embeddings, dim).cpu() == self.labels).double().mean()) for dim in self.dims}
