"""Every cut of the grid against mteb's own encode-again path, or computed by hand."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import mteb
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mteb.abstasks.abstask import AbsTask
from mteb.models import SentenceTransformerEncoderWrapper
from scipy.stats import spearmanr
from sentence_transformers import SentenceTransformer

from matryoshka_st.errors import UserError
from matryoshka_st.evaluation.bank import Bank
from matryoshka_st.evaluation.grid import Grid
from matryoshka_st.evaluation.harness import evaluate_dims
from matryoshka_st.evaluation.prefix_view import Cut, PrefixView
from matryoshka_st.evaluation.runs import read_runs
from matryoshka_st.export import save_model
from matryoshka_st.insertion import insert_retrieval_rotation

MakeTask = Callable[[str], AbsTask]
KINDS = [
    "STS",
    "Classification",
    "Clustering",
    "Clustering, first version",
    "PairClassification",
    "Reranking",
    "Retrieval",
    "Summarization",
    "BitextMining",
]
PRECISIONS = ("float32", "float16", "int8", "binary")

pytestmark = pytest.mark.filterwarnings("ignore:::(mteb|sklearn|scipy)")


def score_of(view: PrefixView, task: AbsTask) -> float:
    results = mteb.evaluate(view, task, cache=None, co2_tracker=False, show_progress_bar=False)
    return float(results.task_results[0].get_score())


@pytest.fixture
def routed(tiny_model: SentenceTransformer) -> SentenceTransformer:
    """The tiny model with a rotation for queries and documents alone."""
    insert_retrieval_rotation(tiny_model, torch.linalg.qr(torch.randn(32, 32)).Q)
    return tiny_model


@pytest.mark.parametrize("kind", ["STS", "Classification", "Reranking", "Retrieval"])
def test_a_rotation_for_retrieval_takes_part_where_mteb_has_queries_and_documents(
    kind: str, routed: SentenceTransformer, tiny_model_path: Path, small_task: MakeTask, tmp_path: Path
) -> None:
    folder = str(save_model(routed, tmp_path / "routed", dims=[8]))

    def scores(model: str) -> tuple[float, float]:
        bank = Bank(SentenceTransformer(model, device="cpu"))
        native = SentenceTransformerEncoderWrapper(model, device="cpu", embed_dim=5)
        kwargs = {"batch_size": 32, "show_progress_bar": False}
        results = mteb.evaluate(native, small_task(kind), cache=None, encode_kwargs=kwargs, co2_tracker=False)
        view = PrefixView(bank, Cut(5, normalized=False), name="local/tiny", revision="abc")
        return score_of(view, small_task(kind)), float(results.task_results[0].get_score())

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        (ours, theirs), (plain, _) = scores(folder), scores(str(tiny_model_path))
    assert ours == pytest.approx(theirs, abs=1e-6)
    assert (ours != plain) == (kind in ("Reranking", "Retrieval"))


def test_nothing_is_fitted_on_texts_for_a_model_with_two_ways(
    routed: SentenceTransformer, small_task: MakeTask
) -> None:
    grid = Grid(baselines=["pca"], texts="texts.txt")
    with pytest.raises(UserError, match="embeds queries and documents otherwise than other texts"):
        evaluate_dims(routed, [small_task("STS")], [8], grid=grid)


@pytest.mark.parametrize("kind", KINDS)
def test_without_normalisation_scores_equal_mteb_with_embed_dim(
    kind: str, tiny_model_path: Path, small_task: MakeTask
) -> None:
    bank = Bank(SentenceTransformer(str(tiny_model_path), device="cpu"))
    for dim in (32, 8, 3):
        view = PrefixView(bank, Cut(dim, normalized=False), name="local/tiny", revision="abc")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            native = SentenceTransformerEncoderWrapper(str(tiny_model_path), device="cpu", embed_dim=dim)
            kwargs = {"batch_size": 32, "show_progress_bar": False}
            results = mteb.evaluate(native, small_task(kind), cache=None, encode_kwargs=kwargs, co2_tracker=False)
        expected = results.task_results[0].get_score()
        assert score_of(view, small_task(kind)) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("dim", [32, 24, 16, 5])
def test_binary_similarity_by_hand(tiny_model: SentenceTransformer, small_task: MakeTask, dim: int) -> None:
    task = small_task("STS")
    rows = task.dataset["test"]
    left, right = (torch.as_tensor(tiny_model.encode(rows[c]))[:, :dim] > 0 for c in ("sentence1", "sentence2"))
    cosines = 1 - 2 * (left != right).sum(dim=1) / dim
    view = PrefixView(Bank(tiny_model), Cut(dim, "binary"), name="local/tiny", revision="abc")
    assert score_of(view, small_task("STS")) == pytest.approx(spearmanr(cosines, rows["score"]).statistic, abs=1e-6)


def test_binary_retrieval_by_hand(tiny_model: SentenceTransformer, small_task: MakeTask) -> None:
    task = small_task("Retrieval")
    split = task.dataset["default"]["test"]
    signs = [torch.as_tensor(tiny_model.encode(split[c]["text"]))[:, :16] > 0 for c in ("queries", "corpus")]
    agree = np.array([[int((q == d).sum()) for d in signs[1]] for q in signs[0]])
    position = {name: i for i, name in enumerate(split["corpus"]["id"])}
    gains = []
    for row, query in enumerate(split["queries"]["id"]):
        (right,) = (position[name] for name in split["relevant_docs"][query])
        ids = np.array(split["corpus"]["id"])
        order = sorted(range(len(ids)), key=lambda i, r=row: (agree[r, i], ids[i]), reverse=True)
        rank = order.index(right)
        gains.append(1 / np.log2(rank + 2) if rank < 10 else 0.0)
    view = PrefixView(Bank(tiny_model), Cut(16, "binary"), name="local/tiny", revision="abc")
    assert score_of(view, task) == pytest.approx(np.mean(gains), abs=1e-5)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # statistics of mock summaries that are equal texts
@pytest.mark.parametrize("precision", ["int8", "binary"])
def test_all_text_tasks_of_mteb_run_in_every_precision(tiny_model: SentenceTransformer, precision: str) -> None:
    view = PrefixView(Bank(tiny_model), Cut(8, precision), name="local/tiny", revision="abc")
    results = mteb.mock_run(view)
    assert not {name: str(status) for name, status in results.items() if type(status).__name__ == "TaskError"}


def test_queries_and_documents_share_one_calibration(tiny_model: SentenceTransformer, small_task: MakeTask) -> None:
    task = small_task("Retrieval")
    view = PrefixView(Bank(tiny_model), Cut(8, "int8"), name="local/tiny", revision="abc")
    score_of(view, task)
    corpus = torch.as_tensor(tiny_model.encode(task.dataset["default"]["test"]["corpus"]["text"]))
    documents = F.normalize(corpus[:, :8], dim=1)
    assert view.ranges is not None
    torch.testing.assert_close(view.ranges.low, documents.amin(0))
    torch.testing.assert_close(view.ranges.high, documents.amax(0))
    assert view.record()["calibration"] == "the first 30 documents of HeldOut"


def test_a_grid_costs_one_encode_and_every_cut_has_its_own_result(
    tiny_model: SentenceTransformer, small_task: MakeTask, tmp_path: Path
) -> None:
    encoded: list[str] = []
    forward = tiny_model.encode
    tiny_model.encode = lambda texts, *a, **k: encoded.extend(texts) or forward(texts, *a, **k)  # type: ignore[method-assign]
    tiny_model.encode_query = tiny_model.encode_document = tiny_model.encode  # type: ignore[method-assign]
    tasks = [small_task("Retrieval"), small_task("STS")]
    grid = Grid(precisions=PRECISIONS)
    scores = evaluate_dims(tiny_model, tasks, [32, 8], grid=grid, name="me/tiny", output=tmp_path)
    assert len(scores) == 2 * 2 * 4
    assert len(encoded) == 60 + len(set(encoded[60:]))
    runs = read_runs([tmp_path])
    assert {(run.task, run.dim, run.precision) for run in runs} == {
        (task, dim, precision) for task in ("HeldOut", "MockSTSTask") for dim in (32, 8) for precision in PRECISIONS
    }
    by_cut = {(score.task, score.dim, score.precision): score.score for score in scores}
    for run in runs:
        assert run.score == pytest.approx(by_cut[run.task, run.dim, run.precision], abs=1e-5)
        assert (run.model, run.width, run.variant) == ("me/tiny", 32, "")
        assert len(run.per_query) == (30 if run.task == "HeldOut" else 0)
    loaded = mteb.ResultCache(tmp_path).load_results(load_experiments="match_name", require_model_meta=False)
    names = {result.experiment_name for result in loaded.model_results}
    assert {None, "embed_dim_8", "embed_dim_8__output_dtypes_binary", "output_dtypes_int8"} <= names
    assert len(names) == 8


def test_baselines_are_filed_beside_the_plain_cut(
    tiny_model: SentenceTransformer, small_task: MakeTask, tmp_path: Path
) -> None:
    texts = tmp_path / "texts.txt"
    texts.write_text("\n".join(f"text number {i} about {'cats' if i % 2 else 'ships'}" for i in range(64)))
    grid = Grid(baselines=["svd", "random"], seeds=[1, 2], texts=str(texts), before_cut="layer_norm")
    scores = evaluate_dims(tiny_model, [small_task("STS")], [32, 9], grid=grid, output=tmp_path / "out")
    full = {score.variant: score.score for score in scores if score.dim == 32}
    (fitted,) = (variant for variant in full if variant.startswith("layer_norm+svd-texts-"))
    assert set(full) == {"layer_norm", fitted, "layer_norm+random-1", "layer_norm+random-2"}
    assert max(full.values()) == pytest.approx(min(full.values()), abs=1e-4)  # another basis of the same cosines
    assert len({score.score for score in scores if score.dim == 9}) == 4
    assert {run.variant for run in read_runs([tmp_path / "out"])} == set(full)
    texts.write_text("other texts\nof no use\nat all")
    again = evaluate_dims(tiny_model, [small_task("STS")], [9], grid=grid, output=tmp_path / "out")
    assert fitted not in {score.variant for score in again}


def test_a_named_calibration_is_part_of_the_result(
    tiny_model: SentenceTransformer, small_task: MakeTask, tmp_path: Path
) -> None:
    for name in ("one", "two"):
        (tmp_path / f"{name}.txt").write_text(f"a first text\nsome {name} text\nanother")
        grid = Grid(precisions=["int8"], texts=str(tmp_path / f"{name}.txt"))
        evaluate_dims(tiny_model, [small_task("STS")], [8], grid=grid, output=tmp_path / "out")
    folders = {
        path.parent.name for path in (tmp_path / "out").rglob("MockSTSTask.json") if path.parent.name != "matryoshka"
    }
    assert len(folders) == 2


def test_two_processes_encode_as_one(tiny_model: SentenceTransformer, small_task: MakeTask) -> None:
    (alone,) = evaluate_dims(tiny_model, [small_task("STS")], [8])
    (together,) = evaluate_dims(tiny_model, [small_task("STS")], [8], devices=["cpu", "cpu"])
    assert together.score == pytest.approx(alone.score, abs=1e-6)


@pytest.mark.parametrize(
    ("grid", "sentence"),
    [
        (Grid(precisions=["int4"]), "no precision 'int4'"),
        (Grid(precisions=[]), "No precision was given"),
        (Grid(baselines=["pca"]), "Baselines are fitted on texts"),
        (Grid(before_cut="nonsense"), "no step 'nonsense' before the cut"),
    ],
)
def test_a_wrong_grid_is_refused_before_anything_runs(
    tiny_model: SentenceTransformer, small_task: MakeTask, grid: Grid, sentence: str
) -> None:
    with pytest.raises(UserError, match=sentence):
        evaluate_dims(tiny_model, [small_task("STS")], [8], grid=grid)


def test_a_folder_without_results_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist; give what eval --output wrote"):
        read_runs([tmp_path / "none"])
    with pytest.raises(UserError, match="holds no result"):
        read_runs([tmp_path])
