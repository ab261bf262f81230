"""Texts and their vectors in one folder, searched with the model that made them and with no other."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from matryoshka_st.errors import UserError
from matryoshka_st.export import declared_dims
from matryoshka_st.models import BUNDLED, embedding_width, load_model, resolve_model, weights_hash
from matryoshka_st.nesting import default_dims
from matryoshka_st.retrieval.adaptive import AdaptiveRetriever
from matryoshka_st.retrieval.builds import Build, check_folder, new_build, read_build
from matryoshka_st.retrieval.passages import Passage
from matryoshka_st.retrieval.settings import Settings
from matryoshka_st.retrieval.shortlist import require_faiss

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

FORMAT = "text index"
SCHEMA_VERSION = 1
TEXTS, VECTORS = "texts.parquet", "vectors"
COARSEST = 8  # times fewer dims in the shortlist than in the ranking, if not chosen


class Found(NamedTuple):
    """A text that was found, where it stands, and the cosine of its vector with the query's."""

    text: str
    place: str
    score: float


class TextIndex:
    """Texts that can be searched; made by :func:`index_texts`, opened by :meth:`load`."""

    def __init__(self, build: Build, retriever: AdaptiveRetriever, texts: pa.Table) -> None:
        self.retriever = retriever
        self.source = str(build.facts["source"])
        self.model_name = str(build.facts["model"])
        self.model_hash = str(build.facts["model_hash"])
        self._texts = texts

    @classmethod
    def load(cls, folder: Path | str) -> Self:
        """Open an index; nothing is read but the texts and the first prefix of their vectors, no checksum compared.

        Raises:
            OptionalDependencyError: If faiss is not installed.
            UserError: If there is none, or one of its files is not whole.
        """
        build = read_build(Path(folder), FORMAT, SCHEMA_VERSION)
        retriever = AdaptiveRetriever.load(build.folder / VECTORS, verify=False)
        path = build.folder / TEXTS
        try:
            texts = pq.read_table(path, memory_map=True)
            index = cls(build, retriever, texts)
        except (OSError, pa.ArrowException) as error:
            raise UserError(f"{path} cannot be read ({_first_line(error)}); index the texts anew.") from error
        except KeyError as error:
            raise UserError(f"The manifest in {folder} lacks {error}; index the texts anew.") from error
        if len(texts) != len(retriever):
            raise UserError(f"{path} has {len(texts)} texts for {len(retriever)} vectors; index the texts anew.")
        return index

    def __len__(self) -> int:
        return len(self._texts)

    def load_model(self, name: str | None = None, *, device: str | None = None) -> SentenceTransformer:
        """Load the model that made the vectors.

        Args:
            name: Where it is now; default: where it was then.
            device: Torch device.

        Raises:
            UserError: If it cannot be loaded, or is another one.
        """
        chosen = name or self.model_name
        model = load_model(chosen, device=device)
        found = weights_hash(model)
        if found != self.model_hash:
            raise UserError(
                f"Model {chosen!r} (hash {found}) is not the one that made the vectors, {self.model_name!r} (hash "
                f"{self.model_hash}); give that one with --model, or index the texts anew."
            )
        return model

    def search(self, model: SentenceTransformer, query: str, k: int, *, shortlist: int | None = None) -> list[Found]:
        """The best texts for a query, best first.

        Args:
            model: From :meth:`load_model`.
            query: A text that is not blank.
            k: Texts to find, 1 to the size of the index.
            shortlist: Candidates that the first prefix finds; default: as :attr:`retriever` was built with.

        Raises:
            UserError: If the query is blank, or k or the shortlist will not do.
        """
        if not query.strip():
            raise UserError("The query is empty; give some words to look for.")
        vector = model.encode_query([query], convert_to_numpy=True, show_progress_bar=False)
        hits = self.retriever.search(vector, k, shortlists=None if shortlist is None else [shortlist])
        rows = self._texts.take(pa.array(hits.ids[0])).to_pylist()
        return [
            Found(row["text"], row["place"], float(score)) for row, score in zip(rows, hits.scores[0], strict=True)
        ]


def index_texts(
    passages: Sequence[Passage],
    folder: Path | str,
    *,
    source: str,
    model_name: str = BUNDLED,
    shortlist_dim: int | None = None,
    rerank_dim: int | None = None,
    batch_size: int = 32,
    device: str | None = None,
    progress: bool = False,
) -> TextIndex:
    """Encode texts and write the index; one that lies in the folder stays usable until the new one is complete.

    Args:
        passages: At least one.
        folder: New, empty, or with a text index in it.
        source: Where the texts are from, for the record.
        model_name: A hub id, a local folder, or ``bundled``.
        shortlist_dim: Leading coordinates that find candidates; default: of the model's dims the
            smallest that is an eighth of ``rerank_dim`` or more.
        rerank_dim: Leading coordinates that rank them; default: all.
        batch_size: Texts encoded at a time.
        device: Torch device.
        progress: Show a progress bar while encoding.

    Raises:
        OptionalDependencyError: If faiss is not installed.
        UserError: If the folder, the model, the batch size, a dim or a vector will not do.
    """
    require_faiss()
    if batch_size < 1:
        raise UserError(f"batch_size is {batch_size}; give a whole number of 1 or more.")
    check_folder(Path(folder), FORMAT)
    model = load_model(model_name, device=device)
    dims = _choose_dims(model, shortlist_dim, rerank_dim)
    with new_build(Path(folder), FORMAT, SCHEMA_VERSION) as build:
        texts = pa.table({"text": [text for text, _ in passages], "place": [place for _, place in passages]})
        pq.write_table(texts, build.folder / TEXTS)
        vectors = model.encode_document(
            [text for text, _ in passages], batch_size=batch_size, convert_to_numpy=True, show_progress_bar=progress
        )
        retriever = AdaptiveRetriever.build(np.asarray(vectors, np.float32), shortlist_dim=dims[0], rerank_dim=dims[1])
        retriever.save(build.folder / VECTORS)
        build.facts.update(source=source, model=_lasting_name(model_name), model_hash=weights_hash(model))
    return TextIndex.load(folder)


def _choose_dims(model: SentenceTransformer, shortlist_dim: int | None, rerank_dim: int | None) -> tuple[int, int]:
    """Check dims before the long work, against those that the model declares, if any."""
    width = embedding_width(model)
    declared = declared_dims(model)
    for dim in (shortlist_dim, rerank_dim):
        if dim is not None and declared and dim not in declared:
            raise UserError(f"The model has no dim {dim}; it declares {', '.join(map(str, declared))}.")
    last = width if rerank_dim is None else rerank_dim
    if shortlist_dim is None:
        ladder = (*(declared or ()), *default_dims(width))
        shortlist_dim = next((dim for dim in ladder if last <= COARSEST * dim < COARSEST * last), max(1, last // 2))
    first, last = Settings.of(width, [shortlist_dim, last], [1]).dims
    return first, last


def _lasting_name(name: str) -> str:
    """A name that finds the model again from another working directory."""
    resolved = Path(resolve_model(name))
    return str(resolved.resolve()) if name != BUNDLED and resolved.is_dir() else name


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
