"""Embedding a column in groups of like length: the same loss and gradients, fewer padded tokens, no surprises."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.losses import AdaptiveLayerLoss
from torch import nn

from matryoshka_st.errors import UserError
from matryoshka_st.losses import (
    CachedMatryoshkaContrastiveLoss,
    CombinedLoss,
    MatryoshkaContrastiveLoss,
    SpreadOutLoss,
)
from matryoshka_st.losses.embedding import embed_by_length

DIMS = [32, 8, 2]
ANCHORS = ["amber", "birch cedar delta ember fjord grove", "haven inlet", "jetty knoll lagoon amber birch", "cedar"]
POSITIVES = ["amber birch cedar delta ember fjord grove haven", "birch", "inlet haven jetty", "knoll", "cedar delta"]


def features(model: SentenceTransformer) -> list[dict[str, Any]]:
    return [model.preprocess(texts) for texts in (ANCHORS, POSITIVES)]


def loss_and_gradients(loss: nn.Module, model: SentenceTransformer) -> tuple[float, dict[str, torch.Tensor]]:
    model.zero_grad()
    total = torch.stack(list(loss(features(model), None).values())).sum()
    total.backward()
    return total.item(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("groups", [2, 3, 5, 9])
def test_loss_and_gradients_are_those_of_one_forward_pass(tiny_model: SentenceTransformer, groups: int) -> None:
    model = tiny_model.double().eval()

    def combined(length_groups: int) -> CombinedLoss:
        terms = {"contrastive": MatryoshkaContrastiveLoss(model, DIMS), "spread": SpreadOutLoss(model, DIMS)}
        return CombinedLoss(model, terms, length_groups=length_groups)

    for build in (lambda g: MatryoshkaContrastiveLoss(model, DIMS, length_groups=g), combined):
        value, gradients = loss_and_gradients(build(1), model)
        grouped_value, grouped = loss_and_gradients(build(groups), model)
        assert grouped_value == pytest.approx(value, rel=1e-12)
        assert grouped.keys() == gradients.keys()
        for name, gradient in gradients.items():
            torch.testing.assert_close(grouped[name], gradient, rtol=1e-9, atol=1e-12, msg=name)


def test_a_group_is_as_wide_as_its_longest_text_or_the_next_multiple_of_8(tiny_model: SentenceTransformer) -> None:
    shapes = []
    tiny_model.register_forward_pre_hook(lambda _, inputs: shapes.append(tuple(inputs[0]["input_ids"].shape)))
    column = tiny_model.preprocess(ANCHORS)
    embed_by_length(tiny_model, column, 3)
    lengths = sorted(column["attention_mask"].sum(1).tolist())
    longest = [lengths[1], lengths[3], lengths[4]]
    assert [width - 8 < most <= width for (_, width), most in zip(shapes, longest, strict=True)] == [True] * 3
    assert [rows for rows, _ in shapes] == [2, 2, 1] and shapes[0][1] < shapes[2][1] <= column["input_ids"].shape[1]


def test_all_processes_make_equally_many_passes_whatever_their_texts(tiny_model: SentenceTransformer) -> None:
    passes = []
    tiny_model.register_forward_pre_hook(lambda *_: passes.append(1))
    for texts in (["amber"] * 6, ["amber " * n for n in range(1, 7)]):
        passes.clear()
        embed_by_length(tiny_model, tiny_model.preprocess(texts), 4)
        assert len(passes) == 4


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda m: MatryoshkaContrastiveLoss(m, DIMS, length_groups=0), "length_groups is 0; give 1 or more"),
        (lambda m: CachedMatryoshkaContrastiveLoss(m, DIMS, length_groups=4), "beside mini-batches"),
        (
            lambda m: CombinedLoss(m, {"s": SpreadOutLoss(m, DIMS)}, mini_batch_size=2, length_groups=4),
            "beside mini-batches",
        ),
    ],
)
def test_what_cannot_be_grouped_is_refused(tiny_model: SentenceTransformer, build: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        build(tiny_model)


def test_inside_an_adaptive_layer_loss_groups_are_refused(tiny_model: SentenceTransformer) -> None:
    loss = AdaptiveLayerLoss(tiny_model, MatryoshkaContrastiveLoss(tiny_model, DIMS, length_groups=2))
    with pytest.raises(UserError, match="leave out length_groups"):
        loss(features(tiny_model), None)
