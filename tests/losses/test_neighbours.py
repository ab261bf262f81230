"""Who is near whom, at every prefix, against softmaxes written out in float64."""

from __future__ import annotations

import json

import pytest
import torch
import torch.nn.functional as F
from sentence_transformers import SentenceTransformer
from torch import Tensor

from matryoshka_st import UserError
from matryoshka_st.losses import NeighbourDistillLoss
from matryoshka_st.neighbours import neighbour_divergence
from matryoshka_st.nesting import truncate_normalize

DIMS, WEIGHTS = [32, 8, 2], [3.0, 1.0, 0.5]


def divergence(teacher: Tensor, student: Tensor, teacher_scale: float, scale: float) -> Tensor:
    """Of unit vectors, text by text."""
    values = []
    for row in range(len(teacher)):
        others = [other for other in range(len(teacher)) if other != row]
        wanted = torch.softmax(teacher_scale * teacher[others] @ teacher[row], dim=0)
        found = torch.softmax(scale * student[others] @ student[row], dim=0)
        values.append((wanted * (wanted / found).log()).sum())
    return torch.stack(values).mean()


def test_the_divergence_is_that_of_softmaxes_over_the_others() -> None:
    unit = F.normalize(torch.randn(7, 8, dtype=torch.float64), dim=1)
    rotated = torch.randn(7, 8, dtype=torch.float64)
    expected = sum(divergence(unit, truncate_normalize(rotated, dim), 5.0, 5.0) for dim in (2, 5))
    torch.testing.assert_close(
        neighbour_divergence(unit, rotated, [2, 5], scale=5.0), expected, rtol=1e-12, atol=1e-12
    )


def test_cut_dims_learn_the_centred_neighbours_and_the_full_width_the_plain_ones(
    tiny_model: SentenceTransformer,
) -> None:
    targets = torch.randn(20, 12) + 1.0
    loss = NeighbourDistillLoss(tiny_model, targets, DIMS, WEIGHTS, scale=5.0, teacher_scale=9.0)
    x = torch.randn(6, 32, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([3, 0, 19, 7, 5, 11])
    terms = loss.compute_loss_from_embeddings([x], labels)
    assert list(terms) == [f"loss_neighbours_dim_{dim}" for dim in (2, 8, 32)]

    every = F.normalize(targets.double(), dim=1)
    mean = F.normalize(every.mean(0), dim=0)
    plain = every[labels]
    centred = F.normalize(plain - (plain @ mean)[:, None] * mean, dim=1)
    teacher = {32: (plain, 5.0), 8: (centred, 9.0), 2: (centred, 9.0)}
    want = {
        dim: weight * divergence(teacher[dim][0], truncate_normalize(x, dim), teacher[dim][1], 5.0)
        for dim, weight in zip(DIMS, WEIGHTS, strict=True)
    }
    for dim, value in want.items():
        torch.testing.assert_close(terms[f"loss_neighbours_dim_{dim}"], value, rtol=1e-5, atol=1e-7)
    (got,), (expected,) = torch.autograd.grad(terms.total(), x), torch.autograd.grad(sum(want.values()), x)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-7)


def test_a_model_has_nothing_to_learn_from_itself_at_full_width(tiny_model: SentenceTransformer) -> None:
    texts = ["amber birch", "cedar", "dune ember fjord", "grove"]
    targets = tiny_model.encode(texts, convert_to_tensor=True)
    loss = NeighbourDistillLoss(tiny_model.eval(), targets, [32, 4], length_groups=2)
    terms = loss([tiny_model.preprocess(texts)], torch.arange(4))
    assert terms["loss_neighbours_dim_32"].item() == pytest.approx(0, abs=1e-5)
    assert terms["loss_neighbours_dim_4"] > 1e-3


def test_the_card_gets_the_arguments(tiny_model: SentenceTransformer) -> None:
    loss = NeighbourDistillLoss(tiny_model, torch.randn(4, 8), DIMS, WEIGHTS)
    assert json.loads(json.dumps(loss.get_config_dict())) == {
        "matryoshka_dims": [2, 8, 32],
        "matryoshka_weights": [0.5, 1.0, 3.0],
        "scale": 20.0,
        "teacher_scale": 40.0,
        "length_groups": 1,
    }
    assert "targets" not in loss.state_dict()


@pytest.mark.parametrize(
    ("columns", "labels", "sentence"),
    [
        (2, torch.arange(4), "got 2 text columns; give one, named 'text'"),
        (1, None, r"The labels are None for 4 texts; give each text's row among the targets"),
        (1, torch.arange(3), r"The labels are \(3,\) for 4 texts"),
        (1, torch.arange(1, 5), "The labels go from 1 to 4, and there are 4 targets"),
    ],
)
def test_other_columns_and_labels_are_refused(
    tiny_model: SentenceTransformer, columns: int, labels: Tensor | None, sentence: str
) -> None:
    loss = NeighbourDistillLoss(tiny_model, torch.randn(4, 8), DIMS)
    with pytest.raises(UserError, match=sentence):
        loss.compute_loss_from_embeddings([torch.randn(4, 32)] * columns, labels)


def test_two_texts_have_no_neighbours(tiny_model: SentenceTransformer) -> None:
    loss = NeighbourDistillLoss(tiny_model, torch.randn(4, 8), DIMS)
    with pytest.raises(UserError, match="A batch of 2 texts has no neighbours to compare; give 3 or more"):
        loss.compute_loss_from_embeddings([torch.randn(2, 32)], torch.arange(2))


def test_targets_are_one_embedding_per_text(tiny_model: SentenceTransformer) -> None:
    with pytest.raises(UserError, match=r"The targets are \(0, 8\); give one embedding per training text"):
        NeighbourDistillLoss(tiny_model, torch.randn(0, 8), DIMS)
