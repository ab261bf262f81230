"""Fixtures shared by all tests: a tiny BERT made on the spot, the bundled MiniLM, and the data beside the project."""

from __future__ import annotations

import os

os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", HF_DATASETS_DISABLE_PROGRESS_BARS="1")

import string
from pathlib import Path

import pytest
import torch

if not torch.cuda.is_available():  # then triton's kernels are interpreted; it looks when it is first imported
    os.environ["TRITON_INTERPRET"] = "1"

from hypothesis import settings
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer
from transformers import BertConfig, BertModel, BertTokenizerFast, set_seed

settings.register_profile("seeded", derandomize=True)
settings.load_profile("seeded")

ROOT = Path(__file__).resolve().parents[1]
TINY_WIDTH = 32


@pytest.fixture(autouse=True)
def _seeded() -> None:
    set_seed(13)


@pytest.fixture(scope="session")
def tiny_bert_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plain transformers BERT checkpoint: 2 layers, width 32, a vocabulary of letters and their continuations."""
    folder = tmp_path_factory.mktemp("tiny-bert")
    letters = string.ascii_lowercase + string.digits + string.punctuation
    vocab = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{letter}" for letter in letters)]
    (folder / "vocab.txt").write_text("\n".join(vocab))
    BertTokenizerFast(vocab=str(folder / "vocab.txt")).save_pretrained(folder)
    set_seed(13)
    config = BertConfig(
        vocab_size=len(vocab),
        hidden_size=TINY_WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
    )
    BertModel(config).save_pretrained(folder)
    return folder


@pytest.fixture
def tiny_model(tiny_bert_path: Path) -> SentenceTransformer:
    """A random sentence-transformers model of width 32: Transformer, mean pooling, Normalize."""
    transformer = Transformer(str(tiny_bert_path), max_seq_length=32)
    pooling = Pooling(transformer.get_embedding_dimension(), pooling_mode="mean")
    return SentenceTransformer(modules=[transformer, pooling, Normalize()], device="cpu")


@pytest.fixture(scope="session")
def tiny_model_path(tiny_bert_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model, saved as a sentence-transformers folder."""
    folder = tmp_path_factory.mktemp("tiny-model") / "tiny"
    transformer = Transformer(str(tiny_bert_path), max_seq_length=32)
    pooling = Pooling(transformer.get_embedding_dimension(), pooling_mode="mean")
    SentenceTransformer(modules=[transformer, pooling, Normalize()], device="cpu").save_pretrained(str(folder))
    return folder


@pytest.fixture(scope="session")
def bundled() -> SentenceTransformer:
    """The bundled all-MiniLM-L6-v2; tests must not change it."""
    from matryoshka_st.models import load_model

    return load_model("bundled", device="cpu")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The evaluation data and pairs that lie beside a checkout; they are not part of the project."""
    folder = Path(os.environ.get("MATRYOSHKA_ST_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"needs real data in {folder} (set MATRYOSHKA_ST_DATA to point elsewhere)")
    return folder
