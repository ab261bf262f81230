"""Which tokens of a batch are to be predicted: a pure function of the batch and the seed."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import DataCollatorForLanguageModeling


@dataclass
class BatchSeededMasking(DataCollatorForLanguageModeling):
    """``DataCollatorForLanguageModeling`` that draws its masks from a hash of the batch, not from a running stream.

    Loaders fetch batches ahead of the step that a checkpoint is of, so masks from a stream differ after resuming;
    these do not, nor do they with other numbers of workers. A shuffled epoch makes new batches and so new masks, and
    held-out texts in their fixed order keep theirs, so that scores of different steps and models compare.
    """

    seed: int | None = 13

    def torch_call(self, examples: list[Any]) -> dict[str, Any]:
        """Pad and mask a batch."""
        digest = hashlib.sha256(str(self.seed).encode())
        for example in examples:
            digest.update(np.asarray(example["input_ids"], dtype=np.int64).tobytes())
        self.generator = torch.Generator().manual_seed(int.from_bytes(digest.digest()[:7]))
        batch: dict[str, Any] = super().torch_call(examples)
        return batch
