"""CombinedLoss: one pass through the model, the weighted sum, and every term by name in the trainer's log."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.losses import (
    CosineSimilarityLoss,
    GISTEmbedLoss,
    GlobalOrthogonalRegularizationLoss,
    MultipleNegativesRankingLoss,
)
from torch import nn

from matryoshka_st import UserError
from matryoshka_st.losses import (
    CachedMatryoshkaContrastiveLoss,
    CombinedLoss,
    MatryoshkaContrastiveLoss,
    SpreadOutLoss,
    TeacherDistillLoss,
)

from .test_contrastive import COLUMNS, features, gradients

DIMS = [32, 8]


def all_terms(model: SentenceTransformer) -> dict[str, nn.Module]:
    return {
        "contrastive": MatryoshkaContrastiveLoss(model, DIMS, exclude_duplicates=True, distill_weight=0.5),
        "spread": SpreadOutLoss(model, DIMS),
        "ranking": MultipleNegativesRankingLoss(model),
        "gor": GlobalOrthogonalRegularizationLoss(model),
    }


WEIGHTS = {"spread": 0.1, "ranking": 2.0}
NAMES = [
    "contrastive/loss_dim_8", "contrastive/loss_dim_32", "contrastive/loss_distill_dim_8",
    "spread/loss_spread_out_dim_8", "spread/loss_spread_out_dim_32", "ranking",
    "gor/gor_mean", "gor/gor_second_moment",
]  # fmt: skip


@pytest.mark.parametrize("mini_batch_size", [None, 2], ids=["plain", "cached"])
def test_it_is_the_weighted_sum(tiny_model: SentenceTransformer, mini_batch_size: int | None) -> None:
    model = tiny_model.double().eval()
    inputs = features(model, 3)
    want: dict[str, torch.Tensor] = {}
    for name, loss in all_terms(model).items():
        for key, value in gradients(model, loss, inputs).items():
            want[key] = want.get(key, 0) + WEIGHTS.get(name, 1.0) * value
    combined = CombinedLoss(model, all_terms(model), WEIGHTS, mini_batch_size=mini_batch_size)
    assert list(combined(features(model, 3))) == NAMES
    got = gradients(model, combined, inputs)
    assert want.keys() == got.keys()
    for key in want:
        torch.testing.assert_close(got[key], want[key], rtol=1e-10, atol=1e-10, msg=key)


def test_the_model_sees_each_column_once(tiny_model: SentenceTransformer) -> None:
    calls = []
    tiny_model.register_forward_hook(lambda *_: calls.append(1))
    CombinedLoss(tiny_model, all_terms(tiny_model))(features(tiny_model, 2))
    assert len(calls) == 2


def test_a_loss_that_takes_no_embeddings_runs_by_itself(tiny_model: SentenceTransformer) -> None:
    model = tiny_model.double().eval()
    losses = {"gist": GISTEmbedLoss(model, model), "spread": SpreadOutLoss(model, DIMS)}
    alone = sum(gradients(model, loss, features(model, 2))["loss"] for loss in losses.values())
    terms = CombinedLoss(model, losses)(features(model, 2))
    assert list(terms) == ["gist", "spread/loss_spread_out_dim_8", "spread/loss_spread_out_dim_32"]
    torch.testing.assert_close(terms.total().detach(), alone)
    only = CombinedLoss(model, {"gist": losses["gist"]})(features(model, 2))
    assert list(only) == ["gist"]


def test_labels_reach_the_losses(tiny_model: SentenceTransformer) -> None:
    losses = {"similarity": CosineSimilarityLoss(tiny_model), "spread": SpreadOutLoss(tiny_model, DIMS)}
    terms = CombinedLoss(tiny_model, losses)(features(tiny_model, 2), torch.rand(5))
    assert "similarity" in terms
    teacher = {"teacher": TeacherDistillLoss(tiny_model, DIMS)}
    assert list(CombinedLoss(tiny_model, teacher, mini_batch_size=2)(features(tiny_model, 3), torch.rand(5, 2)))


def test_the_trainer_logs_every_term_by_name_and_the_card_describes_it(
    tiny_model: SentenceTransformer, tmp_path: Path
) -> None:
    trainer = SentenceTransformerTrainer(
        model=tiny_model,
        args=SentenceTransformerTrainingArguments(
            output_dir=str(tmp_path), max_steps=2, logging_steps=1, report_to="none", disable_tqdm=True, use_cpu=True,
            save_strategy="no",
        ),
        train_dataset=Dataset.from_dict(COLUMNS),
        loss=CombinedLoss(tiny_model, all_terms(tiny_model), WEIGHTS, mini_batch_size=2),
    )  # fmt: skip
    trainer.train()
    first = next(entry for entry in trainer.state.log_history if "loss" in entry)
    assert set(NAMES) <= first.keys()
    assert first["loss"] == pytest.approx(sum(first[name] for name in NAMES), abs=2e-3)
    tiny_model.save_pretrained(str(tmp_path / "model"))
    card = (tmp_path / "model" / "README.md").read_text()
    for words in ("CombinedLoss", '"spread": 0.1', "kusupati2022matryoshka", "zhang2017learning"):
        assert words in card


def test_its_config_is_json(tiny_model: SentenceTransformer) -> None:
    config = json.loads(
        json.dumps(CombinedLoss(tiny_model, {"spread": SpreadOutLoss(tiny_model, [8])}).get_config_dict())
    )
    assert config["losses"]["spread"]["class"] == "SpreadOutLoss"
    assert config["losses"]["spread"]["matryoshka_dims"] == [8]
    assert config["weights"] == {"spread": 1.0}


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda m: CombinedLoss(m, {}), "CombinedLoss got no losses"),
        (
            lambda m: CombinedLoss(m, all_terms(m), {"spred": 1}),
            "weights names 'spred', which is no loss; the losses are",
        ),
        (lambda m: CombinedLoss(m, all_terms(m), {"gor": -1}), "weight of 'gor' is -1; it is a finite number"),
        (lambda m: CombinedLoss(m, {"c": CachedMatryoshkaContrastiveLoss(m, [8])}), "'c' caches gradients by itself"),
        (lambda m: CombinedLoss(m, all_terms(m), mini_batch_size=0), "mini_batch_size is 0"),
        (
            lambda m: CombinedLoss(m, {"gist": GISTEmbedLoss(m, m)}, mini_batch_num_tokens=9),
            "'gist' does not compute from embeddings; leave out mini_batch_size",
        ),
    ],
)
def test_bad_arguments_are_refused(tiny_model: SentenceTransformer, make: Any, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        make(tiny_model)
