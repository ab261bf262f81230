"""A prefix of a model, in some precision, as an mteb model of its own.

mteb uses an object that is both an encoder and a searcher as a searcher for retrieval and reranking and as an encoder
everywhere else, so one class covers every text task.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from mteb.models.abs_encoder import AbsEncoder
from mteb.models.model_meta import ModelMeta, ScoringFunction

from matryoshka_st.evaluation.precision import (
    Precision,
    Ranges,
    bytes_per_vector,
    calibrate,
    quantize,
    with_exact_length,
)
from matryoshka_st.nesting import truncate_normalize

if TYPE_CHECKING:
    import numpy as np
    from datasets import Dataset
    from mteb.abstasks.task_metadata import TaskMetadata
    from numpy.typing import NDArray
    from torch import Tensor
    from torch.utils.data import DataLoader

    from matryoshka_st.evaluation.bank import Bank, Ranking
    from matryoshka_st.evaluation.steps import Step

CALIBRATION_ROWS = 10_000
OWN_RANGES = "the first "
"""How the note on int8's ranges begins where they are those of the task's own documents or texts."""
_COSINES_BY_MTEB = ("STS", "PairClassification")  # it normalises there by itself, and rounding would break ties


@dataclass(frozen=True)
class Cut:
    """From full-width vectors to those compared.

    Attributes:
        dim: Leading coordinates kept.
        precision: How they are stored.
        normalized: Whether they are scaled to unit length after the cut, before they are stored.
        before: What is done to the full width first.
    """

    dim: int
    precision: Precision = "float32"
    normalized: bool = True
    before: Step | None = None

    @property
    def bytes_per_vector(self) -> int:
        """Bytes of one stored vector."""
        return bytes_per_vector(self.dim, self.precision)

    def settings(self, width: int) -> dict[str, Any]:
        """What differs from the full-width float32 unit vectors, as mteb's ``experiment_kwargs``."""
        return {
            **({"embed_dim": self.dim} if self.dim != width else {}),
            **({"output_dtypes": self.precision} if self.precision != "float32" else {}),
            **({} if self.normalized else {"normalized": False}),
            **({"before_cut": self.before.name} if self.before else {}),
        }

    def prefix(self, vectors: Tensor) -> Tensor:
        """The prefix, at full precision."""
        x = self.before(vectors) if self.before else vectors
        return truncate_normalize(x, self.dim) if self.normalized else x[:, : self.dim]


class PrefixView(AbsEncoder):
    """One cut of every embedding in a bank.

    Args:
        bank: Shared by all views of the model.
        cut: What is compared.
        name: ``organisation/name`` under which results are filed.
        revision: What tells these weights from any others.
        calibration: Full-width vectors whose ranges int8 uses on every task; without them each task is calibrated on
            the first of its documents, else of its texts, up to 10,000: queries and documents share the ranges.

    Attributes:
        mteb_model_meta: Name, revision and dim, all set: mteb files results by them alone. Full-width float32 lies at
            the root of the model's results, all else under ``experiments/embed_dim_<dim>__output_dtypes_<precision>``.
        rankings: Search results by (split, subset) of the task in hand.
        ranges: The calibration of the task in hand.
    """

    mteb_model_meta: ModelMeta

    def __init__(
        self, bank: Bank, cut: Cut, *, name: str, revision: str, calibration: tuple[Tensor, str] | None = None
    ) -> None:
        self.cut = cut
        self._bank = bank
        self._corpus: Dataset | None = None
        self._fixed = calibrate(cut.prefix(calibration[0]), calibration[1]) if calibration else None
        settings = cut.settings(bank.width)
        if self._fixed and cut.precision == "int8":
            settings["calibration"] = self._fixed.source
        self.mteb_model_meta = bank.meta.model_copy(
            update={
                "name": name,
                "revision": revision,
                "embed_dim": cut.dim,
                "experiment_kwargs": settings or None,
                "similarity_fn_name": ScoringFunction.COSINE,
            }
        )
        self.begin()

    def begin(self) -> None:
        """Forget the last task."""
        self.rankings: dict[tuple[str, str], Ranking] = {}
        self.ranges: Ranges | None = self._fixed

    def calibrate(self, vectors: Tensor, source: str) -> None:
        """Take the ranges of this task from full-width vectors, if int8 has none yet."""
        if self.cut.precision == "int8" and self.ranges is None:
            rows = vectors[:CALIBRATION_ROWS]
            self.ranges = calibrate(self.cut.prefix(rows), f"{OWN_RANGES}{len(rows)} {source}")

    def compared(self, vectors: Tensor) -> Tensor:
        """Vectors whose dot products rank as the cosines of the cut do: unit vectors, or +1 and -1 (exact sums)."""
        stored = self._stored(vectors)
        plain = self.cut.precision == "binary" or (self.cut.precision == "float32" and self.cut.normalized)
        return stored if plain else F.normalize(stored, dim=1)

    @property
    def dot_of_equals(self) -> float:
        """The dot product of a compared vector with itself: what to divide by for a cosine."""
        return float(self.cut.dim) if self.cut.precision == "binary" else 1.0

    def record(self) -> dict[str, Any]:
        """How the vectors of the task in hand were cut and stored."""
        return {
            "width": self._bank.width,
            "embed_dim": self.cut.dim,
            "precision": self.cut.precision,
            "bytes_per_vector": self.cut.bytes_per_vector,
            "normalized_after_cut": self.cut.normalized,
            "before_cut": self.cut.before.name if self.cut.before else None,
            "calibration": self.ranges.source if self.ranges else None,
        }

    def encode(self, inputs: DataLoader[Any], *, task_metadata: TaskMetadata, **kwargs: Any) -> NDArray[np.float32]:
        """Encode texts for mteb's encoder tasks (``EncoderProtocol``)."""
        vectors = self._bank.encode(inputs, task_metadata=task_metadata, **kwargs)
        self.calibrate(vectors, f"texts of {task_metadata.name}")
        stored = self._stored(vectors)
        if self.cut.precision == "binary" and task_metadata.type in _COSINES_BY_MTEB:
            stored = with_exact_length(stored)
        return stored.numpy()

    def similarity(self, embeddings1: Any, embeddings2: Any) -> Tensor:
        """Cosines (n x m); of signs without rounding, so that ties stay ties."""
        if self.cut.precision != "binary":
            return torch.as_tensor(super().similarity(embeddings1, embeddings2))
        left, right = (torch.atleast_2d(torch.as_tensor(x))[:, : self.cut.dim] for x in (embeddings1, embeddings2))
        cosines: Tensor = left @ right.T / self.cut.dim
        return cosines

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> Tensor:
        """Cosines of row i with row i (n); of signs without rounding."""
        if self.cut.precision != "binary":
            return torch.as_tensor(super().similarity_pairwise(embeddings1, embeddings2))
        products = torch.as_tensor(embeddings1) * torch.as_tensor(embeddings2)
        return products[..., : self.cut.dim].sum(dim=-1) / self.cut.dim

    def index(self, corpus: Dataset, **kwargs: Any) -> None:
        """Note the corpus to search (``SearchProtocol``); it is read, in chunks, by :meth:`search`."""
        self._corpus = corpus

    def search(self, queries: Dataset, *, hf_split: str, hf_subset: str, **kwargs: Any) -> Ranking:
        """Rank the indexed corpus for each query (``SearchProtocol``)."""
        if self._corpus is None:
            raise RuntimeError("search() was called before index()")
        corpus, self._corpus = self._corpus, None
        ranking = self._bank.search(self, corpus, queries, hf_split=hf_split, hf_subset=hf_subset, **kwargs)
        self.rankings[hf_split, hf_subset] = ranking
        return ranking

    def _stored(self, vectors: Tensor) -> Tensor:
        return quantize(self.cut.prefix(vectors), self.cut.precision, self.ranges)
