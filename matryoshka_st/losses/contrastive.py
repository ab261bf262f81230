"""The contrastive Matryoshka loss as a sentence-transformers loss module."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.losses.merged_forward import embed_columns
from torch import Tensor, nn

from matryoshka_st.errors import UserError
from matryoshka_st.infonce import DirectionName, PartitionMode, check_scale, nested_infonce, softmax_groups
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
        scale: 1 / temperature, multiplies the cosines; 20 is usual.
        directions: Which scores enter the softmax: ``query_to_doc`` (always), ``query_to_query``, ``doc_to_query``,
            ``doc_to_doc``, as in ``MultipleNegativesRankingLoss``.
        partition_mode: ``joint``: one softmax over all directions; ``per_direction``: one each, averaged.

    References:
        - Matryoshka Representation Learning: https://arxiv.org/abs/2205.13147, equation 1
        - InfoNCE: https://arxiv.org/abs/1807.03748, equation 4

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
        - Use ``BatchSamplers.NO_DUPLICATES``, so that no in-batch negative equals the positive.

    Relations:
        - It returns a dict, one named term per dim (``loss_dim_64``: weight times loss), which the trainer sums and
          logs; therefore it cannot itself be wrapped in ``MatryoshkaLoss`` or ``AdaptiveLayerLoss``.

    Example:
        ::

            loss = MatryoshkaContrastiveLoss(model, matryoshka_dims=[384, 256, 128, 64, 32])
            SentenceTransformerTrainer(model=model, train_dataset=pairs, loss=loss).train()

    Raises:
        UserError: If dims, weights, scale, directions or partition mode are not valid, or the model has a
            ``truncate_dim``.
    """

    def __init__(
        self,
        model: SentenceTransformer,
        matryoshka_dims: Sequence[int],
        matryoshka_weights: Sequence[float] | None = None,
        scale: float = 20.0,
        directions: Sequence[DirectionName] = ("query_to_doc",),
        partition_mode: PartitionMode = "joint",
    ) -> None:
        super().__init__()
        if model.truncate_dim is not None:
            raise UserError(
                f"The model has truncate_dim={model.truncate_dim}, which hides the width to train; "
                "load it without truncate_dim."
            )
        width = model.get_embedding_dimension()
        self.nesting = MatryoshkaDims.of(matryoshka_dims, matryoshka_weights, width=width)
        check_scale(scale)
        softmax_groups(directions, partition_mode)
        if width is not None and width not in self.nesting.dims:
            logger.warning(
                "matryoshka_dims %s leaves out the full width %d, which will not be trained; include it unless the "
                "model is only ever used truncated.",
                self.nesting.dims,
                width,
            )
        self.model = model
        self.scale = scale
        self.directions = tuple(directions)
        self.partition_mode: PartitionMode = partition_mode

    def forward(
        self, sentence_features: Iterable[dict[str, Tensor]], labels: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Embed the columns and return ``{"loss_dim_<d>": weight * loss}`` for each dim, ascending.

        Raises:
            UserError: If there are fewer than two columns.
        """
        embeddings = embed_columns(self.model, sentence_features)
        return self.compute_loss_from_embeddings(embeddings)

    def compute_loss_from_embeddings(self, embeddings: Sequence[Tensor]) -> dict[str, Tensor]:
        """The same from embeddings: anchors, positives, then each column of negatives, B x D each."""
        if len(embeddings) < 2:
            raise UserError(f"The loss got {len(embeddings)} text column; give anchor, positive and any negatives.")
        losses = nested_infonce(
            embeddings[0],
            torch.cat(list(embeddings[1:])),
            matryoshka_dims=self.nesting.dims,
            matryoshka_weights=self.nesting.weights,
            scale=self.scale,
            directions=self.directions,
            partition_mode=self.partition_mode,
        )
        return {f"loss_dim_{dim}": loss for dim, loss in zip(self.nesting.dims, losses.unbind(), strict=True)}

    def get_config_dict(self) -> dict[str, Any]:
        """The arguments, as JSON-able values, for the model card."""
        return {
            "matryoshka_dims": list(self.nesting.dims),
            "matryoshka_weights": list(self.nesting.weights),
            "scale": self.scale,
            "directions": list(self.directions),
            "partition_mode": self.partition_mode,
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
