"""Terms at every prefix against plain torch, sentence-transformers' own losses, and finite differences."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.losses import DistillKLDivLoss, GlobalOrthogonalRegularizationLoss
from torch import Tensor

from matryoshka_st import UserError
from matryoshka_st.losses import SpreadOutLoss, TeacherDistillLoss
from matryoshka_st.losses.regularizers import spread_out

from .test_contrastive import features

DIMS, WEIGHTS = [32, 8, 1], [1.0, 2.0, 0.5]


def random_columns(count: int, rows: int = 5, width: int = 32) -> list[Tensor]:
    return [torch.randn(rows, width, dtype=torch.float64, requires_grad=True) for _ in range(count)]


def cut(columns: list[Tensor], dim: int) -> list[Tensor]:
    return [F.normalize(column[:, :dim], dim=1) for column in columns]


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 2**31))
def test_spread_out_is_the_mean_over_pairs(rows: int, dim: int, seed: int) -> None:
    x = F.normalize(torch.randn(rows, dim, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)), dim=1)
    cosines = torch.stack([x[i] @ x[j] for i in range(rows) for j in range(rows) if i != j] or [x.new_zeros(())])
    mean, second_moment = spread_out(x)
    torch.testing.assert_close(mean, cosines.mean() ** 2, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(second_moment, (cosines.square().mean() - 1 / dim).clamp(min=0), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("aggregation", ["mean", "sum"])
def test_spread_out_loss_is_the_hosts_at_each_prefix(tiny_model: SentenceTransformer, aggregation: Any) -> None:
    theirs = GlobalOrthogonalRegularizationLoss(
        tiny_model, mean_weight=0.5, second_moment_weight=2.0, aggregation=aggregation
    )
    ours = SpreadOutLoss(tiny_model, DIMS, WEIGHTS, mean_weight=0.5, second_moment_weight=2.0, aggregation=aggregation)
    columns = random_columns(3, rows=9)
    terms = ours.compute_loss_from_embeddings(columns)
    assert list(terms) == ["loss_spread_out_dim_1", "loss_spread_out_dim_8", "loss_spread_out_dim_32"]
    want = {
        dim: weight * sum(theirs.compute_loss_from_embeddings(cut(columns, dim)).values())
        for dim, weight in zip(DIMS, WEIGHTS, strict=True)
    }
    for dim, value in want.items():
        torch.testing.assert_close(terms[f"loss_spread_out_dim_{dim}"], value, rtol=1e-10, atol=1e-12)
    got = torch.autograd.grad(terms.total(), columns)
    for a, b in zip(got, torch.autograd.grad(sum(want.values()), columns), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def test_spread_out_of_one_row_and_of_zero_vectors_is_finite(tiny_model: SentenceTransformer) -> None:
    loss = SpreadOutLoss(tiny_model, DIMS)
    for x in (torch.randn(1, 32), torch.zeros(3, 32)):
        column = x.requires_grad_()
        loss.compute_loss_from_embeddings([column]).total().backward()
        assert column.grad is not None and column.grad.isfinite().all()


def test_teacher_scores_give_the_hosts_divergence_at_each_prefix(tiny_model: SentenceTransformer) -> None:
    scores = torch.randn(5, 3, dtype=torch.float64)
    theirs = DistillKLDivLoss(tiny_model, similarity_fct=torch.cosine_similarity, temperature=0.1)
    ours = TeacherDistillLoss(tiny_model, DIMS, WEIGHTS, scale=10.0)
    columns = random_columns(4)
    terms = ours.compute_loss_from_embeddings(columns, scores)
    for dim, weight in zip(DIMS, WEIGHTS, strict=True):
        value = weight * theirs.compute_loss_from_embeddings(cut(columns, dim), scores) / 0.1**2
        torch.testing.assert_close(terms[f"loss_teacher_dim_{dim}"], value, rtol=1e-10, atol=1e-12)


def test_teacher_embeddings_give_its_softmax_over_all_documents(tiny_model: SentenceTransformer) -> None:
    columns, teacher = random_columns(3), torch.randn(5, 3, 7, dtype=torch.float64)
    ours = TeacherDistillLoss(tiny_model, DIMS, WEIGHTS, scale=10.0, teacher_scale=4.0)
    terms = ours.compute_loss_from_embeddings(columns, teacher)
    t = F.normalize(teacher, dim=2)
    p = (4.0 * t[:, 0] @ torch.cat([t[:, 1], t[:, 2]]).T).softmax(1)
    for dim, weight in zip(DIMS, WEIGHTS, strict=True):
        query, *documents = cut(columns, dim)
        q = (10.0 * query @ torch.cat(documents).T).softmax(1)
        value = weight * (p * (p.log() - q.log())).sum(1).mean()
        torch.testing.assert_close(terms[f"loss_teacher_dim_{dim}"], value, rtol=1e-10, atol=1e-12)


def test_gradients_are_those_of_finite_differences(tiny_model: SentenceTransformer) -> None:
    teacher = torch.randn(4, 3, 5, dtype=torch.float64)
    distill = TeacherDistillLoss(tiny_model, [6, 2], scale=5.0)
    spread = SpreadOutLoss(tiny_model, [6, 2])

    def total(*columns: Tensor) -> Tensor:
        terms = distill.compute_loss_from_embeddings(columns, teacher) + spread.compute_loss_from_embeddings(columns)
        return terms.total()

    assert torch.autograd.gradcheck(total, random_columns(3, rows=4, width=6))


def test_a_teacher_equal_to_the_student_teaches_nothing(tiny_model: SentenceTransformer) -> None:
    columns = random_columns(3)
    labels = torch.stack([column.detach() for column in columns], dim=1)
    loss = TeacherDistillLoss(tiny_model, [32]).compute_loss_from_embeddings(columns, labels).total()
    assert loss.item() == pytest.approx(0, abs=1e-12)
    assert all(grad.abs().max() < 1e-12 for grad in torch.autograd.grad(loss, columns))


def test_half_precision_is_summed_in_float32(tiny_model: SentenceTransformer) -> None:
    columns = [column.detach().bfloat16() for column in random_columns(2)]
    assert SpreadOutLoss(tiny_model, [32]).compute_loss_from_embeddings(columns).total().dtype == torch.float32


def test_they_run_in_the_host_and_say_what_they_are(tiny_model: SentenceTransformer) -> None:
    spread = SpreadOutLoss(tiny_model, DIMS, WEIGHTS, mean_weight=0.0, aggregation="sum")
    spread(features(tiny_model, 1)).total().backward()
    assert json.loads(json.dumps(spread.get_config_dict())) == {
        "matryoshka_dims": [1, 8, 32], "matryoshka_weights": [0.5, 2.0, 1.0],
        "mean_weight": 0.0, "second_moment_weight": 1.0, "aggregation": "sum",
    }  # fmt: skip
    distill = TeacherDistillLoss(tiny_model, DIMS, scale=10.0)
    distill(features(tiny_model, 3), torch.rand(5, 2)).total().backward()
    assert distill.get_config_dict()["teacher_scale"] == 10.0
    assert "zhang2017learning" in spread.citation and "lin2020distilling" in distill.citation


@pytest.mark.parametrize("labels", [None, torch.rand(5), torch.rand(5, 3), torch.rand(4, 2), torch.rand(5, 2, 7)])
def test_labels_that_do_not_fit_are_refused(tiny_model: SentenceTransformer, labels: Tensor | None) -> None:
    with pytest.raises(UserError, match="give teacher scores, 2 per row and 2 at least, or 3 embeddings"):
        TeacherDistillLoss(tiny_model, DIMS).compute_loss_from_embeddings(random_columns(3), labels)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda m: SpreadOutLoss(m, [64]), "above the model's width of 32"),
        (lambda m: SpreadOutLoss(m, [8], aggregation="max"), "aggregation is 'max'; use 'mean' or 'sum'"),
        (lambda m: SpreadOutLoss(m, [8], mean_weight=0, second_moment_weight=0), "0 or more, and not both 0"),
        (lambda m: TeacherDistillLoss(m, [8], teacher_scale=0), "scale is 0"),
    ],
)
def test_bad_arguments_are_refused(tiny_model: SentenceTransformer, make: Any, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        make(tiny_model)
