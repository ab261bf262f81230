"""Terms beside the contrastive one, at every prefix: spread-out regularisation, and distillation from a teacher."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from sentence_transformers import SentenceTransformer
from torch import Tensor, nn

from matryoshka_st.errors import UserError
from matryoshka_st.infonce import check_scale
from matryoshka_st.losses.embedding import at_least_float, check_columns, full_width, plain_terms, require_rows
from matryoshka_st.losses.terms import LossTerms
from matryoshka_st.nesting import MatryoshkaDims, truncate_normalize


def spread_out(x: Float[Tensor, "rows dim"]) -> tuple[Tensor, Tensor]:
    """How far vectors are from spreading evenly: two numbers that are 0 for them (arXiv 1708.06320).

    Over all pairs of rows, ``mean(cosine)^2`` and ``max(mean(cosine^2) - 1 / dim, 0)``, from a Gram matrix of rows or
    of coordinates, whichever is smaller.

    Args:
        x: Unit vectors.

    >>> [value.item() for value in spread_out(torch.eye(3)[:, :2])]
    [0.0, 0.0]
    """
    rows, dim = x.shape
    pairs = max(rows * (rows - 1), 1)
    norms = x.pow(2).sum(1)
    gram = x @ x.T if rows < dim else x.T @ x
    mean = (x.sum(0).pow(2).sum() - norms.sum()) / pairs
    second_moment = (gram.pow(2).sum() - norms.pow(2).sum()) / pairs
    return mean.pow(2), torch.relu(second_moment - 1 / dim)


def teacher_divergence(scores: Float[Tensor, "rows candidates"], teacher: Float[Tensor, "rows candidates"]) -> Tensor:
    """``KL(teacher || softmax of the scores)`` over each row's candidates, averaged over rows.

    Args:
        scores: Of the student, scaled.
        teacher: Log-probabilities.
    """
    return F.kl_div(torch.log_softmax(scores, dim=1), teacher, reduction="batchmean", log_target=True)


class SpreadOutLoss(nn.Module):
    """Spread-out (global orthogonal) regularisation of every prefix, in each column.

    At each dim the sum of the two terms of sentence-transformers' ``GlobalOrthogonalRegularizationLoss`` on the
    truncated, normalised embeddings. Combine it with a contrastive loss by
    :class:`~matryoshka_st.losses.combined.CombinedLoss`.

    Args:
        model: The model to train, at its full width.
        matryoshka_dims: Numbers of leading coordinates, in any order.
        matryoshka_weights: One weight per dim, in the same order. Default: 1 each.
        mean_weight: Weight of the squared mean cosine; EmbeddingGemma uses 0.
        second_moment_weight: Weight of what the mean squared cosine exceeds 1 / dim by.
        aggregation: ``mean`` or ``sum`` over the columns; EmbeddingGemma sums.

    References:
        - Learning Spread-out Local Feature Descriptors: https://arxiv.org/abs/1708.06320
        - EmbeddingGemma: https://arxiv.org/abs/2509.20354

    Inputs:
        +-------+--------+
        | Texts | Labels |
        +=======+========+
        | any   | none   |
        +-------+--------+

    Relations:
        - The rows of one process: unlike contrastive terms it has no use for those of others.

    Example:
        ::

            loss = CombinedLoss(
                model,
                {"contrastive": MatryoshkaContrastiveLoss(model, dims), "spread": SpreadOutLoss(model, dims)},
                weights={"spread": 0.1},
            )

    Raises:
        UserError: If dims, weights or aggregation are not valid, or the model has a ``truncate_dim``.
    """

    def __init__(
        self,
        model: SentenceTransformer,
        matryoshka_dims: Sequence[int],
        matryoshka_weights: Sequence[float] | None = None,
        *,
        mean_weight: float = 1.0,
        second_moment_weight: float = 1.0,
        aggregation: Literal["mean", "sum"] = "mean",
    ) -> None:
        super().__init__()
        self.nesting = MatryoshkaDims.of(matryoshka_dims, matryoshka_weights, width=full_width(model))
        if aggregation not in ("mean", "sum"):
            raise UserError(f"aggregation is {aggregation!r}; use 'mean' or 'sum'.")
        if min(mean_weight, second_moment_weight) < 0 or not (mean_weight or second_moment_weight):
            raise UserError(
                f"mean_weight is {mean_weight} and second_moment_weight {second_moment_weight}; "
                "they are 0 or more, and not both 0."
            )
        self.model = model
        self.mean_weight = mean_weight
        self.second_moment_weight = second_moment_weight
        self.aggregation = aggregation

    def forward(self, sentence_features: Iterable[dict[str, Tensor]], labels: Tensor | None = None) -> LossTerms:
        """Embed the columns and return ``{"loss_spread_out_dim_<d>": weight * term}`` for each dim, ascending."""
        return plain_terms(self.model, list(sentence_features), self.compute_loss_from_embeddings)

    def compute_loss_from_embeddings(self, embeddings: Sequence[Tensor], labels: Tensor | None = None) -> LossTerms:
        """The same from embeddings, B x D for each column; labels are not used."""
        check_columns(embeddings, self.nesting.dims[-1], least=1)
        require_rows(embeddings)
        columns = [at_least_float(column) for column in embeddings]
        terms = LossTerms()
        with torch.autocast(columns[0].device.type, enabled=False):
            for dim, weight in zip(self.nesting.dims, self.nesting.weights, strict=True):
                values = torch.stack([self._term(truncate_normalize(column, dim)) for column in columns])
                total = values.sum() if self.aggregation == "sum" else values.mean()
                terms[f"loss_spread_out_dim_{dim}"] = weight * total
        return terms

    def _term(self, x: Tensor) -> Tensor:
        mean, second_moment = spread_out(x)
        return self.mean_weight * mean + self.second_moment_weight * second_moment

    def get_config_dict(self) -> dict[str, Any]:
        """The arguments, as JSON-able values, for the model card."""
        return {
            "matryoshka_dims": list(self.nesting.dims),
            "matryoshka_weights": list(self.nesting.weights),
            "mean_weight": self.mean_weight,
            "second_moment_weight": self.second_moment_weight,
            "aggregation": self.aggregation,
        }

    @property
    def citation(self) -> str:
        """BibTeX of the paper it implements."""
        return """
@misc{zhang2017learning,
    title={Learning Spread-out Local Feature Descriptors},
    author={Zhang, Xu and Yu, Felix X. and Kumar, Sanjiv and Chang, Shih-Fu},
    year={2017},
    eprint={1708.06320},
    archivePrefix={arXiv}
}
"""


class TeacherDistillLoss(nn.Module):
    """Every prefix learns a teacher's similarities: ``KL(teacher || prefix)`` over the candidates of each query.

    Labels say what the teacher thinks: its **scores** of each candidate column (then the candidates are the row's own
    texts, as in ``DistillKLDivLoss``), or its **embeddings** of each column (then they are all documents of the batch,
    and the teacher may have any width).

    Args:
        model: The model to train, at its full width.
        matryoshka_dims: Numbers of leading coordinates, in any order.
        matryoshka_weights: One weight per dim, in the same order. Default: 1 each.
        scale: 1 / temperature of the student's cosines.
        teacher_scale: 1 / temperature of the teacher's scores or cosines. Default: ``scale``.

    References:
        - Distilling Dense Representations for Ranking: https://arxiv.org/abs/2010.11386

    Inputs:
        +-------------------------------------------------+------------------------------------+
        | Texts                                           | Labels                             |
        +=================================================+====================================+
        | (anchor, positive, negative_1, ..., negative_n) | teacher scores, 1 + n per row      |
        +-------------------------------------------------+------------------------------------+
        | (anchor, positive, negative_1, ..., negative_n) | teacher embeddings, 2 + n per row  |
        +-------------------------------------------------+------------------------------------+

    Relations:
        - ``distill_weight`` of :class:`~matryoshka_st.losses.contrastive.MatryoshkaContrastiveLoss` needs no teacher.
        - Unlike that, it keeps a score matrix per dim.
        - ``DistillKLDivLoss`` also divides by ``scale ** 2``; give the weight of this term instead.

    Example:
        ::

            rows = {"anchor": [...], "positive": [...], "negative": [...], "label": [[0.9, 0.2], ...]}
            loss = TeacherDistillLoss(model, [384, 128, 32])

    Raises:
        UserError: If dims, weights or scales are not valid, or the model has a ``truncate_dim``.
    """

    def __init__(
        self,
        model: SentenceTransformer,
        matryoshka_dims: Sequence[int],
        matryoshka_weights: Sequence[float] | None = None,
        *,
        scale: float = 20.0,
        teacher_scale: float | None = None,
    ) -> None:
        super().__init__()
        self.nesting = MatryoshkaDims.of(matryoshka_dims, matryoshka_weights, width=full_width(model))
        check_scale(scale)
        check_scale(scale if teacher_scale is None else teacher_scale)
        self.model = model
        self.scale = scale
        self.teacher_scale = scale if teacher_scale is None else teacher_scale

    def forward(self, sentence_features: Iterable[dict[str, Tensor]], labels: Tensor | None = None) -> LossTerms:
        """Embed the columns and return ``{"loss_teacher_dim_<d>": weight * divergence}`` for each dim, ascending."""
        features = list(sentence_features)
        return plain_terms(self.model, features, lambda x: self.compute_loss_from_embeddings(x, labels))

    def compute_loss_from_embeddings(self, embeddings: Sequence[Tensor], labels: Tensor | None = None) -> LossTerms:
        """The same from embeddings, B x D for each column.

        Raises:
            UserError: If the labels are neither scores nor embeddings of these columns.
        """
        check_columns(embeddings, self.nesting.dims[-1], least=2)
        require_rows(embeddings)
        rows, columns = len(embeddings[0]), len(embeddings)
        x = at_least_float(torch.stack(list(embeddings)))
        teacher = None if labels is None else labels.detach().to(x)
        in_batch = teacher is not None and teacher.ndim == 3
        with torch.autocast(x.device.type, enabled=False):
            if teacher is not None and in_batch and teacher.shape[:2] == (rows, columns):
                teacher = _in_batch_scores(F.normalize(teacher.transpose(0, 1), dim=2))
            elif teacher is None or teacher.shape != (rows, columns - 1) or columns < 3:
                raise UserError(
                    f"The labels are {None if labels is None else tuple(labels.shape)} for {rows} rows of {columns} "
                    f"columns; give teacher scores, {columns - 1} per row and 2 at least, or {columns} embeddings."
                )
            wanted = torch.log_softmax(self.teacher_scale * teacher, dim=1)
            score = _in_batch_scores if in_batch else _own_scores
            return LossTerms(
                {
                    f"loss_teacher_dim_{dim}": weight
                    * teacher_divergence(self.scale * score(truncate_normalize(x, dim)), wanted)
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
        }

    @property
    def citation(self) -> str:
        """BibTeX of the paper it follows."""
        return """
@misc{lin2020distilling,
    title={Distilling Dense Representations for Ranking using Tightly-Coupled Teachers},
    author={Lin, Sheng-Chieh and Yang, Jheng-Hong and Lin, Jimmy},
    year={2020},
    eprint={2010.11386},
    archivePrefix={arXiv}
}
"""


def _in_batch_scores(x: Tensor) -> Tensor:
    """Of columns C x B x D: each query against all documents, B x (C - 1)B."""
    return x[0] @ x[1:].flatten(0, 1).T


def _own_scores(x: Tensor) -> Tensor:
    """Of columns C x B x D: each query against its own candidates, B x (C - 1)."""
    return torch.einsum("bd,cbd->bc", x[0], x[1:])
