"""A prefix of a model as an mteb model of its own.

mteb uses an object that is both an encoder and a searcher as a searcher for retrieval and reranking and as an encoder
everywhere else, so one class covers every text task.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mteb.models.abs_encoder import AbsEncoder
from mteb.models.model_meta import ModelMeta, ScoringFunction

from matryoshka_st.nesting import truncate_normalize

if TYPE_CHECKING:
    import numpy as np
    from datasets import Dataset
    from numpy.typing import NDArray
    from torch import Tensor
    from torch.utils.data import DataLoader

    from matryoshka_st.evaluation.bank import Bank, Ranking


class PrefixView(AbsEncoder):
    """The first ``dim`` coordinates of every embedding in a bank, scaled to unit length.

    Args:
        bank: Shared by all views of the model.
        dim: Leading coordinates compared.
        name: ``organisation/name`` under which results are filed.
        revision: What tells these weights from any others.

    Attributes:
        mteb_model_meta: Name, revision and dim, all set: mteb files results by them alone. The full width lies at the
            root of the model's results, a shorter prefix under ``experiments/embed_dim_<dim>``.
        rankings: Search results by (split, subset) since the owner last cleared them.
    """

    mteb_model_meta: ModelMeta

    def __init__(self, bank: Bank, dim: int, *, name: str, revision: str) -> None:
        self.dim = dim
        self.rankings: dict[tuple[str, str], Ranking] = {}
        self._bank = bank
        self._corpus: Dataset | None = None
        self.mteb_model_meta = bank.meta.model_copy(
            update={
                "name": name,
                "revision": revision,
                "embed_dim": dim,
                "experiment_kwargs": {"embed_dim": dim} if dim != bank.width else None,
                "similarity_fn_name": ScoringFunction.COSINE,
            }
        )

    def cut(self, vectors: Tensor) -> Tensor:
        """The one step from full-width vectors to those compared; another precision would be another ``cut``."""
        return truncate_normalize(vectors, self.dim)

    def encode(self, inputs: DataLoader[Any], **kwargs: Any) -> NDArray[np.float32]:
        """Encode texts for mteb's encoder tasks (``EncoderProtocol``)."""
        return self.cut(self._bank.encode(inputs, **kwargs)).numpy()

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
