"""Classification at every prefix: the linear heads of the MRL paper, and their loss for labelled text.

Matryoshka Representation Learning (arXiv 2205.13147), equation 1 and algorithms 1 and 2.

Legend: B texts, D width, C classes, prefixes of d_1 < ... < d_K <= D coordinates.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from sentence_transformers import SentenceTransformer
from torch import Tensor, nn
from torch.func import functional_call

from matryoshka_st.errors import UserError
from matryoshka_st.infonce import check_scale
from matryoshka_st.losses.embedding import (
    at_least_float,
    check_columns,
    check_length_groups,
    full_width,
    plain_terms,
    require_rows,
)
from matryoshka_st.losses.gather import average_gradient, world
from matryoshka_st.losses.terms import LossTerms
from matryoshka_st.nesting import MatryoshkaDims, truncate_normalize

_EPS = 1e-12  # that of truncate_normalize


class MatryoshkaLinear(nn.Module):
    """Linear classifiers on every prefix: one for each (MRL), or one whose weights they share (MRL-E).

    A shared classifier uses its first ``d`` weights per class on the first ``d`` coordinates. Its scores nest, so all
    prefixes together cost one pass over the width.

    Args:
        nesting: Numbers of leading coordinates, in any order.
        num_classes: 2 or more.
        efficient: Share the weights (MRL-E).
        scale: Classify the prefixes at unit length, times this; ``None``: as they are, as the paper does. On vectors
            of length 1, a few coordinates are too small for a plain classifier to learn from at usual rates.

    References:
        - Matryoshka Representation Learning: https://arxiv.org/abs/2205.13147, algorithms 1 and 2
        - Low-Shot Learning with Imprinted Weights (:meth:`set_class_means`): https://arxiv.org/abs/1712.07136

    Raises:
        UserError: If an argument is not valid.

    >>> MatryoshkaLinear([8, 16], 10).memory_bytes(), MatryoshkaLinear([8, 16], 10, efficient=True).memory_bytes()
    (1040, 680)
    """

    def __init__(
        self, nesting: Sequence[int], num_classes: int, efficient: bool = False, *, scale: float | None = None
    ) -> None:
        super().__init__()
        self.dims = MatryoshkaDims.of(nesting).dims
        if isinstance(num_classes, bool) or not isinstance(num_classes, int) or num_classes < 2:
            raise UserError(f"num_classes is {num_classes!r}; it is a whole number of 2 or more.")
        if scale is not None:
            check_scale(scale)
        self.num_classes = num_classes
        self.efficient = efficient
        self.scale = scale
        widths = self.dims[-1:] if efficient else self.dims
        self.heads = nn.ModuleDict({str(dim): nn.Linear(dim, num_classes) for dim in widths})

    def forward(self, x: Float[Tensor, "batch width"]) -> list[Float[Tensor, "batch classes"]]:
        """The logits of every prefix, shortest first.

        Raises:
            UserError: If the vectors are shorter than the longest prefix.
        """
        self._check(x, self.dims[-1])
        return [self._of_scores(scores, x, dim) for scores, dim in zip(self._scores(x), self.dims, strict=True)]

    def logits(self, x: Float[Tensor, "batch width"], dim: int) -> Float[Tensor, "batch classes"]:
        """The logits of one prefix, for vectors of that length or longer.

        Raises:
            UserError: If there is no classifier for this dim, or the vectors are shorter.
        """
        if dim not in self.dims:
            raise UserError(f"The head has no classifier for {dim} dims; use one of {', '.join(map(str, self.dims))}.")
        self._check(x, dim)
        return self._of_scores(x[:, :dim] @ self._linear(dim).weight[:, :dim].T, x, dim)

    @torch.no_grad()
    def set_class_means(self, x: Float[Tensor, "n width"], labels: Int[Tensor, " n"]) -> None:
        """Set the weights of each class to the mean of its texts, at unit length, and the biases to 0.

        The head then answers with the nearest class mean, by cosine; one with shared weights does so at its full
        width, and at a shorter prefix compares with the cut means as they are, which are not of one length.

        Args:
            x: Embeddings of labelled texts.
            labels: Their classes.

        Raises:
            UserError: If a class has no text.
        """
        counts = torch.bincount(labels, minlength=self.num_classes)
        if not counts.all():
            raise UserError(f"Class {int((counts == 0).nonzero()[0])} has no text; give one or more of every class.")
        for linear in self._linears():
            unit = truncate_normalize(x.to(linear.weight), linear.in_features)
            sums = torch.zeros_like(linear.weight).index_add_(0, labels.to(unit.device), unit)
            linear.weight.copy_(F.normalize(sums, dim=-1))
            linear.bias.zero_()

    def memory_bytes(self) -> int:
        """The size of its weights in memory."""
        return sum(parameter.numel() * parameter.element_size() for parameter in self.parameters())

    def get_config_dict(self) -> dict[str, Any]:
        """The arguments, as JSON-able values."""
        return {
            "matryoshka_dims": list(self.dims),
            "num_classes": self.num_classes,
            "efficient": self.efficient,
            "scale": self.scale,
        }

    def _linears(self) -> list[nn.Linear]:
        return [linear for linear in self.heads.values() if isinstance(linear, nn.Linear)]

    def _linear(self, dim: int) -> Any:
        return self.heads[str(self.dims[-1] if self.efficient else dim)]

    def _scores(self, x: Tensor) -> list[Tensor]:
        """Weights times coordinates, B x C for each prefix; ``x[:, :d]`` is a view, nothing is copied."""
        if not self.efficient:
            return [x[:, :dim] @ self._linear(dim).weight.T for dim in self.dims]
        weight = self._linear(self.dims[-1]).weight
        scores = [x[:, : self.dims[0]] @ weight[:, : self.dims[0]].T]
        for start, stop in zip(self.dims, self.dims[1:], strict=False):
            scores.append(torch.addmm(scores[-1], x[:, start:stop], weight[:, start:stop].T))
        return scores

    def _of_scores(self, scores: Tensor, x: Tensor, dim: int) -> Tensor:
        if self.scale is not None:
            norm = torch.linalg.vector_norm(x[:, :dim], dim=1, keepdim=True).clamp_min(_EPS)
            scores = scores * (self.scale / norm)
        logits: Tensor = scores + self._linear(dim).bias
        return logits

    def _check(self, x: Tensor, dim: int) -> None:
        if x.ndim != 2 or x.shape[1] < dim:
            raise UserError(f"The vectors are {tuple(x.shape)}; give rows of {dim} coordinates or more.")


class MatryoshkaClassificationLoss(nn.Module):
    """Cross-entropy of a linear classifier on every prefix of the embedding, weighted and summed (equation 1).

    The classifiers, ``head``, are trained with the model. They belong to the loss, so save them beside the model with
    :class:`~matryoshka_st.label_head.LabelHead`; our trainer keeps them in its checkpoints.

    Args:
        model: The model to train, at its full width (no ``truncate_dim``).
        num_classes: Labels are whole numbers from 0 to one less.
        matryoshka_dims: Numbers of leading coordinates to train, in any order.
        matryoshka_weights: One weight per dim, in the same order. Default: 1 each.
        efficient: One classifier for all prefixes (MRL-E) instead of one each (MRL).
        scale: 1 / temperature, as in the contrastive losses: it multiplies prefixes of unit length. ``None``:
            prefixes as they are, as in the paper.
        length_groups: Embed a batch in so many forward passes, texts of like length together, so that less is padded:
            the same loss and gradients, dropout aside.

    References:
        - Matryoshka Representation Learning: https://arxiv.org/abs/2205.13147, equation 1, algorithm 2

    Inputs:
        +-------+------------------+
        | Texts | Labels           |
        +=======+==================+
        | text  | class, 0 to C-1  |
        +-------+------------------+

    Recommendations:
        - ``loss.head.set_class_means(embeddings, labels)`` before training starts from the nearest class mean instead
          of random weights.

    Relations:
        - It returns a dict, one named term per dim (``loss_dim_64``: weight times loss), which the trainer sums and
          logs.
        - Across processes the gradient of the head is averaged, like that of the model; sentence-transformers'
          ``SoftmaxLoss`` leaves it to each process.

    Example:
        ::

            data = Dataset.from_dict({"text": ["Where is my card?", "I lost my PIN."], "label": [0, 1]})
            loss = MatryoshkaClassificationLoss(model, num_classes=2, matryoshka_dims=[384, 128, 32])
            SentenceTransformerTrainer(model=model, train_dataset=data, loss=loss).train()

    Raises:
        UserError: If an option is not valid, or the model has a ``truncate_dim``.
    """

    def __init__(
        self,
        model: SentenceTransformer,
        num_classes: int,
        matryoshka_dims: Sequence[int],
        matryoshka_weights: Sequence[float] | None = None,
        *,
        efficient: bool = False,
        scale: float | None = 20.0,
        length_groups: int = 1,
    ) -> None:
        super().__init__()
        check_length_groups(length_groups)
        self.nesting = MatryoshkaDims.of(matryoshka_dims, matryoshka_weights, width=full_width(model))
        self.model = model
        self.length_groups = length_groups
        self.head = MatryoshkaLinear(self.nesting.dims, num_classes, efficient, scale=scale).to(model.device)

    def forward(self, sentence_features: Iterable[dict[str, Tensor]], labels: Tensor | None = None) -> LossTerms:
        """Embed the texts and return ``{"loss_dim_<d>": weight * loss}`` for each dim, ascending.

        Raises:
            UserError: If there is not one column of texts with one class each.
        """
        features = list(sentence_features)
        return plain_terms(
            self.model, features, lambda x: self.compute_loss_from_embeddings(x, labels), self.length_groups
        )

    def compute_loss_from_embeddings(self, embeddings: Sequence[Tensor], labels: Tensor | None = None) -> LossTerms:
        """The same from embeddings: one column, B x D."""
        if len(embeddings) != 1:
            raise UserError(f"The loss got {len(embeddings)} text columns; give one, and a column label of classes.")
        check_columns(embeddings, self.nesting.dims[-1], least=1)
        require_rows(embeddings)
        x = embeddings[0]
        classes = _checked(labels, len(x), self.head.num_classes).to(x.device)
        with torch.autocast(x.device.type, enabled=False):
            logits = self._logits(at_least_float(x))
            return LossTerms(
                {
                    f"loss_dim_{dim}": weight * F.cross_entropy(logits_BC, classes)
                    for dim, weight, logits_BC in zip(self.nesting.dims, self.nesting.weights, logits, strict=True)
                }
            )

    def _logits(self, x: Tensor) -> list[Tensor]:
        if world()[1] == 1:
            logits: list[Tensor] = self.head(x)
            return logits
        named = dict(self.head.named_parameters())
        averaged = average_gradient(list(named.values()))
        shared: list[Tensor] = functional_call(self.head, dict(zip(named, averaged, strict=True)), (x,))
        return shared

    def get_config_dict(self) -> dict[str, Any]:
        """The arguments, as JSON-able values, for the model card."""
        head = self.head.get_config_dict()
        return {
            "num_classes": head["num_classes"],
            "matryoshka_dims": list(self.nesting.dims),
            "matryoshka_weights": list(self.nesting.weights),
            "efficient": head["efficient"],
            "scale": head["scale"],
            "length_groups": self.length_groups,
        }

    @property
    def citation(self) -> str:
        """BibTeX of the paper it implements."""
        return """
@inproceedings{kusupati2022matryoshka,
    title={Matryoshka Representation Learning},
    author={Kusupati, Aditya and Bhatt, Gantavya and Rege, Aniket and others},
    booktitle={Advances in Neural Information Processing Systems},
    year={2022},
    eprint={2205.13147},
    archivePrefix={arXiv}
}
"""


def _checked(labels: Tensor | None, rows: int, num_classes: int) -> Tensor:
    allowed = f"give each text one whole number from 0 to {num_classes - 1} in a column label"
    if labels is None:
        raise UserError(f"There are no labels; {allowed}.")
    if labels.is_floating_point() or labels.dtype == torch.bool or labels.shape != (rows,):
        raise UserError(f"The labels are {labels.dtype}, {tuple(labels.shape)}, for {rows} texts; {allowed}.")
    least, most = int(labels.min()), int(labels.max())
    if least < 0 or most >= num_classes:
        raise UserError(f"The labels hold {least if least < 0 else most}; {allowed}.")
    return labels.long()
