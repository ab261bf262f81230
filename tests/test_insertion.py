"""A rotation for queries and documents alone: what changes for them, what stays for all else, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Router
from sentence_transformers.sentence_transformer.modules import Normalize

from matryoshka_st.card import read_section
from matryoshka_st.errors import UserError
from matryoshka_st.export import save_model
from matryoshka_st.insertion import has_routes, insert_retrieval_rotation, insert_rotation
from matryoshka_st.rotation import rotate_model

TEXTS = [f"text {number} on topic {number * 7919 % 1013}" for number in range(64)]


def turn(seed: int = 13) -> torch.Tensor:
    return torch.linalg.qr(torch.randn(32, 32, generator=torch.Generator().manual_seed(seed))).Q


@pytest.mark.parametrize("normalizes", [True, False], ids=["with Normalize", "without"])
def test_queries_and_documents_are_rotated_and_other_texts_are_not(
    tiny_model: SentenceTransformer, tmp_path: Path, normalizes: bool
) -> None:
    if not normalizes:
        del tiny_model[-1]
    before = tiny_model.encode(TEXTS)
    insert_retrieval_rotation(tiny_model, turn())
    assert has_routes(tiny_model)
    folder = save_model(tiny_model, tmp_path / "model", dims=[8, 32])
    for model in (tiny_model, SentenceTransformer(str(folder), device="cpu")):
        assert np.allclose(model.encode(TEXTS), before, atol=1e-6)
        for encode in (model.encode_query, model.encode_document):
            assert np.allclose(encode(TEXTS), before @ turn().numpy(), atol=1e-5)
    cut = SentenceTransformer(str(folder), device="cpu", truncate_dim=8)
    assert np.allclose(cut.encode_query(TEXTS), (before @ turn().numpy())[:, :8], atol=1e-5)
    assert np.allclose(cut.encode(TEXTS), before[:, :8], atol=1e-6)


def test_the_rotation_for_retrieval_is_fitted_on_what_the_model_gives(tiny_model: SentenceTransformer) -> None:
    rotate_model(tiny_model, TEXTS[:40])
    before = tiny_model.encode(TEXTS)
    rotate_model(tiny_model, TEXTS, retrieval=True)
    assert np.allclose(tiny_model.encode(TEXTS), before, atol=1e-6)
    energy = np.square(tiny_model.encode_document(TEXTS)).mean(axis=0)
    assert (np.diff(energy) < 1e-6).all()


def test_a_later_rotation_is_for_all_texts(tiny_model: SentenceTransformer) -> None:
    insert_retrieval_rotation(tiny_model, turn())
    before = tiny_model.encode(TEXTS), tiny_model.encode_query(TEXTS)
    insert_rotation(tiny_model, turn(14))
    for old, new in zip(before, (tiny_model.encode(TEXTS), tiny_model.encode_query(TEXTS)), strict=True):
        assert np.allclose(new, old @ turn(14).numpy(), atol=1e-5)


def test_the_card_says_how_to_embed_for_retrieval(tiny_model: SentenceTransformer, tmp_path: Path) -> None:
    def section(name: str) -> str:
        folder = save_model(tiny_model, tmp_path / name, dims=[8])
        return read_section((folder / "README.md").read_text()) or ""

    assert "encode_query" not in section("plain")
    insert_retrieval_rotation(tiny_model, turn())
    assert "embed queries with `encode_query` and documents with `encode_document`" in section("routed")


def test_a_model_with_routes_takes_no_second_rotation_for_retrieval(tiny_model: SentenceTransformer) -> None:
    insert_retrieval_rotation(tiny_model, turn())
    with pytest.raises(UserError, match="The model has a Router, so some texts are embedded otherwise"):
        rotate_model(tiny_model, TEXTS, retrieval=True)
    assert isinstance(tiny_model[-1], Router)
    assert not any(isinstance(module, Normalize) for module in tiny_model)
