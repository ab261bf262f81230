"""A teacher that embeds the batch while the student trains."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from sentence_transformers import SentenceTransformer

from matryoshka_st.errors import UserError
from matryoshka_st.losses import CombinedLoss, MatryoshkaContrastiveLoss, TaughtLoss, TeacherDistillLoss

DIMS = [32, 8]
TEXTS = [["amber birch", "cedar", "delta ember fjord"], ["amber", "cedar grove", "fjord"]]


def taught(model: SentenceTransformer, teacher: SentenceTransformer, weight: float = 1.0) -> TaughtLoss:
    terms = {"contrastive": MatryoshkaContrastiveLoss(model, DIMS), "teacher": TeacherDistillLoss(model, DIMS)}
    return TaughtLoss(model, teacher, CombinedLoss(model, terms, {"teacher": weight}))


@pytest.fixture
def teacher(tiny_model_path: Path) -> SentenceTransformer:
    model = SentenceTransformer(str(tiny_model_path), device="cpu")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(7)))
    return model


def test_the_term_is_the_divergence_from_the_teacher_s_similarities(
    tiny_model: SentenceTransformer, teacher: SentenceTransformer
) -> None:
    model = tiny_model.eval()
    features = [model.preprocess(texts) for texts in TEXTS]
    terms = taught(model, teacher, 0.5)(features)
    own, known = ([m.encode(texts, convert_to_tensor=True) for texts in TEXTS] for m in (model, teacher))
    target = F.softmax(20 * F.normalize(known[0]) @ F.normalize(known[1]).T, dim=1)
    for dim in DIMS:
        q, d = (F.normalize(x[:, :dim]) for x in own)
        want = 0.5 * F.kl_div(F.log_softmax(20 * q @ d.T, dim=1), target, reduction="batchmean")
        torch.testing.assert_close(terms[f"teacher/loss_teacher_dim_{dim}"], want, rtol=1e-4, atol=1e-6)
    plain = MatryoshkaContrastiveLoss(model, DIMS)([model.preprocess(texts) for texts in TEXTS])
    for name, value in plain.items():
        torch.testing.assert_close(terms[f"contrastive/{name}"], value)


def test_a_model_that_is_its_own_teacher_has_nothing_to_learn_at_full_width(
    tiny_model: SentenceTransformer, tiny_model_path: Path
) -> None:
    model = tiny_model.eval()
    terms = taught(model, SentenceTransformer(str(tiny_model_path), device="cpu"))(
        [model.preprocess(texts) for texts in TEXTS]
    )
    assert terms["teacher/loss_teacher_dim_32"].item() == pytest.approx(0, abs=1e-5)
    assert terms["teacher/loss_teacher_dim_8"].item() > 1e-3


def test_the_teacher_gets_no_gradient(tiny_model: SentenceTransformer, teacher: SentenceTransformer) -> None:
    loss = taught(tiny_model, teacher)
    loss([tiny_model.preprocess(texts) for texts in TEXTS]).total().backward()
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert any(parameter.grad is not None for parameter in tiny_model.parameters())


def test_the_student_is_no_teacher_of_itself(tiny_model: SentenceTransformer) -> None:
    with pytest.raises(UserError, match="The teacher is the model that is trained; load it a second time"):
        taught(tiny_model, tiny_model)
