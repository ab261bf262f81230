"""The contrastive Matryoshka loss for batches whose activations do not fit the memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sentence_transformers import SentenceTransformer
from torch import Tensor

from matryoshka_st.errors import UserError
from matryoshka_st.losses.contrastive import MatryoshkaContrastiveLoss
from matryoshka_st.losses.embedding import TermsOf, cached_terms, check_mini_batches
from matryoshka_st.losses.terms import LossTerms


class CachedMatryoshkaContrastiveLoss(MatryoshkaContrastiveLoss):
    """:class:`MatryoshkaContrastiveLoss` with cached gradients (GradCache): any batch, one mini-batch of activations.

    The loss and the gradients are those of the loss without a cache. The nested loss is computed once, on all cached
    embeddings, and differentiated once; with ``gather_across_devices`` that is one gather and one reduce-scatter,
    however many mini-batches there are.

    Args:
        model: The model to train, at its full width.
        matryoshka_dims: Numbers of leading coordinates to train, in any order; include the full width.
        matryoshka_weights: One weight per dim, in the same order. Default: 1 each.
        mini_batch_size: Texts per forward pass; as many as fit the memory.
        mini_batch_num_tokens: Pack mini-batches to this many tokens instead.
        **options: Those of :class:`MatryoshkaContrastiveLoss`, by name.

    References:
        - Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup: https://arxiv.org/abs/2101.06983
        - Matryoshka Representation Learning: https://arxiv.org/abs/2205.13147, equation 1

    Requirements:
        1. (anchor, positive) pairs, (anchor, positive, negative) triplets or n-tuples
        2. A large ``per_device_train_batch_size``, a small ``mini_batch_size``

    Inputs:
        As :class:`MatryoshkaContrastiveLoss`.

    Relations:
        - Each step embeds every text twice. Where the batch fits the memory, take :class:`MatryoshkaContrastiveLoss`.
        - The sum of the returned terms is differentiable, single terms are not. ``AdaptiveLayerLoss`` cannot be put
          around it.

    Example:
        ::

            loss = CachedMatryoshkaContrastiveLoss(model, [384, 256, 128, 64, 32], mini_batch_size=64)
            args = SentenceTransformerTrainingArguments(..., per_device_train_batch_size=32768)

    Raises:
        UserError: If an option is not valid, or the model's inputs cannot be cut into mini-batches.
    """

    uses_gradient_cache = True

    def __init__(
        self,
        model: SentenceTransformer,
        matryoshka_dims: Sequence[int],
        matryoshka_weights: Sequence[float] | None = None,
        *,
        mini_batch_size: int = 32,
        mini_batch_num_tokens: int | None = None,
        **options: Any,
    ) -> None:
        check_mini_batches(model, mini_batch_size, mini_batch_num_tokens)
        super().__init__(model, matryoshka_dims, matryoshka_weights, **options)
        self.mini_batch_size = mini_batch_size
        self.mini_batch_num_tokens = mini_batch_num_tokens

    def embed_and_compute(self, features: list[dict[str, Tensor]], terms_of: TermsOf) -> LossTerms:
        """The same, by mini-batches."""
        return cached_terms(self.model, features, terms_of, self.mini_batch_size, self.mini_batch_num_tokens)

    @property
    def calculate_loss(self) -> Any:
        """What sentence-transformers' ``MatryoshkaLoss`` patches in cached losses.

        Raises:
            UserError: Always.
        """
        raise UserError("This loss does what MatryoshkaLoss does, so do not wrap it in one.")

    def get_config_dict(self) -> dict[str, Any]:
        """The arguments, as JSON-able values, for the model card."""
        sizes = {"mini_batch_size": self.mini_batch_size, "mini_batch_num_tokens": self.mini_batch_num_tokens}
        return {**super().get_config_dict(), **sizes}

    @property
    def citation(self) -> str:
        """BibTeX of the papers it implements."""
        return (
            super().citation
            + """@misc{gao2021scaling,
    title={Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup},
    author={Gao, Luyu and Zhang, Yunyi and Han, Jiawei and Callan, Jamie},
    year={2021},
    eprint={2101.06983},
    archivePrefix={arXiv}
}
"""
        )
