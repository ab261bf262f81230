from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import mteb
import pytest
from mteb.abstasks.abstask import AbsTask
from mteb.models.model_meta import ScoringFunction
from mteb.models.models_protocols import EncoderProtocol, SearchProtocol
from mteb.results.task_result import TaskError
from sentence_transformers import SentenceTransformer

from matryoshka_st.evaluation.bank import Bank
from matryoshka_st.evaluation.prefix_view import Cut, PrefixView

# Tasks of two or three texts leave scikit-learn's and SciPy's statistics undefined, and mteb calls deprecated names.
pytestmark = pytest.mark.filterwarnings("ignore:::(mteb|sklearn|scipy)")


@pytest.fixture
def view(tiny_model: SentenceTransformer) -> PrefixView:
    return PrefixView(Bank(tiny_model), Cut(8), name="local/tiny", revision="abc")


def test_a_view_is_an_encoder_and_a_searcher(view: PrefixView) -> None:
    assert isinstance(view, EncoderProtocol)
    assert isinstance(view, SearchProtocol)


def test_results_are_filed_by_name_revision_and_dim(tiny_model: SentenceTransformer) -> None:
    bank = Bank(tiny_model)
    metas = {dim: PrefixView(bank, Cut(dim), name="me/tiny", revision="abc").mteb_model_meta for dim in (32, 16, 8)}
    assert {(meta.name, meta.revision) for meta in metas.values()} == {("me/tiny", "abc")}
    assert {dim: meta.embed_dim for dim, meta in metas.items()} == {32: 32, 16: 16, 8: 8}
    assert metas[32].experiment_name is None
    assert metas[16].experiment_name == "embed_dim_16"
    assert all(meta.similarity_fn_name is ScoringFunction.COSINE for meta in metas.values())


def test_search_needs_a_corpus(view: PrefixView) -> None:
    with pytest.raises(RuntimeError, match="before index"):
        view.search([], hf_split="test", hf_subset="default")


def test_all_text_tasks_of_mteb_run(view: PrefixView) -> None:
    results = mteb.mock_run(view)
    failed = {name: status for name, status in results.items() if isinstance(status, TaskError)}
    ran = [name for name, status in results.items() if status is not None]
    assert not failed
    assert len(ran) >= 25


@pytest.mark.parametrize(
    "kind", ["STS", "Classification", "Clustering", "PairClassification", "Reranking", "Retrieval"]
)
def test_scores_equal_those_of_mteb_with_truncate_dim(
    kind: str,
    tiny_model_path: Path,
    small_task: Callable[[str], AbsTask],
    own_score: Callable[[SentenceTransformer, AbsTask], float],
) -> None:
    bank = Bank(SentenceTransformer(str(tiny_model_path), device="cpu"))
    for dim in (32, 8, 3):
        view = PrefixView(bank, Cut(dim), name="local/tiny", revision="abc")
        results = mteb.evaluate(view, small_task(kind), cache=None, co2_tracker=False, show_progress_bar=False)
        truncated = SentenceTransformer(str(tiny_model_path), truncate_dim=dim, device="cpu")
        expected = own_score(truncated, small_task(kind))
        assert results.task_results[0].get_score() == pytest.approx(expected, abs=1e-5)
