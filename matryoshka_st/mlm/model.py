"""A ``BertForMaskedLM`` that predicts from every prefix of its hidden states, with the weights of a plain one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from transformers import BertConfig, BertForMaskedLM
from transformers.utils.generic import ModelOutput

from matryoshka_st.mlm.loss import nested_cross_entropy, token_scores
from matryoshka_st.nesting import MatryoshkaDims

IGNORED = -100


@dataclass
class MatryoshkaMaskedLMOutput(ModelOutput):
    """What a forward pass gives: the loss, and in evaluation what each text adds to each scored dim."""

    loss: Tensor | None = None
    """Weighted sum over the trained dims of the cross-entropy per masked token, in nats."""
    losses: Float[Tensor, "texts dims"] | None = None
    """Cross-entropy summed over the masked tokens of each text; in evaluation only."""
    hits: Float[Tensor, "texts dims"] | None = None
    """Masked tokens of each text that are predicted right; in evaluation only."""


class MatryoshkaBertForMaskedLM(BertForMaskedLM):
    """Trains the prefixes; its weights load as a plain ``BertForMaskedLM``, which is what it is at full width.

    Only masked tokens reach the head.

    Args:
        config: The model's.
        nested: The trained dims, with the weights of their losses.
        scored: Dims that evaluation scores; they hold the trained ones.
        nest: ``encoder``: prefixes of the encoder's output, which a sentence embedding is pooled from; the head sees
            nothing else of it. ``head``: prefixes of the head's output, right before the decoder.
    """

    accepts_loss_kwargs = True

    def __init__(
        self, config: BertConfig, nested: MatryoshkaDims, scored: Sequence[int], nest: str = "encoder"
    ) -> None:
        super().__init__(config)
        self.nested = nested
        self.scored = tuple(scored)
        self.nest = nest

    def forward(
        self,
        input_ids: Int[Tensor, "texts length"],
        attention_mask: Int[Tensor, "texts length"],
        labels: Int[Tensor, "texts length"],
        token_type_ids: Int[Tensor, "texts length"] | None = None,
        num_items_in_batch: Tensor | int | None = None,
    ) -> MatryoshkaMaskedLMOutput:
        """The loss of a batch.

        Args:
            input_ids: Token ids, some of them masked.
            attention_mask: 1 for tokens, 0 for padding.
            labels: The ids of masked tokens, -100 elsewhere.
            token_type_ids: Default: 0.
            num_items_in_batch: What to divide the loss by; default: the masked tokens of this batch. The trainer
                gives those of all batches of a step, so that accumulated gradients are those of one large batch.
        """
        hidden = self.bert(input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids)[0]
        masked = labels != IGNORED
        words = labels[masked]
        count = words.numel() if num_items_in_batch is None else num_items_in_batch
        if self.training:
            prefixes = self._prefixes(hidden[masked], self.nested.dims)
            loss = nested_cross_entropy(prefixes, *self._decoder(), words, self.nested.weights)
            return MatryoshkaMaskedLMOutput(loss=loss / max(count, 1))
        losses, hits = token_scores(self._prefixes(hidden[masked], self.scored), *self._decoder(), words)
        trained = losses[:, [self.scored.index(dim) for dim in self.nested.dims]].sum(dim=0)
        texts = masked.nonzero()[:, 0]
        nothing = losses.new_zeros(len(labels), len(self.scored))
        return MatryoshkaMaskedLMOutput(
            loss=trained @ trained.new_tensor(self.nested.weights) / max(count, 1),
            losses=nothing.index_add(0, texts, losses),
            hits=nothing.index_add(0, texts, hits.to(nothing.dtype)),
        )

    def _prefixes(self, hidden: Float[Tensor, "tokens width"], dims: Sequence[int]) -> list[Tensor]:
        transform, width = self.cls.predictions.transform, hidden.shape[-1]
        if self.nest == "head":
            states = transform(hidden)
            return [states[:, :dim] for dim in dims]
        return [transform(F.pad(hidden[:, :dim], (0, width - dim)))[:, :dim] for dim in dims]

    def _decoder(self) -> tuple[Tensor, Tensor]:
        decoder = self.cls.predictions.decoder
        return decoder.weight, decoder.bias
