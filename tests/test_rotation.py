"""The rotation: what it keeps (full-width cosines), what it improves (prefixes), and where it sits in a model."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.evaluation import InformationRetrievalEvaluator
from sentence_transformers.sentence_transformer.modules import Dense, Normalize
from torch import Tensor, nn

from matryoshka_st.basis import fit_rotation
from matryoshka_st.errors import UserError
from matryoshka_st.export import declared_dims
from matryoshka_st.insertion import insert_rotation
from matryoshka_st.nesting import truncate_normalize
from matryoshka_st.rotation import rotate, rotate_model

TEXTS = [f"text {number} on topic {number * 7919 % 1013}" for number in range(64)]
PROBES = ["a cat", "the capital of france", "x", "text 3 on topic 456"]


def cosines(embeddings: np.ndarray) -> np.ndarray:
    unit = embeddings.astype(np.float64) / np.linalg.norm(embeddings.astype(np.float64), axis=-1, keepdims=True)
    return unit @ unit.T


def skewed(count: int, width: int) -> Tensor:
    return torch.randn(count, width) @ torch.randn(width, width) + 2


@pytest.mark.parametrize(("count", "width"), [(200, 32), (47, 47), (9000, 5)])
def test_rotation_holds_the_right_singular_vectors_in_descending_order(count: int, width: int) -> None:
    embeddings = skewed(count, width)
    rotation = fit_rotation(embeddings)
    _, singular, vectors = torch.linalg.svd(nn.functional.normalize(embeddings.double(), dim=-1), full_matrices=False)
    overlap = (vectors @ rotation.double()).abs()
    assert torch.allclose(overlap, torch.eye(width, dtype=torch.float64), atol=1e-5)
    assert (singular.diff() <= 0).all()


def test_rotation_is_orthogonal_and_repeatable() -> None:
    embeddings = skewed(100, 32)
    rotation = fit_rotation(embeddings)
    assert rotation.dtype == torch.float32
    assert torch.allclose(rotation.double().T @ rotation.double(), torch.eye(32, dtype=torch.float64), atol=1e-6)
    assert torch.equal(rotation, fit_rotation(embeddings.clone()))


def test_lengths_of_embeddings_and_order_of_texts_do_not_matter() -> None:
    embeddings = skewed(100, 16)
    rescaled = embeddings * torch.rand(100, 1).add(0.1)
    assert torch.allclose(fit_rotation(embeddings), fit_rotation(rescaled[torch.randperm(100)]), atol=1e-5)


def test_no_other_basis_keeps_more_of_the_dot_products() -> None:
    unit = nn.functional.normalize(skewed(300, 24).double(), dim=-1)
    gram = unit @ unit.T
    rotated = unit @ fit_rotation(unit).double()
    other = unit @ torch.linalg.qr(torch.randn(24, 24, dtype=torch.float64)).Q
    for dim in (2, 6, 12):
        errors = [(gram - x[:, :dim] @ x[:, :dim].T).norm() for x in (rotated, other, unit)]
        assert errors[0] < min(errors[1:])


def test_fewer_texts_than_the_width_give_a_full_basis_and_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="matryoshka_st.rotation"):
        rotation = fit_rotation(skewed(5, 16))
    assert torch.allclose(rotation.T @ rotation, torch.eye(16), atol=1e-6)
    assert "width 16 on 5 texts" in caplog.text


def test_unusable_embeddings_are_refused() -> None:
    with pytest.raises(UserError, match="There are no embeddings to fit a rotation on"):
        fit_rotation(torch.empty(0, 8))
    broken = torch.randn(20, 8)
    broken[7, 3] = float("nan")
    with pytest.raises(UserError, match="Embedding 7 of 20 is not finite"):
        fit_rotation(broken)


def test_rotated_model_keeps_full_width_cosines_and_sorts_the_variance(tiny_model: SentenceTransformer) -> None:
    before = tiny_model.encode(PROBES)
    model = rotate_model(tiny_model, TEXTS)
    after = model.encode(PROBES)
    assert model is tiny_model
    assert [type(module) for module in model][-2:] == [Dense, Normalize]
    assert not np.allclose(before, after, atol=1e-3)
    assert np.abs(cosines(before) - cosines(after)).max() < 1e-5
    energy = np.square(model.encode(TEXTS)).mean(axis=0)
    assert (np.diff(energy) < 1e-6).all()


def test_rotated_model_survives_plain_sentence_transformers(tiny_model: SentenceTransformer, tmp_path: Path) -> None:
    model = rotate_model(tiny_model, TEXTS)
    model.save_pretrained(str(tmp_path))
    reloaded = SentenceTransformer(str(tmp_path), device="cpu")
    assert np.allclose(model.encode(PROBES), reloaded.encode(PROBES), atol=1e-6)


def test_model_without_normalize_gets_the_rotation_at_its_end(tiny_model: SentenceTransformer) -> None:
    del tiny_model[-1]
    before = tiny_model.encode(PROBES)
    model = rotate_model(tiny_model, TEXTS)
    assert isinstance(model[-1], Dense)
    assert np.allclose(np.linalg.norm(before, axis=-1), np.linalg.norm(model.encode(PROBES), axis=-1), atol=1e-5)
    assert np.abs(cosines(before) - cosines(model.encode(PROBES))).max() < 1e-5


def test_a_second_rotation_composes_with_the_first(tiny_model: SentenceTransformer) -> None:
    before = tiny_model.encode(PROBES)
    twice = rotate_model(rotate_model(tiny_model, TEXTS[:40]), TEXTS)
    assert sum(isinstance(module, Dense) for module in twice) == 1
    assert np.abs(cosines(before) - cosines(twice.encode(PROBES))).max() < 1e-5
    energy = np.square(twice.encode(TEXTS)).mean(axis=0)
    assert (np.diff(energy) < 1e-6).all()


def test_a_dense_with_an_activation_is_left_alone(tiny_model: SentenceTransformer) -> None:
    normalize = tiny_model.pop(-1)
    tiny_model.append(Dense(32, 32, bias=False)).append(normalize)
    weight = tiny_model[2].linear.weight.clone()
    before = tiny_model.encode(PROBES)
    model = rotate_model(tiny_model, TEXTS)
    assert [type(module) for module in model][-3:] == [Dense, Dense, Normalize]
    assert torch.equal(model[2].linear.weight, weight)
    assert np.abs(cosines(before) - cosines(model.encode(PROBES))).max() < 1e-5


def test_repeated_texts_count_once(tiny_model: SentenceTransformer, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    encode = tiny_model.encode

    def spy(texts: list[str], **kwargs: Any) -> Tensor:
        seen.extend(texts)
        return encode(texts, **kwargs)

    monkeypatch.setattr(tiny_model, "encode", spy)
    rotate_model(tiny_model, [*TEXTS, *TEXTS[:10]])
    assert seen == TEXTS


def test_unusable_texts_and_models_are_refused(tiny_model: SentenceTransformer) -> None:
    with pytest.raises(UserError, match="give a list of texts, at least as many as the model's width"):
        rotate_model(tiny_model, [])
    with pytest.raises(UserError, match="texts is 'one text'; give a list of texts"):
        rotate_model(tiny_model, "one text")
    tiny_model.truncate_dim = 16
    with pytest.raises(UserError, match="cut to truncate_dim=16; load it without truncate_dim"):
        rotate_model(tiny_model, TEXTS)


def test_rotate_writes_a_model_that_declares_its_dims(tiny_model_path: Path, tmp_path: Path) -> None:
    folder = rotate(str(tiny_model_path), TEXTS, tmp_path / "rotated")
    assert declared_dims(folder) == (4, 8, 16, 32)
    original = SentenceTransformer(str(tiny_model_path), device="cpu")
    cut = SentenceTransformer(str(folder), device="cpu", truncate_dim=8)
    assert cut.encode(PROBES).shape == (len(PROBES), 8)
    cut.truncate_dim = None
    assert np.abs(cosines(original.encode(PROBES)) - cosines(cut.encode(PROBES))).max() < 1e-5


def test_rotate_checks_output_and_dims_before_it_encodes(tiny_model_path: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="is not empty and holds no model to replace"):
        rotate(str(tiny_model_path), TEXTS, tmp_path)
    with pytest.raises(UserError, match="matryoshka_dims holds 64, above the model's width of 32"):
        rotate(str(tiny_model_path), [], tmp_path / "rotated", dims=[64])


@pytest.mark.slow
def test_scifact_scores_of_the_untrained_bundled_model(shared_data: Path) -> None:
    from matryoshka_st.models import load_model

    model = load_model("bundled", device="cpu")
    folder = shared_data / "mirror/mteb/scifact"
    corpus = {row["_id"]: f"{row['title']} {row['text']}" for row in rows(folder / "corpus/corpus.parquet")}
    queries = {row["_id"]: row["text"] for row in rows(folder / "queries/queries.parquet")}
    relevant: dict[str, set[str]] = {}
    for row in rows(folder / "qrels/test.parquet"):
        relevant.setdefault(row["query-id"], set()).add(row["corpus-id"])
    metrics = InformationRetrievalEvaluator(queries, corpus, relevant, ndcg_at_k=[10])
    texts = list(corpus.values())
    documents = model.encode(texts, convert_to_tensor=True, batch_size=64)
    asked = model.encode(metrics.queries, convert_to_tensor=True, batch_size=64)

    def scores(rotation: Tensor) -> list[float]:
        return [ndcg(metrics, asked @ rotation, documents @ rotation, dim) for dim in (256, 128, 64, 32)]

    rotation = fit_rotation(documents[::2])
    assert scores(torch.eye(384)) == pytest.approx([63.51, 60.16, 48.41, 33.71], abs=0.3)
    assert scores(rotation) == pytest.approx([64.55, 63.53, 55.39, 44.00], abs=0.3)

    insert_rotation(model, rotation)
    assert torch.allclose(model.encode(texts[:8], convert_to_tensor=True), documents[:8] @ rotation, atol=1e-5)


def rows(path: Path) -> list[dict[str, Any]]:
    return pq.read_table(path).to_pylist()


def ndcg(metrics: InformationRetrievalEvaluator, queries: Tensor, documents: Tensor, dim: int) -> float:
    best = (truncate_normalize(queries, dim) @ truncate_normalize(documents, dim).T).topk(10)
    hits = [
        [{"corpus_id": metrics.corpus_ids[place], "score": score} for score, place in zip(scores, places, strict=True)]
        for scores, places in zip(best.values.tolist(), best.indices.tolist(), strict=True)
    ]
    return 100 * metrics.compute_metrics(hits)["ndcg@k"][10]
