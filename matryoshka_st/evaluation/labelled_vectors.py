"""Full-width vectors of labelled texts, encoded once, for whatever classifies prefixes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer
from torch import Tensor

from matryoshka_st.data.labelled import class_names, class_numbers, load_labelled

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class LabelledVectors:
    """Vectors (n x width, float32, on the CPU) and class numbers of a training and a test split."""

    train: Tensor
    train_labels: Ints
    test: Tensor
    test_labels: Ints
    names: tuple[str, ...]


def labelled_vectors(
    model: SentenceTransformer,
    source: str,
    *,
    train_split: str = "train",
    test_split: str = "test",
    batch_size: int = 64,
    progress: bool = False,
) -> LabelledVectors:
    """Encode both splits of a labelled data set at full width.

    Args:
        model: A model at its full width.
        source: A hub id or folder with the splits; see :func:`~matryoshka_st.data.labelled.load_labelled`.
        train_split: Name of the training split.
        test_split: Name of the test split.
        batch_size: Texts per forward pass.
        progress: Show a progress bar.

    Raises:
        UserError: If a split cannot be read, or has labels that the training split has not.
    """
    splits = [load_labelled(source, split=split) for split in (train_split, test_split)]
    names = class_names(splits[0]["label"][:])
    vectors = [_encoded(model, split["text"][:], batch_size, progress) for split in splits]
    labels = [np.array(class_numbers(split["label"][:], names, source), np.int64) for split in splits]
    return LabelledVectors(vectors[0], labels[0], vectors[1], labels[1], names)


def _encoded(model: SentenceTransformer, texts: Sequence[str], batch_size: int, progress: bool) -> Tensor:
    encoded = model.encode(list(texts), batch_size=batch_size, convert_to_tensor=True, show_progress_bar=progress)
    return torch.as_tensor(encoded).float().cpu()
