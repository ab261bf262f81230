"""The contrastive Matryoshka loss as a sentence-transformers loss module."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.losses.gradcache import uses_gradient_cache
from torch import Tensor, nn

from matryoshka_st.errors import UserError
from matryoshka_st.infonce import DirectionName, Engine, PartitionMode, nested_problem, nested_terms
from matryoshka_st.infonce.problem import QUERIES, HardnessMode, Layout, Margin, MarginStrategy, Similarity
from matryoshka_st.losses.beside import TextBeside, guide_embeddings, text_ids
from matryoshka_st.losses.embedding import (
    TermsOf,
    check_columns,
    check_length_groups,
    full_width,
    plain_terms,
    require_rows,
)
from matryoshka_st.losses.gather import JoinedBatch, joined_batch, world
from matryoshka_st.losses.schedule import PrefixSchedule
from matryoshka_st.losses.terms import LossTerms
from matryoshka_st.nesting import MatryoshkaDims

logger = logging.getLogger(__name__)


class MatryoshkaContrastiveLoss(nn.Module):
    """InfoNCE with in-batch and hard negatives at every prefix of the embedding, in one pass over the width.

    Equal, in loss and gradients, to sentence-transformers' ``MatryoshkaLoss`` around ``MultipleNegativesRankingLoss``,
    without evaluating the loss once per dim and without patching the model.

    Args:
        model: The model to train, at its full width (no ``truncate_dim``).
        matryoshka_dims: Numbers of leading coordinates to train, in any order; include the full width.
        matryoshka_weights: One weight per dim, in the same order. Default: 1 each.
        scale: 1 / temperature, multiplies the similarities; 20 is usual.
        directions: Which scores enter the softmax: ``query_to_doc`` (always), ``query_to_query``, ``doc_to_query``,
            ``doc_to_doc``, as in ``MultipleNegativesRankingLoss``.
        partition_mode: ``joint``: one softmax over all directions; ``per_direction``: one each, averaged.
        similarity: ``cosine`` of the truncated vectors, or their plain ``dot`` product.
        hardness_mode: Which negatives' logits gain ``hardness_strength * similarity``, detached, as in
            ``MultipleNegativesRankingLoss``: ``in_batch_negatives``, ``hard_negatives`` or ``all_negatives``.
        hardness_strength: 0 or more; 9 and 5 are usual for the first two modes.
        gather_across_devices: Contrast with the documents of all processes, each gathered once, at full width. The
            averaged gradient is that of one process on the joined batch. Needs equal batch sizes.
        n_dims_per_step: Train this many dims each step, drawn alike by all processes and uniformly, the full width
            like any other (as ``MatryoshkaLoss`` does), so that the expected loss is ``n_dims_per_step`` in
            ``len(matryoshka_dims)`` parts of the whole. -1: all. Without gradients, all.
        matryoshka_weights_end: Weights at the last step; those in between are interpolated linearly. Needs the
            trainer callback :class:`~matryoshka_st.losses.schedule.WeightSchedule`.
        exclude_duplicates: Leave texts equal to a row's own out of its negatives, and what belongs to an equal query.
        margin: Leave out negatives that score within ``margin`` of the positive, or above it, at full width; see
            :class:`~matryoshka_st.infonce.problem.Margin`. Default: none left out.
        margin_strategy: ``absolute``: above ``positive - margin``; ``relative``: ``positive - |positive| * margin``.
        guide: The model whose scores the margin looks at, as in ``GISTEmbedLoss``; run once per step. Default: the
            trained model's own.
        distill_weight: Weight of the divergence of each prefix's softmax from the full width's, detached, times the
            prefix's own weight (``loss_distill_dim_64``; Starbucks).
        length_groups: Embed each column in so many forward passes, texts of like length together, so that less is
            padded: the same loss and gradients, dropout aside.
        engine: ``tiled`` runs anywhere, ``triton`` on CUDA; ``auto`` takes triton where it can.

    References:
        - Matryoshka Representation Learning: https://arxiv.org/abs/2205.13147, equation 1
        - InfoNCE: https://arxiv.org/abs/1807.03748, equation 4
        - Starbucks (``distill_weight``): https://arxiv.org/abs/2410.13230
        - GISTEmbed (``guide``): https://arxiv.org/abs/2402.16829

    Requirements:
        1. (anchor, positive) pairs, (anchor, positive, negative) triplets or (anchor, positive, negative_1, ...,
           negative_n) n-tuples

    Inputs:
        +-------------------------------------------------+--------+
        | Inputs                                          | Labels |
        +=================================================+========+
        | (anchor, positive) pairs                        | none   |
        +-------------------------------------------------+--------+
        | (anchor, positive, negative) triplets           | none   |
        +-------------------------------------------------+--------+
        | (anchor, positive, negative_1, ..., negative_n) | none   |
        +-------------------------------------------------+--------+

    Recommendations:
        - Use ``BatchSamplers.NO_DUPLICATES`` or ``exclude_duplicates``, so that no negative equals the positive;
          the latter also sees what other processes hold.

    Relations:
        - :class:`~matryoshka_st.losses.cached.CachedMatryoshkaContrastiveLoss` is the same for batches of any size.
        - It returns a dict, one named term per dim (``loss_dim_64``: weight times loss), which the trainer sums and
          logs. ``AdaptiveLayerLoss`` can be put around it; ``MatryoshkaLoss`` has no place there and is refused.

    Example:
        ::

            loss = MatryoshkaContrastiveLoss(model, matryoshka_dims=[384, 256, 128, 64, 32])
            SentenceTransformerTrainer(model=model, train_dataset=pairs, loss=loss).train()

    Raises:
        UserError: If an option is not valid, or the model has a ``truncate_dim``.
    """

    guide_batch_size = 32

    def __init__(
        self,
        model: SentenceTransformer,
        matryoshka_dims: Sequence[int],
        matryoshka_weights: Sequence[float] | None = None,
        scale: float = 20.0,
        directions: Sequence[DirectionName] = ("query_to_doc",),
        partition_mode: PartitionMode = "joint",
        *,
        similarity: Similarity = "cosine",
        hardness_mode: HardnessMode | None = None,
        hardness_strength: float = 0.0,
        gather_across_devices: bool = False,
        n_dims_per_step: int = -1,
        matryoshka_weights_end: Sequence[float] | None = None,
        exclude_duplicates: bool = False,
        margin: float | None = None,
        margin_strategy: MarginStrategy = "absolute",
        guide: SentenceTransformer | None = None,
        distill_weight: float = 0.0,
        length_groups: int = 1,
        engine: Engine = "auto",
    ) -> None:
        super().__init__()
        width = full_width(model)
        self.schedule = PrefixSchedule.of(
            matryoshka_dims, matryoshka_weights, matryoshka_weights_end, n_dims_per_step, width
        )
        self.problem = nested_problem(
            self.nesting.dims,
            Layout(1, 1),
            scale=scale,
            directions=directions,
            partition_mode=partition_mode,
            similarity=similarity,
            hardness_mode=hardness_mode,
            hardness_strength=hardness_strength,
            margin=None if margin is None else Margin(margin, margin_strategy),
            distill=distill_weight > 0,
        )
        _check_terms(self.nesting, distill_weight, guide, margin)
        check_length_groups(length_groups, cached=uses_gradient_cache(self))
        if width is not None and width not in self.nesting.dims:
            logger.warning(
                "matryoshka_dims %s leaves out the full width %d, which will not be trained; include it unless the "
                "model is only ever used truncated.",
                self.nesting.dims,
                width,
            )
        self.model = model
        self.tokenizer = model.tokenizer
        self.guide = guide
        self.directions = tuple(directions)
        self.partition_mode = partition_mode
        self.gather_across_devices = gather_across_devices
        self.exclude_duplicates = exclude_duplicates
        self.distill_weight = distill_weight
        self.length_groups = length_groups
        self.engine: Engine = engine

    @property
    def nesting(self) -> MatryoshkaDims:
        """The dims, ascending, and their weights at the first step."""
        return self.schedule.nesting

    def forward(self, sentence_features: Iterable[dict[str, Tensor]], labels: Tensor | None = None) -> LossTerms:
        """Embed the columns and return ``{"loss_dim_<d>": weight * loss}`` for each dim, ascending.

        Raises:
            UserError: If there are fewer than two columns, or the processes' batches differ in size.
        """
        features = list(sentence_features)
        beside = self.look_beside(features)
        return self.embed_and_compute(features, lambda x: self.compute_loss_from_embeddings(x, labels, beside))

    def embed_and_compute(self, features: list[dict[str, Tensor]], terms_of: TermsOf) -> LossTerms:
        """Embed the columns and compute ``terms_of`` the embeddings."""
        return plain_terms(self.model, features, terms_of, self.length_groups)

    def look_beside(self, features: Sequence[dict[str, Tensor]]) -> TextBeside:
        """What the masks need of the texts themselves, before the model has seen them."""
        ids = torch.stack([text_ids(column) for column in features]) if self.exclude_duplicates else None
        if self.guide is None:
            return TextBeside(ids)
        return TextBeside(ids, guide_embeddings(self.guide, self.tokenizer, features, self.guide_batch_size))

    def compute_loss_from_embeddings(
        self, embeddings: Sequence[Tensor], labels: Tensor | None = None, beside: TextBeside | None = None
    ) -> LossTerms:
        """The same from embeddings: anchors, positives, then each column of negatives, B x D each.

        Args:
            embeddings: One tensor per column.
            labels: Not used.
            beside: What :meth:`look_beside` returned for the same texts.
        """
        check_columns(embeddings, self.nesting.dims[-1], least=2)
        beside = beside or TextBeside()
        if self.exclude_duplicates != (beside.ids is not None) or (self.guide is None) != (beside.guide is None):
            raise UserError("exclude_duplicates and guide need the texts; pass what look_beside() returned.")
        batch = self._joined_batch(embeddings)
        if batch.layout.world_batch > batch.layout.batch:
            beside = beside.joined()
        chosen = self.schedule.chosen(embeddings[0].device)
        teacher = {len(self.nesting) - 1} if self.problem.distill else set()
        asked = sorted(teacher.union(chosen))
        dims = tuple(self.nesting.dims[k] for k in asked)
        problem = replace(self.problem, dims=dims, layout=batch.layout)
        losses = nested_terms(
            batch.queries, batch.documents, problem, beside.as_asked(len(batch.queries), batch.layout), self.engine
        )
        return self._named(losses, asked, chosen)

    def _joined_batch(self, embeddings: Sequence[Tensor]) -> JoinedBatch:
        if self.gather_across_devices and world()[1] > 1:
            queries_too = any(direction.columns == QUERIES for direction in self.problem.directions)
            return joined_batch(embeddings, queries_too=queries_too)
        require_rows(embeddings)
        rows = len(embeddings[0])
        return JoinedBatch(embeddings[0], torch.cat(list(embeddings[1:])), Layout(rows, rows))

    def _named(self, losses: Tensor, asked: list[int], chosen: list[int]) -> LossTerms:
        """The chosen ones of the losses asked for, weighted."""
        dims, weights, terms = self.nesting.dims, self.schedule.weights(), LossTerms()
        for k in chosen:
            terms[f"loss_dim_{dims[k]}"] = weights[k] * losses[0, asked.index(k)]
        if self.problem.distill:
            for k in chosen:
                if k < len(dims) - 1:
                    factor = self.distill_weight * weights[k]
                    terms[f"loss_distill_dim_{dims[k]}"] = factor * losses[1, asked.index(k)]
        return terms

    def get_config_dict(self) -> dict[str, Any]:
        """The arguments, as JSON-able values, for the model card."""
        margin = self.problem.margin
        return {
            "matryoshka_dims": list(self.nesting.dims),
            "matryoshka_weights": list(self.nesting.weights),
            "scale": self.problem.scale,
            "directions": list(self.directions),
            "partition_mode": self.partition_mode,
            "similarity": self.problem.similarity,
            "hardness_mode": self.problem.hardness_mode,
            "hardness_strength": self.problem.hardness_strength,
            "gather_across_devices": self.gather_across_devices,
            "n_dims_per_step": self.schedule.n_dims_per_step,
            "matryoshka_weights_end": self.schedule.weights_end and list(self.schedule.weights_end),
            "exclude_duplicates": self.exclude_duplicates,
            "margin": None if margin is None else margin.value,
            "margin_strategy": None if margin is None else margin.strategy,
            "guide": None if self.guide is None else self.guide.model_card_data.base_model,
            "distill_weight": self.distill_weight,
            "length_groups": self.length_groups,
            "engine": self.engine,
        }

    @property
    def citation(self) -> str:
        """BibTeX of the papers it implements."""
        return """
@inproceedings{kusupati2022matryoshka,
    title={Matryoshka Representation Learning},
    author={Kusupati, Aditya and Bhatt, Gantavya and Rege, Aniket and others},
    booktitle={Advances in Neural Information Processing Systems},
    year={2022},
    eprint={2205.13147},
    archivePrefix={arXiv}
}
@misc{oord2018representation,
    title={Representation Learning with Contrastive Predictive Coding},
    author={van den Oord, Aaron and Li, Yazhe and Vinyals, Oriol},
    year={2018},
    eprint={1807.03748},
    archivePrefix={arXiv}
}
"""


def _check_terms(
    nesting: MatryoshkaDims, distill_weight: float, guide: SentenceTransformer | None, margin: float | None
) -> None:
    if not 0 <= distill_weight < math.inf or (distill_weight and len(nesting) == 1):
        raise UserError(
            f"distill_weight is {distill_weight} for {len(nesting)} dims; it is a finite number of 0 or more, and "
            "needs a prefix beside the widest dim."
        )
    if guide is not None and margin is None:
        raise UserError(
            "A guide is given but no margin; margin=0.0 leaves out what the guide ranks above the positive."
        )
