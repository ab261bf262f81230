"""A teacher that embeds the batch while the student trains on it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from sentence_transformers import SentenceTransformer
from sentence_transformers.base.losses.gradcache import uses_gradient_cache
from torch import Tensor, nn

from matryoshka_st.errors import UserError
from matryoshka_st.losses.beside import guide_embeddings
from matryoshka_st.losses.combined import described
from matryoshka_st.losses.terms import LossTerms


class TaughtLoss(nn.Module):
    """Gives a loss the embeddings of a frozen teacher as its labels, computed batch by batch.

    Put it around a :class:`~matryoshka_st.losses.combined.CombinedLoss` that holds a
    :class:`~matryoshka_st.losses.regularizers.TeacherDistillLoss`; the other losses in there take no labels. With the
    untrained model as its own teacher, the student keeps what that model knew while it learns something else
    (learning without forgetting, arXiv 1606.09282).

    Args:
        model: The model to train.
        teacher: Any sentence-transformers model, of any width; run once per step, without gradients.
        loss: A loss that takes labels B x C x G: for each of B rows, G numbers for each of C columns.

    References:
        - Distilling Dense Representations for Ranking: https://arxiv.org/abs/2010.11386
        - Learning without Forgetting: https://arxiv.org/abs/1606.09282

    Inputs:
        Those of the loss, without labels.

    Example:
        ::

            terms = {"contrastive": MatryoshkaContrastiveLoss(model, dims), "teacher": TeacherDistillLoss(model, dims)}
            loss = TaughtLoss(model, load_model("bundled"), CombinedLoss(model, terms))

    Raises:
        UserError: If the teacher is the model itself.
    """

    batch_size = 32

    def __init__(self, model: SentenceTransformer, teacher: SentenceTransformer, loss: nn.Module) -> None:
        super().__init__()
        if teacher is model:
            raise UserError("The teacher is the model that is trained; load it a second time.")
        self.model = model
        self.tokenizer = model.tokenizer
        self.teacher = teacher.eval().requires_grad_(False)
        self.loss = loss
        self.uses_gradient_cache = uses_gradient_cache(loss)

    def forward(self, sentence_features: Iterable[dict[str, Tensor]], labels: Tensor | None = None) -> LossTerms:
        """The loss of the columns, given the teacher's embeddings of them; labels are not used."""
        features = list(sentence_features)
        taught = guide_embeddings(self.teacher, self.tokenizer, features, self.batch_size)
        terms: LossTerms = self.loss(features, taught.transpose(0, 1))
        return terms

    def get_config_dict(self) -> dict[str, Any]:
        """The arguments, as JSON-able values, for the model card."""
        return {"teacher": self.teacher.model_card_data.base_model, "loss": described(self.loss)}

    @property
    def citation(self) -> str:
        """BibTeX of what the loss implements."""
        return getattr(self.loss, "citation", "")
