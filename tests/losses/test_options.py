"""The options of MatryoshkaContrastiveLoss: as sentence-transformers has them, or as plain torch says."""

from __future__ import annotations

import copy
import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from datasets import Dataset
from peft import LoraConfig
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.losses import (
    AdaptiveLayerLoss,
    GISTEmbedLoss,
    Matryoshka2dLoss,
    MatryoshkaLoss,
    MultipleNegativesRankingLoss,
)
from sentence_transformers.sentence_transformer.modules import Normalize, StaticEmbedding
from sentence_transformers.util import dot_score
from torch import Tensor, nn

from matryoshka_st import UserError
from matryoshka_st.losses import (
    CachedMatryoshkaContrastiveLoss,
    CombinedLoss,
    MatryoshkaContrastiveLoss,
    SpreadOutLoss,
    WeightSchedule,
)
from matryoshka_st.losses.beside import guide_embeddings, text_ids

from .test_contrastive import COLUMNS, features, gradients

DIMS, WEIGHTS = [32, 8, 1], [1.0, 2.0, 0.5]


def assert_same_training(model: SentenceTransformer, ours: nn.Module, theirs: nn.Module, columns: int) -> None:
    inputs = features(model, columns)
    want, got = gradients(model, theirs, inputs), gradients(model, ours, inputs)
    assert want.keys() == got.keys()
    for name in want:
        scale = max(want[name].abs().max().item(), 1.0)
        torch.testing.assert_close(got[name], want[name], rtol=0, atol=1e-11 * scale, msg=name)


@pytest.mark.parametrize("mode", ["in_batch_negatives", "hard_negatives", "all_negatives"])
@pytest.mark.parametrize("columns", [2, 4], ids=["pairs", "n-tuples"])
def test_hardness_is_the_hosts(tiny_model: SentenceTransformer, mode: Any, columns: int) -> None:
    model = tiny_model.double().eval()
    hardness = {"hardness_mode": mode, "hardness_strength": 5.0}
    ours = MatryoshkaContrastiveLoss(model, DIMS, WEIGHTS, **hardness)
    theirs = MatryoshkaLoss(model, MultipleNegativesRankingLoss(model, **hardness), DIMS, WEIGHTS)
    assert_same_training(model, ours, theirs, columns)


def test_dot_products_are_the_hosts(tiny_model: SentenceTransformer) -> None:
    model = SentenceTransformer(modules=list(tiny_model)[:2], device="cpu").double().eval()
    ours = MatryoshkaContrastiveLoss(model, [32], scale=1.0, similarity="dot")
    theirs = MultipleNegativesRankingLoss(model, scale=1.0, similarity_fct=dot_score)
    assert_same_training(model, ours, theirs, 3)


@pytest.mark.parametrize("strategy", ["absolute", "relative"])
@pytest.mark.parametrize("margin", [0.0, 0.05])
@pytest.mark.parametrize("columns", [2, 3], ids=["pairs, all directions", "triplets"])
def test_a_guides_margin_is_gists(tiny_model: SentenceTransformer, strategy: Any, margin: float, columns: int) -> None:
    model = tiny_model.double().eval()
    guide = copy.deepcopy(model)
    for parameter in guide.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    everything = columns == 2
    theirs = GISTEmbedLoss(
        model, guide, temperature=0.05, margin_strategy=strategy, margin=margin,
        contrast_anchors=everything, contrast_positives=everything,
    )  # fmt: skip
    ours = MatryoshkaContrastiveLoss(
        model, DIMS, WEIGHTS, scale=20.0, margin=margin, margin_strategy=strategy, guide=guide,
        directions=("query_to_doc", "query_to_query", "doc_to_doc") if everything else ("query_to_doc",),
    )  # fmt: skip
    assert_same_training(model, ours, MatryoshkaLoss(model, theirs, DIMS, WEIGHTS), columns)
    assert (
        gradients(model, ours, features(model, columns))["loss"]
        < gradients(
            model,
            MatryoshkaContrastiveLoss(model, DIMS, WEIGHTS, directions=ours.directions),
            features(model, columns),
        )["loss"]
    ), "nothing was excluded"


def test_the_guide_runs_once_per_step_and_is_not_trained(tiny_model: SentenceTransformer) -> None:
    guide = copy.deepcopy(tiny_model)
    calls = []
    guide.register_forward_hook(lambda *_: calls.append(1))
    loss = MatryoshkaContrastiveLoss(tiny_model, DIMS, margin=0.0, guide=guide)
    loss(features(tiny_model, 3)).total().backward()
    assert len(calls) == 1
    assert all(parameter.grad is None for parameter in guide.parameters())


def test_equal_texts_are_no_negatives(tiny_model: SentenceTransformer) -> None:
    model = tiny_model.double().eval()
    anchors = ["red fish", "old house", "red fish", "green sea"]
    positives = ["a red fish", "an old house", "the red fish", "an old house"]
    columns = [model.preprocess(texts) for texts in (anchors, positives)]
    terms = MatryoshkaContrastiveLoss(model, [32, 4], exclude_duplicates=True)([dict(c) for c in columns])
    queries, documents = (model(dict(c))["sentence_embedding"] for c in columns)
    excluded = torch.zeros(4, 4, dtype=torch.bool)
    for i, j in [(0, 2), (2, 0), (1, 3), (3, 1)]:  # equal queries; equal documents
        excluded[i, j] = True
    for dim in (32, 4):
        scores = 20 * F.normalize(queries[:, :dim], dim=1) @ F.normalize(documents[:, :dim], dim=1).T
        want = F.cross_entropy(scores.masked_fill(excluded, -torch.inf), torch.arange(4))
        torch.testing.assert_close(terms[f"loss_dim_{dim}"], want, rtol=1e-10, atol=1e-12)


TEXTS = ["red fish", "fish red", "red fish", "a", "", "red fish red fish"]


def test_ids_are_equal_for_equal_texts_whatever_the_padding(tiny_model: SentenceTransformer) -> None:
    padded = tiny_model.preprocess(TEXTS)
    ids = text_ids(padded)
    for i, j in itertools.combinations(range(len(TEXTS)), 2):
        assert (ids[i] == ids[j]) == (TEXTS[i] == TEXTS[j])
    wider = {key: F.pad(padded[key], (0, 3)) for key in ("input_ids", "attention_mask")}
    left = {key: F.pad(padded[key].flip(1), (5, 0)) for key in ("input_ids", "attention_mask")}
    for row in range(len(TEXTS)):
        length = int(padded["attention_mask"][row].sum())
        left["input_ids"][row] = F.pad(padded["input_ids"][row, :length], (left["input_ids"].shape[1] - length, 0))
        left["attention_mask"][row] = left["input_ids"][row].ne(0)
    mask = padded["attention_mask"].bool()
    flat = {"input_ids": padded["input_ids"][mask][None], "cu_seq_lens_q": F.pad(mask.sum(1).cumsum(0), (1, 0))}
    bag = {"input_ids": padded["input_ids"][mask], "offsets": flat["cu_seq_lens_q"][:-1]}
    for other in (wider, left, flat, bag):
        torch.testing.assert_close(text_ids(other), ids, rtol=0, atol=0)


def test_no_ids_of_two_hundred_thousand_texts_are_equal() -> None:
    tokens = torch.cartesian_prod(torch.arange(60), torch.arange(60), torch.arange(60))
    ids = text_ids({"input_ids": tokens, "attention_mask": torch.ones_like(tokens)})
    assert len(ids.unique()) == len(tokens)


def static_model(tiny_model: SentenceTransformer) -> SentenceTransformer:
    static = StaticEmbedding(copy.deepcopy(tiny_model.tokenizer).backend_tokenizer, embedding_dim=8)
    return SentenceTransformer(modules=[static, Normalize()], device="cpu")


def test_a_static_model_has_ids_too(tiny_model: SentenceTransformer) -> None:
    model = static_model(tiny_model)
    columns = [model.preprocess(["red fish", "red fish", "old house"]), model.preprocess(["a", "b", "c"])]
    masked, plain = (MatryoshkaContrastiveLoss(model, [8], exclude_duplicates=on)(columns) for on in (True, False))
    assert masked.total() < plain.total()


def test_a_static_model_has_a_guide_too(tiny_model: SentenceTransformer) -> None:
    model, guide = static_model(tiny_model), tiny_model.eval()
    texts = [["red fish", "fish red", "red fish"], ["a", "b", "c"]]
    columns = [model.preprocess(column) for column in texts]
    seen = guide_embeddings(guide, model.tokenizer, columns, 32)
    for got, column in zip(seen, texts, strict=True):
        torch.testing.assert_close(got, guide.encode(column, convert_to_tensor=True))
    masked, plain = (
        MatryoshkaContrastiveLoss(model, [8], **options)(columns) for options in ({"margin": 0.0, "guide": guide}, {})
    )
    assert masked.total() < plain.total()


def test_prefixes_learn_from_the_full_width(tiny_model: SentenceTransformer) -> None:
    model = tiny_model.double().eval()
    columns = [model(column)["sentence_embedding"].detach().requires_grad_() for column in features(model, 3)]
    loss = MatryoshkaContrastiveLoss(model, DIMS, WEIGHTS, distill_weight=0.25)
    terms = loss.compute_loss_from_embeddings(columns)
    assert list(terms) == ["loss_dim_1", "loss_dim_8", "loss_dim_32", "loss_distill_dim_1", "loss_distill_dim_8"]
    query, documents = columns[0], torch.cat(columns[1:])
    softmax = {
        dim: (20 * F.normalize(query[:, :dim], dim=1) @ F.normalize(documents[:, :dim], dim=1).T).log_softmax(1)
        for dim in DIMS
    }
    full = softmax[32].detach()
    want = {
        f"loss_distill_dim_{dim}": 0.25 * weight * (full.exp() * (full - softmax[dim])).sum(1).mean()
        for dim, weight in zip(DIMS[1:], WEIGHTS[1:], strict=True)
    }
    got = {name: terms[name] for name in want}
    for name in want:
        torch.testing.assert_close(got[name], want[name], rtol=1e-10, atol=1e-12)
    for a, b in zip(
        torch.autograd.grad(sum(got.values()), columns, retain_graph=True),
        torch.autograd.grad(sum(want.values()), columns),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("distill_weight", [0.0, 0.5])
def test_drawn_dims_are_worth_their_share_on_average(tiny_model: SentenceTransformer, distill_weight: float) -> None:
    columns = [torch.randn(4, 32) for _ in range(2)]
    columns[0].requires_grad_()
    every = MatryoshkaContrastiveLoss(tiny_model, DIMS, WEIGHTS, distill_weight=distill_weight)
    drawn = MatryoshkaContrastiveLoss(tiny_model, DIMS, WEIGHTS, n_dims_per_step=2, distill_weight=distill_weight)
    whole = every.compute_loss_from_embeddings(columns)
    seen, total = {}, 0.0
    for _ in range(600):
        terms = drawn.compute_loss_from_embeddings(columns)
        seen[tuple(name for name in terms if "distill" not in name)] = True
        total += terms.total().item() / 600
        for name, value in terms.items():
            torch.testing.assert_close(value, whole[name])
    assert sorted(seen) == [("loss_dim_1", "loss_dim_32"), ("loss_dim_1", "loss_dim_8"), ("loss_dim_8", "loss_dim_32")]
    assert total == pytest.approx(whole.total().item() * 2 / 3, rel=0.1)
    with torch.no_grad():
        assert len(drawn.compute_loss_from_embeddings(columns)) == len(whole)


def train(model: SentenceTransformer, loss: nn.Module, folder: Path, **arguments: Any) -> SentenceTransformerTrainer:
    trainer = SentenceTransformerTrainer(
        model=model,
        args=SentenceTransformerTrainingArguments(
            output_dir=str(folder), logging_steps=1, report_to="none", disable_tqdm=True, use_cpu=True,
            save_strategy="no", **{"max_steps": 2, **arguments},
        ),
        train_dataset=Dataset.from_dict(COLUMNS),
        loss=loss,
        callbacks=[WeightSchedule(loss)],
    )  # fmt: skip
    trainer.train()
    return trainer


def test_weights_move_over_the_run(tiny_model: SentenceTransformer, tmp_path: Path) -> None:
    loss = MatryoshkaContrastiveLoss(tiny_model, [32, 8], [1.0, 0.0], matryoshka_weights_end=[1.0, 2.0])
    trainer = train(tiny_model, CombinedLoss(tiny_model, {"c": loss}), tmp_path, max_steps=5, learning_rate=1e-9)
    logged = [entry["c/loss_dim_8"] for entry in trainer.state.log_history if "loss" in entry]
    assert logged[0] == 0.0
    assert [value / logged[-1] for value in logged] == pytest.approx([0, 0.25, 0.5, 0.75, 1.0], abs=0.1)
    assert loss.schedule.progress == 1.0


def test_weights_that_move_need_the_callback(tiny_model: SentenceTransformer) -> None:
    loss = MatryoshkaContrastiveLoss(tiny_model, [32, 8], [1.0, 0.0], matryoshka_weights_end=[1.0, 2.0])
    with pytest.raises(UserError, match=r"needs to know how far the run is; give the trainer callbacks=\[Weight"):
        loss(features(tiny_model, 2))
    with torch.no_grad():
        assert loss(features(tiny_model, 2))["loss_dim_8"] == 0


@pytest.mark.parametrize("arguments", [{"bf16": True}, {"gradient_accumulation_steps": 2}], ids=str)
@pytest.mark.parametrize("cached", [False, True], ids=["plain", "cached"])
def test_the_trainer_runs_it(
    tiny_model: SentenceTransformer, tmp_path: Path, arguments: dict[str, Any], cached: bool
) -> None:
    options = {"exclude_duplicates": True, "distill_weight": 0.1, "n_dims_per_step": 2}
    loss = (
        CachedMatryoshkaContrastiveLoss(tiny_model, DIMS, mini_batch_size=2, **options)
        if cached
        else MatryoshkaContrastiveLoss(tiny_model, DIMS, **options)
    )
    trainer = train(tiny_model, loss, tmp_path, **arguments)
    first = next(entry for entry in trainer.state.log_history if "loss" in entry)
    terms = [value for name, value in first.items() if name.startswith("loss_")]
    assert len(terms) >= 3
    assert first["loss"] == pytest.approx(sum(terms), rel=1e-2)


@pytest.mark.parametrize("cached", [False, True], ids=["plain", "cached"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_scaled_half_precision_gradients_are_close(
    tiny_model: SentenceTransformer, cached: bool, dtype: torch.dtype
) -> None:
    model = tiny_model.eval()
    make: Any = CachedMatryoshkaContrastiveLoss if cached else MatryoshkaContrastiveLoss
    want = gradients(model, MatryoshkaContrastiveLoss(model, DIMS), features(model, 3))
    model.zero_grad()
    with torch.autocast("cpu", dtype):
        terms = make(model, DIMS)(features(model, 3))
        assert terms.total().dtype == torch.float32
        (terms.total() * 128).backward()
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            difference = (parameter.grad / 128 - want[name]).norm()
            assert difference <= 0.1 * want[name].norm() + 0.02, name


def test_lora_adapters_are_trained(tiny_model: SentenceTransformer, tmp_path: Path) -> None:
    tiny_model.add_adapter(LoraConfig(target_modules=["query", "value"], r=2, init_lora_weights=False))
    for loss in (
        MatryoshkaContrastiveLoss(tiny_model, DIMS),
        CachedMatryoshkaContrastiveLoss(tiny_model, DIMS, mini_batch_size=2),
    ):
        before = {name: p.detach().clone() for name, p in tiny_model.named_parameters()}
        train(tiny_model, loss, tmp_path, learning_rate=0.1)
        changed = {name for name, p in tiny_model.named_parameters() if not torch.equal(p, before[name])}
        assert changed and all("lora_" in name for name in changed)


def test_adaptive_layers_around_it_are_2d_matryoshka(tiny_model: SentenceTransformer) -> None:
    model = tiny_model.double().eval()
    theirs = Matryoshka2dLoss(
        model, MultipleNegativesRankingLoss(model), DIMS, WEIGHTS, n_layers_per_step=-1, n_dims_per_step=-1
    )
    ours = AdaptiveLayerLoss(model, MatryoshkaContrastiveLoss(model, DIMS, WEIGHTS), n_layers_per_step=-1)
    assert_same_training(model, ours, theirs, 3)


@pytest.mark.parametrize("dims", [[32, 8], [32], [8]], ids=str)
def test_matryoshka_loss_around_it_is_refused(tiny_model: SentenceTransformer, dims: list[int]) -> None:
    for inner in (MatryoshkaContrastiveLoss(tiny_model, DIMS), SpreadOutLoss(tiny_model, DIMS)):
        around = MatryoshkaLoss(tiny_model, inner, dims)
        with pytest.raises(UserError, match=r"do not wrap (this loss|it) in one"):
            around(features(tiny_model, 2), None)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"similarity": "euclid"}, "similarity is 'euclid'"),
        ({"hardness_mode": "soft"}, "hardness_mode is 'soft'"),
        ({"margin": 0.1, "margin_strategy": "none"}, "strategy is 'none'"),
        ({"n_dims_per_step": 0}, "n_dims_per_step is 0; use -1 for all, or 1 to 3"),
        ({"n_dims_per_step": 4}, "n_dims_per_step is 4"),
        ({"matryoshka_weights_end": [1.0]}, "has 1 values for 3 dims"),
        ({"distill_weight": -1.0}, "distill_weight is -1.0 for 3 dims"),
        ({"guide": "a model"}, "A guide is given but no margin"),
    ],
)
def test_bad_options_are_refused(tiny_model: SentenceTransformer, options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        MatryoshkaContrastiveLoss(tiny_model, DIMS, **options)


def test_the_masks_need_the_texts(tiny_model: SentenceTransformer) -> None:
    columns: list[Tensor] = [torch.randn(3, 32), torch.randn(3, 32)]
    with pytest.raises(UserError, match=r"need the texts; pass what look_beside\(\) returned"):
        MatryoshkaContrastiveLoss(tiny_model, DIMS, exclude_duplicates=True).compute_loss_from_embeddings(columns)
    with pytest.raises(UserError, match=r"The columns have \[3, 2\] rows"):
        MatryoshkaContrastiveLoss(tiny_model, DIMS).compute_loss_from_embeddings([columns[0], columns[1][:2]])
