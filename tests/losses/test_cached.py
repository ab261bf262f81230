"""CachedMatryoshkaContrastiveLoss: what the plain loss gives, whatever the mini-batches."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.losses import AdaptiveLayerLoss, MatryoshkaLoss
from sentence_transformers.sentence_transformer.modules import Normalize, StaticEmbedding
from torch import Tensor

from matryoshka_st import UserError
from matryoshka_st.losses import CachedMatryoshkaContrastiveLoss, MatryoshkaContrastiveLoss

from .test_contrastive import features, gradients

DIMS, WEIGHTS = [32, 8, 1], [1.0, 2.0, 0.5]
OPTIONS: list[dict[str, Any]] = [
    {},
    {"directions": ("query_to_doc", "query_to_query", "doc_to_query", "doc_to_doc"), "scale": 30.0},
    {"hardness_mode": "hard_negatives", "hardness_strength": 5.0, "distill_weight": 0.5},
    {"margin": 0.0, "exclude_duplicates": True},
]


@pytest.mark.parametrize("options", OPTIONS, ids=["plain", "directions", "hardness", "masks"])
@pytest.mark.parametrize(
    "sizes",
    [{"mini_batch_size": 1}, {"mini_batch_size": 2}, {"mini_batch_size": 99}, {"mini_batch_num_tokens": 12}],
    ids=str,
)
def test_any_mini_batches_give_the_plain_gradients(
    tiny_model: SentenceTransformer, sizes: dict[str, int], options: dict[str, Any]
) -> None:
    model = tiny_model.double().eval()
    inputs = features(model, 4)
    want = gradients(model, MatryoshkaContrastiveLoss(model, DIMS, WEIGHTS, **options), inputs)
    got = gradients(model, CachedMatryoshkaContrastiveLoss(model, DIMS, WEIGHTS, **sizes, **options), inputs)
    assert want.keys() == got.keys()
    for name in want:
        torch.testing.assert_close(got[name], want[name], rtol=1e-10, atol=1e-10, msg=name)


@pytest.mark.parametrize("upstream", [1.0, 1024.0], ids=["plain", "scaled for fp16"])
def test_dropout_is_replayed(tiny_model: SentenceTransformer, upstream: float) -> None:
    """A mini-batch of the whole column draws the masks that the plain loss draws from the same state."""
    model = tiny_model.double().train()
    inputs = features(model, 2)
    found = []
    for loss in (
        MatryoshkaContrastiveLoss(model, DIMS, WEIGHTS),
        CachedMatryoshkaContrastiveLoss(model, DIMS, WEIGHTS, mini_batch_size=5),
    ):
        torch.manual_seed(3)
        model.zero_grad()
        (loss([dict(column) for column in inputs]).total() * upstream).backward()
        found.append([p.grad.clone() / upstream for p in model.parameters() if p.grad is not None])
    for want, got in zip(*found, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("mini_batch_size", [2, 3])
def test_small_mini_batches_differentiate_the_embeddings_of_the_first_pass(
    tiny_model: SentenceTransformer, mini_batch_size: int
) -> None:
    """With dropout, along a direction: the loss changes as the gradient says when the masks are held fixed."""
    model = tiny_model.double().train()
    inputs = features(model, 3)
    loss = CachedMatryoshkaContrastiveLoss(model, DIMS, WEIGHTS, mini_batch_size=mini_batch_size)

    def value() -> Tensor:
        torch.manual_seed(3)
        return loss([dict(column) for column in inputs]).total()

    model.zero_grad()
    value().backward()
    step = 1e-6
    direction = [torch.randn_like(p) for p in model.parameters()]
    slope = sum((p.grad * d).sum() for p, d in zip(model.parameters(), direction, strict=True) if p.grad is not None)
    ends = []
    for sign in (1, -2):
        for parameter, d in zip(model.parameters(), direction, strict=True):
            parameter.data += sign * step * d
        ends.append(value().item())
    assert (ends[0] - ends[1]) / (2 * step) == pytest.approx(slope.item(), rel=1e-6)


def test_the_terms_are_named_and_add_up(tiny_model: SentenceTransformer) -> None:
    model = tiny_model.eval()
    inputs = features(model, 2)
    plain = MatryoshkaContrastiveLoss(model, DIMS, WEIGHTS)(features(model, 2))
    cached = CachedMatryoshkaContrastiveLoss(model, DIMS, WEIGHTS, mini_batch_size=2)(inputs)
    assert list(cached) == list(plain) == ["loss_dim_1", "loss_dim_8", "loss_dim_32"]
    for name in plain:
        torch.testing.assert_close(cached[name], plain[name])
    with torch.no_grad():
        evaluated = CachedMatryoshkaContrastiveLoss(model, DIMS, WEIGHTS)(features(model, 2))
    torch.testing.assert_close(evaluated.total(), plain.total().detach())


def test_accumulated_batches_keep_their_own_gradients(tiny_model: SentenceTransformer) -> None:
    """Two forward passes before the first backward pass, as in gradient accumulation over a joint graph."""
    model = tiny_model.double().eval()
    loss = CachedMatryoshkaContrastiveLoss(model, DIMS, mini_batch_size=2)
    first, second = features(model, 2), features(model, 4)[2:]
    (loss(first).total() + loss(second).total()).backward()
    got = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    for inputs in (features(model, 2), features(model, 4)[2:]):
        MatryoshkaContrastiveLoss(model, DIMS)(inputs).total().backward()
    want = [p.grad for p in model.parameters() if p.grad is not None]
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def test_its_config_names_the_mini_batches(tiny_model: SentenceTransformer) -> None:
    loss = CachedMatryoshkaContrastiveLoss(tiny_model, DIMS, mini_batch_num_tokens=64)
    config = json.loads(json.dumps(loss.get_config_dict()))
    assert (config["mini_batch_size"], config["mini_batch_num_tokens"]) == (32, 64)
    assert config["matryoshka_dims"] == [1, 8, 32]
    assert "gao2021scaling" in loss.citation and "kusupati2022matryoshka" in loss.citation


def test_wrappers_that_cannot_hold_it_are_named(tiny_model: SentenceTransformer) -> None:
    loss = CachedMatryoshkaContrastiveLoss(tiny_model, DIMS)
    with pytest.raises(UserError, match="does what MatryoshkaLoss does, so do not wrap it in one"):
        MatryoshkaLoss(tiny_model, loss, DIMS)
    with pytest.warns(UserWarning, match="AdaptiveLayerLoss is not compatible with Cached"):
        adaptive = AdaptiveLayerLoss(tiny_model, loss)
    with pytest.raises(UserError, match="AdaptiveLayerLoss cannot hold a loss that caches gradients"):
        adaptive(features(tiny_model, 2), None)


@pytest.mark.parametrize("size", ["mini_batch_size", "mini_batch_num_tokens"])
def test_sizes_below_one_are_refused(tiny_model: SentenceTransformer, size: str) -> None:
    with pytest.raises(UserError, match=f"{size} is 0; give 1 or more"):
        CachedMatryoshkaContrastiveLoss(tiny_model, DIMS, **{size: 0})


def test_a_static_model_is_refused(tiny_model: SentenceTransformer) -> None:
    static = StaticEmbedding(copy.deepcopy(tiny_model.tokenizer).backend_tokenizer, embedding_dim=8)
    model = SentenceTransformer(modules=[static, Normalize()], device="cpu")
    with pytest.raises(UserError, match="inputs of a StaticEmbedding cannot be cut into mini-batches"):
        CachedMatryoshkaContrastiveLoss(model, [8])
