"""The prefix as the whole embedding, in standard modules; and the fixed-size twin of a contrastive recipe."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, Normalize

from matryoshka_st.errors import UserError
from matryoshka_st.fixed import keep_prefix
from matryoshka_st.insertion import insert_rotation
from matryoshka_st.nesting import truncate_normalize

TEXTS = ["red fish", "an old house", "the green sea"]


def embed(model: SentenceTransformer) -> torch.Tensor:
    return model.encode(TEXTS, convert_to_tensor=True)


@pytest.mark.parametrize("rotated", [False, True], ids=["plain", "rotated"])
def test_vectors_are_the_prefixes_at_unit_length(
    tiny_model: SentenceTransformer, tmp_path: Path, rotated: bool
) -> None:
    if rotated:
        insert_rotation(tiny_model, torch.linalg.qr(torch.randn(32, 32)).Q)
    want = truncate_normalize(embed(tiny_model), 8)
    assert keep_prefix(tiny_model, 8) is tiny_model
    torch.testing.assert_close(embed(tiny_model), want)
    tiny_model.save_pretrained(str(tmp_path))
    plain = SentenceTransformer(str(tmp_path), device="cpu")
    assert plain.get_embedding_dimension() == 8
    torch.testing.assert_close(embed(plain), want)
    assert [type(module) for module in plain][-2:] == [Dense, Normalize]
    assert sum(isinstance(module, Dense) for module in plain) == 1


def test_only_a_rotation_goes_on_being_trained(tiny_model: SentenceTransformer) -> None:
    keep_prefix(tiny_model, 16)
    assert not tiny_model[2].linear.weight.requires_grad
    insert_rotation(tiny_model, torch.eye(16))
    assert not tiny_model[2].linear.weight.requires_grad


def test_a_rotation_stays_trainable_when_cut(tiny_model: SentenceTransformer) -> None:
    insert_rotation(tiny_model, torch.eye(32))
    keep_prefix(tiny_model, 16)
    assert tiny_model[2].linear.weight.requires_grad and tiny_model[2].linear.weight.shape == (16, 32)


def test_a_model_without_normalize_keeps_lengths(tiny_model: SentenceTransformer) -> None:
    del tiny_model[-1]
    want = embed(tiny_model)[:, :4]
    torch.testing.assert_close(embed(keep_prefix(tiny_model, 4)), want)


def test_the_full_width_changes_nothing_and_more_is_refused(tiny_model: SentenceTransformer) -> None:
    modules = list(tiny_model)
    assert list(keep_prefix(tiny_model, 32)) == modules
    with pytest.raises(UserError, match="holds 33, above the model's width of 32"):
        keep_prefix(tiny_model, 33)
