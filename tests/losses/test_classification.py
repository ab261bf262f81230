"""The classification heads and their loss: equal to plain linear layers, one prefix after the other."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from datasets import Dataset
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer
from torch import Tensor, nn

from matryoshka_st import CombinedLoss, MatryoshkaClassificationLoss, MatryoshkaLinear, SpreadOutLoss, UserError

from .processes import collectives, run_processes

DIMS, WEIGHTS, CLASSES = [1, 8, 20, 32], [0.5, 2.0, 1.0, 0.25], 7
TEXTS = ["red fish", "old house", "new tree", "green sea", "tall ship", "one dish"]
LABELS = [0, 1, 2, 0, 1, 6]
BOTH = pytest.mark.parametrize("efficient", [False, True], ids=["MRL", "MRL-E"])


def features(model: SentenceTransformer, texts: list[str] = TEXTS) -> list[dict[str, Any]]:
    return [model.preprocess(texts)]


def looped(head: MatryoshkaLinear, x: Tensor) -> list[tuple[nn.Linear, Tensor]]:
    """The slow way: cut, scale if asked, and a linear layer of its own for every prefix."""
    found = []
    for dim in head.dims:
        linear = nn.Linear(dim, head.num_classes).to(x)
        own = head.heads[str(head.dims[-1] if head.efficient else dim)]
        linear.weight, linear.bias = nn.Parameter(own.weight[:, :dim].clone()), nn.Parameter(own.bias.clone())
        prefix = x[:, :dim].clone()
        if head.scale is not None:
            prefix = head.scale * prefix / prefix.norm(dim=1, keepdim=True)
        found.append((linear, linear(prefix)))
    return found


@BOTH
@pytest.mark.parametrize("scale", [None, 12.0], ids=["as it is", "unit length"])
def test_loss_and_gradients_are_those_of_plain_linear_layers(
    tiny_model: SentenceTransformer, efficient: bool, scale: float | None
) -> None:
    loss = MatryoshkaClassificationLoss(tiny_model, CLASSES, DIMS, WEIGHTS, efficient=efficient, scale=scale).double()
    x = torch.randn(6, 32, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor(LABELS)
    terms = loss.compute_loss_from_embeddings([x], labels)
    terms.total().backward()
    got, x.grad = x.grad, None
    slow, logits = zip(*looped(loss.head, x), strict=True)
    want = [w * F.cross_entropy(one, labels) for w, one in zip(WEIGHTS, logits, strict=True)]
    torch.stack(want).sum().backward()
    for (name, value), dim, expected in zip(terms.items(), DIMS, want, strict=True):
        assert name == f"loss_dim_{dim}"
        torch.testing.assert_close(value, expected, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(got, x.grad, rtol=1e-12, atol=1e-14)
    if efficient:
        shared = loss.head.heads["32"]
        weight = sum(F.pad(linear.weight.grad, (0, 32 - linear.in_features)) for linear in slow)
        torch.testing.assert_close(shared.weight.grad, weight, rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(shared.bias.grad, sum(linear.bias.grad for linear in slow), rtol=1e-12, atol=1e-14)
    else:
        for linear, dim in zip(slow, DIMS, strict=True):
            torch.testing.assert_close(loss.head.heads[str(dim)].weight.grad, linear.weight.grad, rtol=1e-12, atol=0)
            torch.testing.assert_close(loss.head.heads[str(dim)].bias.grad, linear.bias.grad, rtol=1e-12, atol=1e-14)


@BOTH
def test_one_prefix_is_answered_like_all_of_them(efficient: bool) -> None:
    head = MatryoshkaLinear(DIMS, CLASSES, efficient, scale=5.0)
    x = torch.randn(4, 40)
    for dim, logits in zip(DIMS, head(x), strict=True):
        torch.testing.assert_close(head.logits(x, dim), logits)
        torch.testing.assert_close(head.logits(x[:, :dim], dim), logits)


def test_the_shared_head_has_one_prefix_of_the_weights_and_memory_of_the_longest() -> None:
    dims = [8, 16, 32, 64, 128, 256, 384]
    many, one = MatryoshkaLinear(dims, 77), MatryoshkaLinear(dims, 77, efficient=True)
    assert many.memory_bytes() == 4 * 77 * (sum(dims) + len(dims))
    assert one.memory_bytes() == 4 * 77 * (384 + 1)


@BOTH
@pytest.mark.parametrize("scale", [None, 20.0])
def test_zero_vectors_have_finite_gradients(efficient: bool, scale: float | None) -> None:
    head = MatryoshkaLinear(DIMS, 3, efficient, scale=scale)
    x = torch.zeros(2, 32, requires_grad=True)
    torch.stack([F.cross_entropy(logits, torch.tensor([0, 1])) for logits in head(x)]).sum().backward()
    assert x.grad is not None and x.grad.isfinite().all()


@BOTH
def test_class_means_make_it_the_nearest_class_mean(efficient: bool) -> None:
    head = MatryoshkaLinear([8, 32], 4, efficient, scale=20.0)
    labels = torch.arange(40) % 4
    x = torch.randn(40, 32) + 2 * torch.randn(4, 32)[labels]
    head.set_class_means(x, labels)
    for dim in (8, 32):
        width = 32 if efficient else dim
        unit = F.normalize(x[:, :width], dim=1)
        means = F.normalize(torch.stack([unit[labels == c].mean(0) for c in range(4)]), dim=1)
        cosines = F.normalize(x[:, :dim], dim=1) @ means[:, :dim].T
        torch.testing.assert_close(head.logits(x, dim), 20 * cosines, rtol=1e-5, atol=1e-5)
    with pytest.raises(UserError, match="Class 3 has no text; give one or more of every class"):
        head.set_class_means(x, labels % 3)


def test_half_precision_is_summed_in_float32(tiny_model: SentenceTransformer) -> None:
    loss = MatryoshkaClassificationLoss(tiny_model, 2, [32, 4])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        terms = loss(features(tiny_model), torch.tensor([0, 1, 0, 1, 0, 1]))
    assert terms.total().dtype == torch.float32


@BOTH
def test_the_trainer_learns_logs_each_dim_and_the_card_describes_the_loss(
    tiny_model: SentenceTransformer, tmp_path: Path, efficient: bool
) -> None:
    loss = MatryoshkaClassificationLoss(tiny_model, 3, [8, 32], efficient=efficient)
    start = copy.deepcopy(loss.head.state_dict())
    trainer = SentenceTransformerTrainer(
        model=tiny_model,
        args=SentenceTransformerTrainingArguments(
            output_dir=str(tmp_path), max_steps=12, logging_steps=1, report_to="none", disable_tqdm=True, use_cpu=True,
            save_strategy="no", learning_rate=0.01, per_device_train_batch_size=6,
        ),
        train_dataset=Dataset.from_dict({"text": TEXTS, "label": [0, 1, 2, 0, 1, 2]}),
        loss=loss,
    )  # fmt: skip
    trainer.train()
    logged = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert logged[0]["loss"] == pytest.approx(logged[0]["loss_dim_8"] + logged[0]["loss_dim_32"], abs=1e-3)
    assert logged[-1]["loss"] < 0.5 * logged[0]["loss"]
    assert all(not torch.equal(start[name], value) for name, value in loss.head.state_dict().items())
    tiny_model.save_pretrained(str(tmp_path / "model"))
    card = (tmp_path / "model" / "README.md").read_text()
    for words in ("MatryoshkaClassificationLoss", f'"efficient": {str(efficient).lower()}', "kusupati2022matryoshka"):
        assert words in card


def test_it_combines_with_other_losses(tiny_model: SentenceTransformer) -> None:
    parts = {
        "classes": MatryoshkaClassificationLoss(tiny_model, 7, DIMS),
        "spread": SpreadOutLoss(tiny_model, [32]),
    }
    terms = CombinedLoss(tiny_model, parts)(features(tiny_model), torch.tensor(LABELS))
    assert terms.keys() == {*(f"classes/loss_dim_{dim}" for dim in DIMS), "spread/loss_spread_out_dim_32"}


def test_its_config_is_json_with_what_was_asked_for(tiny_model: SentenceTransformer) -> None:
    loss = MatryoshkaClassificationLoss(tiny_model, 3, [32, 4], [1.0, 3.0], efficient=True, scale=None)
    assert json.loads(json.dumps(loss.get_config_dict())) == {
        "num_classes": 3,
        "matryoshka_dims": [4, 32],
        "matryoshka_weights": [3.0, 1.0],
        "efficient": True,
        "scale": None,
        "length_groups": 1,
    }


def test_texts_of_like_length_together_give_the_same_loss(tiny_model: SentenceTransformer) -> None:
    tiny_model.eval()
    plain = MatryoshkaClassificationLoss(tiny_model, 7, DIMS)
    grouped = MatryoshkaClassificationLoss(tiny_model, 7, DIMS, length_groups=3)
    grouped.head.load_state_dict(plain.head.state_dict())
    texts = ["red fish", "an old house by the sea", "x", "the green sea", "one", "a dish"]
    for name, value in plain(features(tiny_model, texts), torch.tensor(LABELS)).items():
        torch.testing.assert_close(grouped(features(tiny_model, texts), torch.tensor(LABELS))[name], value)


@pytest.mark.parametrize(
    ("labels", "sentence"),
    [
        (None, "There are no labels; give each text one whole number from 0 to 2 in a column label"),
        (torch.tensor([0, 1, 2, 0, 1, 3]), "The labels hold 3; give each text one whole number from 0 to 2"),
        (torch.tensor([0, 1, -1, 0, 1, 2]), "The labels hold -1;"),
        (torch.rand(6), r"The labels are torch\.float32, \(6,\), for 6 texts"),
        (torch.zeros(6, 3, dtype=torch.long), r"The labels are torch\.int64, \(6, 3\), for 6 texts"),
        (torch.zeros(5, dtype=torch.long), r"The labels are torch\.int64, \(5,\), for 6 texts"),
    ],
)
def test_labels_that_do_not_fit_are_refused(
    tiny_model: SentenceTransformer, labels: Tensor | None, sentence: str
) -> None:
    with pytest.raises(UserError, match=sentence):
        MatryoshkaClassificationLoss(tiny_model, 3, [32])(features(tiny_model), labels)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"num_classes": 1, "matryoshka_dims": [8]}, "num_classes is 1; it is a whole number of 2 or more"),
        ({"num_classes": 2.0, "matryoshka_dims": [8]}, r"num_classes is 2\.0"),
        ({"num_classes": 2, "matryoshka_dims": [64]}, "above the model's width of 32"),
        ({"num_classes": 2, "matryoshka_dims": [8], "matryoshka_weights": [1, 2]}, "has 2 values for 1 dims"),
        ({"num_classes": 2, "matryoshka_dims": [8], "scale": 0.0}, r"scale is 0\.0"),
    ],
)
def test_bad_arguments_are_refused(tiny_model: SentenceTransformer, arguments: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        MatryoshkaClassificationLoss(tiny_model, **arguments)


def test_one_column_of_texts_at_full_width(tiny_model: SentenceTransformer) -> None:
    loss = MatryoshkaClassificationLoss(tiny_model, 2, [32])
    with pytest.raises(UserError, match="got 2 text columns; give one, and a column label of classes"):
        loss([*features(tiny_model), *features(tiny_model)], torch.tensor([0, 1, 0, 1, 0, 1]))
    with pytest.raises(UserError, match=r"The vectors are \(6, 8\); give rows of 32 coordinates or more"):
        loss.head(torch.randn(6, 8))


def tiny(bert: str) -> SentenceTransformer:
    transformer = Transformer(bert)
    return SentenceTransformer(modules=[transformer, Pooling(32, pooling_mode="mean"), Normalize()], device="cpu")


def shares(
    rank: int, world: int, bert: str, efficient: bool, weights: dict[str, Tensor], x: Tensor, labels: Tensor
) -> tuple[dict[str, Tensor], Any]:
    """The head's gradients in one process, which has its share of the batch, and the collectives of the step."""
    loss = MatryoshkaClassificationLoss(tiny(bert), CLASSES, DIMS, WEIGHTS, efficient=efficient)
    loss.head.load_state_dict(weights)
    own = slice(rank * len(x) // world, (rank + 1) * len(x) // world)

    def step() -> None:
        loss.compute_loss_from_embeddings([x[own]], labels[own]).total().backward()

    called = collectives(step)
    return {name: p.grad for name, p in loss.head.named_parameters()}, called


@BOTH
def test_two_processes_average_the_gradient_of_the_head(tiny_bert_path: Path, efficient: bool) -> None:
    bert = str(tiny_bert_path)
    loss = MatryoshkaClassificationLoss(tiny(bert), CLASSES, DIMS, WEIGHTS, efficient=efficient)
    x, labels = torch.randn(8, 32), torch.randint(CLASSES, (8,))
    results = run_processes(2, shares, bert, efficient, loss.head.state_dict(), x, labels)
    loss.compute_loss_from_embeddings([x], labels).total().backward()
    for found, called in results:
        assert [name for name, _ in called] == ["allreduce_"]
        for name, parameter in loss.head.named_parameters():
            torch.testing.assert_close(found[name], parameter.grad, rtol=1e-5, atol=1e-7)
