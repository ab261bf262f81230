"""What the masks of a batch need beside its embeddings: an id per text, and a guide's embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor

from matryoshka_st.errors import UserError
from matryoshka_st.infonce.problem import Beside, Layout
from matryoshka_st.losses.gather import gather

# SplitMix64 (Steele et al. 2014), its constants as signed integers
_GOLDEN = -7046029254386353131
_ROUNDS = ((30, -4658895280553007687), (27, -7723592293110705685))
_LAST_SHIFT = 31


class TextBeside(NamedTuple):
    """Of each column's rows: ids, C x B, and the guide's embeddings, C x B x G."""

    ids: Tensor | None = None
    guide: Tensor | None = None

    def joined(self) -> TextBeside:
        """Those of all processes' rows; one more gather for each that is there."""
        return TextBeside(*(None if tensor is None else gather(tensor) for tensor in self))

    def as_asked(self, queries: int, layout: Layout) -> Beside:
        """As the engine takes it for so many queries: those of all processes or this one's."""
        beside = Beside()
        if self.ids is not None:
            beside = beside._replace(query_ids=self.ids[0], document_ids=self.ids[1:].flatten())
        if self.guide is not None:
            start = 0 if queries == layout.world_batch else layout.offset
            query_guide = self.guide[0][start : start + queries]
            beside = beside._replace(query_guide=query_guide, document_guide=self.guide[1:].flatten(0, 1))
        return beside


def text_ids(features: dict[str, Any]) -> Tensor:
    """A 64-bit hash of each text's tokens: equal texts have equal ids, whatever the padding.

    Args:
        features: One tokenized column: padded (``attention_mask``), flattened (``cu_seq_lens_q``) or a bag
            (``offsets``).

    Raises:
        UserError: If there are no token ids.
    """
    tokens = features.get("input_ids")
    if not isinstance(tokens, Tensor):
        raise UserError("exclude_duplicates compares token ids, and this model's inputs have none; leave it out.")
    starts = features["cu_seq_lens_q"][:-1] if "cu_seq_lens_q" in features else features.get("offsets")
    if starts is None:
        mask = features["attention_mask"].bool()
        ids: Tensor = (_mixed(tokens, mask.cumsum(1)) * mask).sum(1)
        return ids
    tokens, starts = tokens.flatten().long(), starts.long()
    places = torch.arange(len(tokens), device=tokens.device)
    rows = torch.bucketize(places, starts[1:], right=True)
    return tokens.new_zeros(len(starts)).index_add(0, rows, _mixed(tokens, 1 + places - starts[rows]))


def guide_embeddings(
    guide: SentenceTransformer, tokenizer: Any, columns: Sequence[dict[str, Any]], batch_size: int
) -> Tensor:
    """The guide's embeddings of each column's texts, C x B x G, without gradients.

    Args:
        guide: Any sentence-transformers model.
        tokenizer: That of the columns; the guide reads what it decodes.
        columns: Tokenized batches of the same number of texts.
        batch_size: Texts per forward pass of the guide.
    """
    texts = [text for features in columns for text in _decoded(tokenizer, features)]
    embeddings = guide.encode(texts, prompt="", batch_size=batch_size, convert_to_tensor=True, show_progress_bar=False)
    by_column = embeddings.clone().view(len(columns), len(texts) // len(columns), embeddings.shape[-1])
    return by_column.to(columns[0]["input_ids"].device)


def _decoded(tokenizer: Any, features: dict[str, Any]) -> list[str]:
    tokens = features["input_ids"]
    if "cu_seq_lens_q" in features:
        tokens = tokens[0].split(features["cu_seq_lens_q"].diff().tolist())
    elif "offsets" in features:
        tokens = tokens.tensor_split(features["offsets"][1:].tolist())
    decode = getattr(tokenizer, "batch_decode", None) or tokenizer.decode_batch  # of transformers, of tokenizers
    texts: list[str] = decode([row.tolist() for row in tokens], skip_special_tokens=True)
    return texts


def _mixed(tokens: Tensor, positions: Tensor) -> Tensor:
    """SplitMix64 of (token, position); 64-bit products wrap around on every device."""
    x = (positions.long() << 32) + tokens.long() + _GOLDEN
    for shift, multiplier in _ROUNDS:
        x = (x ^ (x >> shift)) * multiplier
    return x ^ (x >> _LAST_SHIFT)
