"""Vectors of labelled texts: both splits, at full width, with one numbering of the classes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformer

from matryoshka_st.errors import UserError
from matryoshka_st.evaluation.labelled_vectors import labelled_vectors

TEXTS = {"train": ["red fish", "old house", "new tree"], "test": ["green sea", "tall ship"]}


def folder(path: Path, test_labels: list[str]) -> str:
    for split, labels in (("train", ["b", "a", "c"]), ("test", test_labels)):
        Dataset.from_dict({"text": TEXTS[split], "label": labels}).to_parquet(path / f"{split}.parquet")
    return str(path)


def test_both_splits_at_full_width_with_the_classes_of_the_training_split(
    tiny_model: SentenceTransformer, tmp_path: Path
) -> None:
    vectors = labelled_vectors(tiny_model, folder(tmp_path, ["c", "a"]))
    assert vectors.names == ("a", "b", "c")
    assert vectors.train_labels.tolist() == [1, 0, 2] and vectors.test_labels.tolist() == [2, 0]
    torch.testing.assert_close(vectors.test, tiny_model.encode(TEXTS["test"], convert_to_tensor=True))
    assert vectors.train.shape == (3, 32)


def test_a_label_of_the_test_split_alone_is_refused(tiny_model: SentenceTransformer, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has the label 'd', which the training data has not"):
        labelled_vectors(tiny_model, folder(tmp_path, ["c", "d"]))
