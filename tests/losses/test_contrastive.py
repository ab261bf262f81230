"""MatryoshkaContrastiveLoss in its host: same training as MatryoshkaLoss, logged per dim, described in the card."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable
from typing import Any

import pytest
import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.losses import (
    MatryoshkaLoss,
    MultipleNegativesRankingLoss,
)
from torch import Tensor

from matryoshka_st import MatryoshkaContrastiveLoss, UserError

COLUMNS = {
    "anchor": ["red fish", "old house", "new tree", "green sea", "tall ship"],
    "positive": ["a red fish", "an old house", "a new tree", "the green sea", "one tall ship"],
    "negative_1": ["blue bird", "new car", "old rock", "dry land", "short pier"],
    "negative_2": ["red dish", "old mouse", "new bee", "green tea", "tall chip"],
}


def features(model: SentenceTransformer, columns: int) -> list[dict[str, Any]]:
    return [model.preprocess(texts) for texts in list(COLUMNS.values())[:columns]]


def gradients(
    model: SentenceTransformer, loss: torch.nn.Module, inputs: Iterable[dict[str, Any]]
) -> dict[str, Tensor]:
    model.zero_grad()
    value = loss([dict(column) for column in inputs], None)
    total = sum(value.values()) if isinstance(value, dict) else value
    total.backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return {"loss": total.detach(), **found}


@pytest.mark.parametrize("columns", [2, 3, 4], ids=["pairs", "triplets", "n-tuples"])
def test_parameters_get_the_gradients_of_the_wrapped_loss(tiny_model: SentenceTransformer, columns: int) -> None:
    model = tiny_model.double().eval()
    dims, weights = [32, 8, 1], [1.0, 2.0, 0.5]
    theirs = MatryoshkaLoss(model, MultipleNegativesRankingLoss(model, scale=30.0), dims, weights)
    ours = MatryoshkaContrastiveLoss(model, dims, weights, scale=30.0)
    inputs = features(model, columns)
    want, got = gradients(model, theirs, inputs), gradients(model, ours, inputs)
    assert want.keys() == got.keys()
    for name in want:
        scale = max(want[name].abs().max().item(), 1.0)
        torch.testing.assert_close(got[name], want[name], rtol=0, atol=1e-12 * scale, msg=name)


def test_the_model_is_used_through_its_forward_alone_and_left_as_it_was(tiny_model: SentenceTransformer) -> None:
    forward = tiny_model.forward
    loss = MatryoshkaContrastiveLoss(tiny_model, [32, 4])
    loss(features(tiny_model, 2))
    assert tiny_model.forward == forward
    assert dict(loss.named_children()) == {"model": tiny_model}


def test_a_compiled_model_gives_the_same_loss(tiny_model: SentenceTransformer) -> None:
    tiny_model.eval()
    inputs = features(tiny_model, 2)
    plain = MatryoshkaContrastiveLoss(tiny_model, [32, 4])(inputs)
    loss = MatryoshkaContrastiveLoss(tiny_model, [32, 4])
    loss.model = torch.compile(tiny_model, backend="eager")
    compiled = loss(features(tiny_model, 2))
    for name in plain:
        torch.testing.assert_close(compiled[name], plain[name])


def test_the_trainer_logs_each_dim_and_the_card_describes_the_loss(
    tiny_model: SentenceTransformer, tmp_path: Any
) -> None:
    trainer = SentenceTransformerTrainer(
        model=tiny_model,
        args=SentenceTransformerTrainingArguments(
            output_dir=str(tmp_path), max_steps=2, logging_steps=1, report_to="none", disable_tqdm=True, use_cpu=True,
            save_strategy="no",
        ),
        train_dataset=Dataset.from_dict(COLUMNS),
        loss=MatryoshkaContrastiveLoss(tiny_model, [8, 32], scale=15.0),
    )  # fmt: skip
    trainer.train()
    first = next(entry for entry in trainer.state.log_history if "loss" in entry)
    assert first["loss"] == pytest.approx(first["loss_dim_8"] + first["loss_dim_32"], abs=1e-3)
    tiny_model.save_pretrained(str(tmp_path / "model"))
    card = (tmp_path / "model" / "README.md").read_text()
    for words in ("MatryoshkaContrastiveLoss", '"scale": 15.0', "kusupati2022matryoshka", "oord2018representation"):
        assert words in card


def test_its_config_is_json_with_what_was_asked_for(tiny_model: SentenceTransformer) -> None:
    guide = copy.deepcopy(tiny_model)
    guide.model_card_data.base_model = "a/guide"
    loss = MatryoshkaContrastiveLoss(
        tiny_model,
        [4, 32],
        [1.0, 3.0],
        directions=("query_to_doc", "doc_to_query"),
        partition_mode="per_direction",
        hardness_mode="in_batch_negatives",
        hardness_strength=9.0,
        gather_across_devices=True,
        n_dims_per_step=1,
        matryoshka_weights_end=[2.0, 1.0],
        exclude_duplicates=True,
        margin=0.05,
        margin_strategy="relative",
        guide=guide,
        distill_weight=0.5,
        length_groups=2,
        engine="tiled",
    )
    assert json.loads(json.dumps(loss.get_config_dict())) == {
        "matryoshka_dims": [4, 32],
        "matryoshka_weights": [1.0, 3.0],
        "scale": 20.0,
        "directions": ["query_to_doc", "doc_to_query"],
        "partition_mode": "per_direction",
        "similarity": "cosine",
        "hardness_mode": "in_batch_negatives",
        "hardness_strength": 9.0,
        "gather_across_devices": True,
        "n_dims_per_step": 1,
        "matryoshka_weights_end": [2.0, 1.0],
        "exclude_duplicates": True,
        "margin": 0.05,
        "margin_strategy": "relative",
        "guide": "a/guide",
        "distill_weight": 0.5,
        "length_groups": 2,
        "engine": "tiled",
    }


def test_leaving_the_full_width_out_is_said(tiny_model: SentenceTransformer, caplog: pytest.LogCaptureFixture) -> None:
    MatryoshkaContrastiveLoss(tiny_model, [8, 16])
    assert "leaves out the full width 32" in caplog.text


def test_a_truncated_model_is_refused(tiny_model: SentenceTransformer) -> None:
    tiny_model.truncate_dim = 8
    with pytest.raises(UserError, match="truncate_dim=8, which hides the width to train"):
        MatryoshkaContrastiveLoss(tiny_model, [8])


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            {"matryoshka_dims": [64]},
            "holds 64, above the model's width of 32; each dim is a whole number from 1 to 32",
        ),
        ({"matryoshka_dims": [8], "scale": -1.0}, r"scale is -1\.0"),
        ({"matryoshka_dims": [8], "directions": ["up"]}, r"directions is \('up',\)"),
        ({"matryoshka_dims": [8], "matryoshka_weights": [1, 2]}, "has 2 values for 1 dims"),
    ],
)
def test_bad_arguments_are_refused_when_the_loss_is_made(
    tiny_model: SentenceTransformer, arguments: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(UserError, match=sentence):
        MatryoshkaContrastiveLoss(tiny_model, **arguments)


def test_one_column_is_not_enough(tiny_model: SentenceTransformer) -> None:
    with pytest.raises(UserError, match="got 1 text column; give anchor, positive and any negatives"):
        MatryoshkaContrastiveLoss(tiny_model, [32])(features(tiny_model, 1))
