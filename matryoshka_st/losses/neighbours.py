"""Every prefix learns who is near whom from embeddings that are known before: no pairs, no labels, any texts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from sentence_transformers import SentenceTransformer
from torch import Tensor, nn

from matryoshka_st.errors import UserError
from matryoshka_st.infonce import check_scale
from matryoshka_st.losses.embedding import at_least_float, check_columns, check_length_groups, full_width, plain_terms
from matryoshka_st.losses.terms import LossTerms
from matryoshka_st.neighbours import divergence, mean_direction, neighbour_log_softmax, without_direction
from matryoshka_st.nesting import MatryoshkaDims, truncate_normalize


class NeighbourDistillLoss(nn.Module):
    """``KL(teacher || prefix)`` of each text's softmax over the other texts of the batch, at every prefix.

    The same that :func:`~matryoshka_st.basis.learn_rotation` minimises by one linear map, here by the whole model. At
    cut dims what all texts have in common is left out of the teacher's vectors, as it tells none apart; the full width
    keeps to the teacher's vectors as they are, at the student's own scale.

    The texts of a batch are each other's candidates, so batches decide what is learned: random texts, and a prefix
    tells topics apart; only the nearest, and it tells paraphrases apart. See
    :class:`~matryoshka_st.training.near_batches.NearBatchSampler` for what lies between.

    Args:
        model: The model to train, at its full width.
        targets: The teacher's embeddings of all training texts, N x G, of any width; usually the model's own before
            training. Kept on the model's device.
        matryoshka_dims: Numbers of leading coordinates, in any order.
        matryoshka_weights: One weight per dim, in the same order. Default: 1 each.
        scale: 1 / temperature of the student's cosines.
        teacher_scale: 1 / temperature of the teacher's cosines at cut dims. Above ``scale``, near texts move apart.
        length_groups: Embed the texts in so many forward passes, those of like length together.

    References:
        - Distilling the Knowledge in a Neural Network: https://arxiv.org/abs/1503.02531
        - Similarity-Preserving Knowledge Distillation: https://arxiv.org/abs/1907.09682

    Inputs:
        +-------+-----------------------------------+
        | Texts | Labels                            |
        +=======+===================================+
        | text  | row of the text among the targets |
        +-------+-----------------------------------+

    Relations:
        - :class:`~matryoshka_st.losses.regularizers.TeacherDistillLoss` compares queries with documents; here every
          text is both, and the teacher does not run during training.
        - The rows of one process are each other's candidates, not those of others.

    Example:
        ::

            targets = model.encode(texts, convert_to_tensor=True)
            loss = NeighbourDistillLoss(model, targets, [384, 128, 32])
            train_dataset = Dataset.from_dict({"text": texts, "label": range(len(texts))})

    Raises:
        UserError: If dims, weights, scales or targets are not valid, or the model has a ``truncate_dim``.
    """

    targets: Tensor
    common: Tensor

    def __init__(
        self,
        model: SentenceTransformer,
        targets: Float[Tensor, "n width"],
        matryoshka_dims: Sequence[int],
        matryoshka_weights: Sequence[float] | None = None,
        *,
        scale: float = 20.0,
        teacher_scale: float = 40.0,
        length_groups: int = 1,
    ) -> None:
        super().__init__()
        self.width = full_width(model)
        self.nesting = MatryoshkaDims.of(matryoshka_dims, matryoshka_weights, width=self.width)
        check_scale(scale)
        check_scale(teacher_scale)
        check_length_groups(length_groups)
        if targets.ndim != 2 or not len(targets):
            raise UserError(f"The targets are {tuple(targets.shape)}; give one embedding per training text.")
        self.model = model
        self.register_buffer("targets", targets.to(model.device), persistent=False)
        self.register_buffer("common", mean_direction(targets.to(model.device)), persistent=False)
        self.scale = scale
        self.teacher_scale = teacher_scale
        self.length_groups = length_groups

    def forward(self, sentence_features: Iterable[dict[str, Tensor]], labels: Tensor | None = None) -> LossTerms:
        """Embed the texts and return ``{"loss_neighbours_dim_<d>": weight * divergence}`` for each dim, ascending."""

        def terms_of(embeddings: list[Tensor]) -> LossTerms:
            return self.compute_loss_from_embeddings(embeddings, labels)

        return plain_terms(self.model, list(sentence_features), terms_of, self.length_groups)

    def compute_loss_from_embeddings(self, embeddings: Sequence[Tensor], labels: Tensor | None = None) -> LossTerms:
        """The same from embeddings: one column, B x D.

        Raises:
            UserError: If there is another number of columns, fewer than 3 texts, or labels that are no targets.
        """
        check_columns(embeddings, self.nesting.dims[-1], least=1)
        if len(embeddings) != 1:
            raise UserError(f"NeighbourDistillLoss got {len(embeddings)} text columns; give one, named 'text'.")
        x = at_least_float(embeddings[0])
        if len(x) < 3:
            raise UserError(f"A batch of {len(x)} texts has no neighbours to compare; give 3 or more.")
        if labels is None or labels.shape != (len(x),):
            raise UserError(
                f"The labels are {None if labels is None else tuple(labels.shape)} for {len(x)} texts; give each "
                "text's row among the targets."
            )
        first, last = map(int, labels.aminmax())
        if not 0 <= first <= last < len(self.targets):
            raise UserError(
                f"The labels go from {first} to {last}, and there are {len(self.targets)} targets; give each text's "
                "row among them, from 0."
            )
        found = self.targets[labels].to(x.dtype)
        with torch.autocast(x.device.type, enabled=False):
            near = neighbour_log_softmax(without_direction(found, self.common).to(x.dtype), self.teacher_scale)
            full = neighbour_log_softmax(F.normalize(found, dim=-1), self.scale)
            return LossTerms(
                {
                    f"loss_neighbours_dim_{dim}": weight
                    * divergence(full if dim == self.width else near, truncate_normalize(x, dim), self.scale)
                    for dim, weight in zip(self.nesting.dims, self.nesting.weights, strict=True)
                }
            )

    def get_config_dict(self) -> dict[str, Any]:
        """The arguments, as JSON-able values, for the model card."""
        return {
            "matryoshka_dims": list(self.nesting.dims),
            "matryoshka_weights": list(self.nesting.weights),
            "scale": self.scale,
            "teacher_scale": self.teacher_scale,
            "length_groups": self.length_groups,
        }

    @property
    def citation(self) -> str:
        """BibTeX of the paper it follows."""
        return """
@inproceedings{tung2019similarity,
    title={Similarity-Preserving Knowledge Distillation},
    author={Tung, Frederick and Mori, Greg},
    booktitle={ICCV},
    year={2019},
    eprint={1907.09682},
    archivePrefix={arXiv}
}
"""
