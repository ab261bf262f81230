"""Saving: dims are declared where consumers look, and a folder is written whole or not at all."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, Pooling, StaticEmbedding, Transformer
from torch import nn
from transformers import AutoTokenizer, ElectraConfig, ElectraModel

from matryoshka_st.errors import UserError
from matryoshka_st.export import check_target, declare_dims, declared_dims, save_model

PROBES = ["a cat", "the capital of france"]


def config_of(folder: Path) -> dict[str, object]:
    return json.loads((folder / "config.json").read_text())


def test_declared_dims_are_saved_ascending_with_the_full_width_and_survive_reload(
    tiny_model: SentenceTransformer, tmp_path: Path
) -> None:
    assert declared_dims(tiny_model) is None
    folder = save_model(tiny_model, tmp_path / "out", dims=[16, 8])
    config = config_of(folder)
    assert config["is_matryoshka"] is True
    assert config["matryoshka_dimensions"] == [8, 16, 32]
    assert "embedding_size" not in config
    again = SentenceTransformer(str(folder), device="cpu")
    assert declared_dims(folder) == declared_dims(str(folder)) == declared_dims(again) == (8, 16, 32)
    again.save_pretrained(str(tmp_path / "again"))
    assert declared_dims(tmp_path / "again") == (8, 16, 32)


def test_width_other_than_the_hidden_size_is_declared_as_embedding_size(
    tiny_model: SentenceTransformer, tmp_path: Path
) -> None:
    tiny_model.insert(2, Dense(32, 24, bias=False, activation_function=nn.Identity()))
    folder = save_model(tiny_model, tmp_path / "out", dims=[8])
    assert config_of(folder)["embedding_size"] == 24
    assert declared_dims(folder) == (8, 24)


def test_embedding_size_that_belongs_to_the_architecture_is_not_overwritten(
    tiny_bert_path: Path, tmp_path: Path
) -> None:
    config = ElectraConfig(
        vocab_size=200, embedding_size=16, hidden_size=32, num_hidden_layers=1, num_attention_heads=2
    )
    ElectraModel(config).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(tiny_bert_path).save_pretrained(tmp_path)
    transformer, pooling = Transformer(str(tmp_path)), Pooling(32)
    model = SentenceTransformer(modules=[transformer, pooling], device="cpu")
    assert declare_dims(model, [8]) == (8, 32)
    model.append(Dense(32, 24))
    with pytest.raises(UserError, match="width 24 is not the hidden size of this electra model"):
        declare_dims(model, [8])
    assert transformer.model.config.embedding_size == 16


def test_invalid_dims_are_refused(tiny_model: SentenceTransformer) -> None:
    with pytest.raises(UserError, match="matryoshka_dims holds 64, above the model's width of 32"):
        declare_dims(tiny_model, [64])
    with pytest.raises(UserError, match="matryoshka_dims holds 0"):
        declare_dims(tiny_model, [0])


def test_model_without_a_transformer_cannot_declare_dims(tiny_bert_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_bert_path)
    model = SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_dim=16)], device="cpu")
    assert declared_dims(model) is None
    with pytest.raises(UserError, match=r"starts with StaticEmbedding, which has no config\.json"):
        declare_dims(model, [8])


def test_folder_without_a_config_declares_nothing_readable(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"config\.json cannot be read"):
        declared_dims(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(UserError, match="holds no JSON object"):
        declared_dims(tmp_path)


def test_saved_folder_is_complete_and_leaves_nothing_beside_it(
    tiny_model: SentenceTransformer, tmp_path: Path
) -> None:
    folder = save_model(tiny_model, tmp_path / "new" / "out", dims=[8])
    assert [path.name for path in folder.parent.iterdir()] == ["out"]
    assert not list(folder.rglob("*.bin"))
    reloaded = SentenceTransformer(str(folder), device="cpu")
    assert np.allclose(tiny_model.encode(PROBES), reloaded.encode(PROBES), atol=1e-6)


def test_a_truncated_model_is_not_saved(tiny_model: SentenceTransformer, tmp_path: Path) -> None:
    tiny_model.truncate_dim = 8
    with pytest.raises(UserError, match=r"cut to truncate_dim=8.*set model\.truncate_dim = None before"):
        save_model(tiny_model, tmp_path / "out", dims=[8])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_non_finite_weights_are_not_saved(tiny_model: SentenceTransformer, tmp_path: Path, value: float) -> None:
    name, weight = list(tiny_model.named_parameters())[3]
    with torch.no_grad():
        weight.view(-1)[0] = value
    with pytest.raises(UserError, match=f"The weights '{name}' are not finite"):
        save_model(tiny_model, tmp_path / "out", dims=[8])
    assert not list(tmp_path.iterdir())


def test_a_model_with_an_adapter_is_not_saved(tiny_model: SentenceTransformer, tmp_path: Path) -> None:
    from peft import LoraConfig

    tiny_model.add_adapter(LoraConfig(target_modules=["query"], r=2))
    with pytest.raises(UserError, match="still carries a PEFT adapter; merge it"):
        save_model(tiny_model, tmp_path / "out", dims=[8])


def test_an_earlier_model_is_replaced_whole(tiny_model: SentenceTransformer, tmp_path: Path) -> None:
    folder = save_model(tiny_model, tmp_path / "out", dims=[8])
    (folder / "stale.txt").write_text("from the earlier model")
    save_model(tiny_model, folder, dims=[4])
    assert declared_dims(folder) == (4, 32)
    assert not (folder / "stale.txt").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_link_to_a_model_folder_stays_a_link(tiny_model: SentenceTransformer, tmp_path: Path) -> None:
    folder = save_model(tiny_model, tmp_path / "out", dims=[8])
    link = tmp_path / "latest"
    link.symlink_to(folder)
    assert save_model(tiny_model, link, dims=[4]) == link
    assert link.is_symlink()
    assert declared_dims(folder) == (4, 32)


def test_a_failed_save_keeps_the_earlier_model(
    tiny_model: SentenceTransformer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save_model(tiny_model, tmp_path / "out", dims=[8])

    def full_disk(self: Pooling, output_path: str, **kwargs: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(Pooling, "save", full_disk)
    with pytest.raises(OSError, match="No space left"):
        save_model(tiny_model, folder, dims=[4])
    assert declared_dims(folder) == (8, 32)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_failed_rename_puts_the_earlier_model_back(
    tiny_model: SentenceTransformer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save_model(tiny_model, tmp_path / "out", dims=[8])
    rename = Path.rename

    def refuse_new(self: Path, target: Path) -> Path:
        if self.name.endswith(".partial"):
            raise OSError("interrupted")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refuse_new)
    with pytest.raises(OSError, match="interrupted"):
        save_model(tiny_model, folder, dims=[4])
    assert declared_dims(folder) == (8, 32)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_leftovers_of_a_killed_save_do_not_block_the_next(tiny_model: SentenceTransformer, tmp_path: Path) -> None:
    for leftover in (".out.partial", ".out.previous"):
        (tmp_path / leftover).mkdir()
        (tmp_path / leftover / "half.json").write_text("{")
    folder = save_model(tiny_model, tmp_path / "out", dims=[8])
    assert not (folder / "half.json").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_folders_of_something_else_are_not_replaced(tiny_model: SentenceTransformer, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match="is not empty and holds no model to replace; give a new or an empty folder"):
        save_model(tiny_model, tmp_path, dims=[8])
    with pytest.raises(UserError, match="is not a folder; give a new or an empty folder"):
        save_model(tiny_model, tmp_path / "thesis.txt", dims=[8])
    with pytest.raises(UserError, match=r"thesis\.txt/new/out cannot be written, as .*thesis\.txt is a file"):
        save_model(tiny_model, tmp_path / "thesis.txt" / "new" / "out", dims=[8])
    assert (tmp_path / "thesis.txt").read_text() == "mine"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_may_not_be_written_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o555)
    with pytest.raises(UserError, match=r"new/out cannot be written, as .* may not be written to; give another path"):
        check_target(tmp_path / "new" / "out")
    tmp_path.chmod(0o755)
