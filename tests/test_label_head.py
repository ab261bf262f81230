"""A head saved beside its model: the same answers after loading, and one sentence for what is broken."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from sentence_transformers import SentenceTransformer

from matryoshka_st.errors import UserError
from matryoshka_st.export import save_model
from matryoshka_st.label_head import FOLDER, LabelHead
from matryoshka_st.losses import MatryoshkaLinear
from matryoshka_st.verify import verify_model

LABELS = ("card", "cash", "pin")


def head(efficient: bool = False) -> LabelHead:
    return LabelHead(MatryoshkaLinear([4, 32], 3, efficient, scale=10.0), LABELS)


@pytest.mark.parametrize("efficient", [False, True])
def test_it_answers_alike_after_loading(tmp_path: Path, efficient: bool) -> None:
    saved = head(efficient)
    saved.save(tmp_path)
    loaded = LabelHead.load(tmp_path)
    x = torch.randn(5, 32)
    assert loaded.labels == LABELS and loaded.dims == (4, 32)
    for dim in (4, 32):
        assert torch.equal(loaded.probabilities(x, dim), saved.probabilities(x, dim))
    assert sorted(path.name for path in tmp_path.iterdir()) == [FOLDER]


def test_a_truncated_vector_needs_no_dim_and_its_length_does_not_matter() -> None:
    x = torch.randn(6, 32)
    asked = head()
    assert asked.predict(x[:, :4]) == asked.predict(x, dim=4) == asked.predict(7 * x.numpy(), dim=4)
    assert asked.probabilities(x).sum(dim=1).tolist() == pytest.approx([1] * 6)


def test_it_is_saved_with_the_model_in_one_piece(tiny_model: SentenceTransformer, tmp_path: Path) -> None:
    save_model(tiny_model, tmp_path / "model", dims=[4, 32], beside=head().save)
    assert LabelHead.load(tmp_path / "model").labels == LABELS
    assert verify_model(tmp_path / "model").ok
    plain = SentenceTransformer(str(tmp_path / "model"), device="cpu", truncate_dim=4)
    assert len(LabelHead.load(tmp_path / "model").predict(plain.encode(["where is my card"]))) == 1

    def fail(folder: Path) -> None:
        head().save(folder)
        raise OSError("the disk is full")

    before = (tmp_path / "model" / FOLDER / "config.json").stat().st_ino
    with pytest.raises(OSError, match="disk is full"):
        save_model(tiny_model, tmp_path / "model", dims=[4, 32], beside=fail)
    assert (tmp_path / "model" / FOLDER / "config.json").stat().st_ino == before
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def cut_short(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-20])


def another_size(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "matryoshka_dims": [8, 32]}))


def newer(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "schema_version": 2}))


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (cut_short, r"model\.safetensors cannot be read \(.*\); train or copy the model again"),
        (another_size, r"model\.safetensors cannot be read \(Error.* in loading state_dict for MatryoshkaLinear\)"),
        (newer, r"has schema_version 2 and this release reads 1"),
        (lambda folder: (folder / "model.safetensors").unlink(), r"model\.safetensors cannot be read"),
        (lambda folder: (folder / "config.json").unlink(), r"config\.json does not describe a head"),
        (lambda folder: (folder / "config.json").write_text("{"), r"config\.json does not describe a head"),
        (lambda folder: (folder / "config.json").write_text("[]"), r"config\.json does not describe a head"),
        (lambda folder: (folder / "config.json").write_text("{}"), r"does not describe a head \(KeyError"),
    ],
)
def test_broken_heads_are_one_sentence(tmp_path: Path, spoil: Callable[[Path], None], sentence: str) -> None:
    head().save(tmp_path)
    spoil(tmp_path / FOLDER)
    with pytest.raises(UserError, match=sentence) as caught:
        LabelHead.load(tmp_path)
    assert "\n" not in str(caught.value)


def test_what_it_cannot_do_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no matryoshka_head; train one with"):
        LabelHead.load(tmp_path)
    with pytest.raises(UserError, match="does not exist; save the model first"):
        head().save(tmp_path / "nowhere")
    with pytest.raises(UserError, match="no classifier for 8 dims; use one of 4, 32"):
        head().predict(torch.randn(2, 32), dim=8)
    with pytest.raises(UserError, match=r"vectors are \(2, 4\); give rows of 32 coordinates or more"):
        head().predict(torch.randn(2, 4), dim=32)
    with pytest.raises(UserError, match="not finite"):
        head().predict(torch.full((1, 4), torch.nan))
    with pytest.raises(UserError, match="3 classes and 2 different labels; give each class one"):
        LabelHead(MatryoshkaLinear([4], 3), ("a", "b", "a"))
