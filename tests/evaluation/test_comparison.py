"""Two sides on shared tasks: who is found by a name, what is counted, and what the sentence may say."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest

from matryoshka_st.errors import UserError
from matryoshka_st.evaluation.comparison import compare, sentence
from matryoshka_st.evaluation.comparison_report import notes
from matryoshka_st.evaluation.runs import Run
from matryoshka_st.evaluation.side_search import find_side
from matryoshka_st.evaluation.sides import Side, TaskScore, aggregate_parts, published_sides, run_sides


def side(model: str, scores: Mapping[str, float | TaskScore], *, dim: int = 64) -> Side:
    """A plain number is the score of an STS task."""
    by_task = {task: score if isinstance(score, TaskScore) else sts(score) for task, score in scores.items()}
    return Side(model, "0a1b2c", dim, 384, scores=by_task)


def sts(score: float, metric: str = "cosine_spearman") -> TaskScore:
    return TaskScore("STS", metric, score, "our run")


def clustering(score: float) -> TaskScore:
    return TaskScore("Clustering", "v_measure", score, "our run")


def run(task: str, score: float, *, revision: str = "0a1b2c", **changes: object) -> Run:
    fixed = {"model": "local/model", "revision": revision, "dim": 64, "width": 384, "precision": "float32"}
    rest = {"variant": "", "task_type": "Retrieval", "metric": "ndcg_at_10", "bytes_per_vector": 256}
    return Run(task=task, score=score, **{**fixed, **rest, **changes})  # type: ignore[arg-type]


def retrieval_run(task: str, per_query: np.ndarray, *, revision: str, **changes: object) -> Run:
    scores = {f"test/default/{i}": float(value) for i, value in enumerate(per_query)}
    return run(task, round(float(per_query.mean()), 5), revision=revision, per_query=scores, **changes)


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("ada-002", "openai/text-embedding-ada-002@1536"),
        ("openai/text-embedding-3-large", "openai/text-embedding-3-large@3072"),
        ("text-embedding-3-large@256", "openai/text-embedding-3-large@256"),
        ("NOMIC@64", "nomic-ai/nomic-embed-text-v1.5@64"),
        ("all-minilm-l6-v2", "sentence-transformers/all-MiniLM-L6-v2@384"),
        ("bge-small-en-v1.5#published@384", "BAAI/bge-small-en-v1.5@384"),
    ],
)
def test_a_short_name_that_fits_one_model_is_enough(text: str, label: str) -> None:
    assert find_side(text, published_sides()).label == label


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("text-embedding-3", r"'text-embedding-3' can be any of openai/.*-3-large, openai/.*-3-small; write more"),
        ("text-embeding-ada-002", r"no model 'text-embeding-ada-002'; did you mean 'text-embedding-ada-002'\?"),
        ("ada-002@256", r"no scores for 'ada-002@256'; of .* there are openai/text-embedding-ada-002@1536\.$"),
        ("ada-002:binary", r"no scores for 'ada-002:binary'"),
        ("ada-002@x", r"'ada-002@x' is not model@dim;"),
        ("ada-002@1536:int8:binary", "names 2 precisions; name one of float32, float16, int8, binary"),
    ],
)
def test_a_name_that_fits_none_or_many_is_explained(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        find_side(text, published_sides())


def test_precision_variant_and_revision_tell_our_runs_apart() -> None:
    sides = run_sides(
        [
            run("SciFact", 0.5),
            run("SciFact", 0.4, precision="binary"),
            run("SciFact", 0.3, precision="int8", variant="pca"),
            run("SciFact", 0.2, revision="9f8e7d", dim=384),
            run("SciFact", 0.1, revision="9f8e7d", precision="binary"),
        ]
    )
    found = {
        text: find_side(text, sides).scores["SciFact"].score for text in ("model@64", "model@64:pca:int8", "model")
    }
    assert found == {"model@64": 0.5, "model@64:pca:int8": 0.3, "model": 0.2}
    assert find_side("model#9f@64:binary", sides).scores["SciFact"].score == 0.1
    with pytest.raises(UserError, match="can be any of local/model#0a1b2c@64:binary, local/model#9f8e7d@64:binary;"):
        find_side("model@64:binary", sides)


def test_only_shared_tasks_count_and_types_weigh_by_their_tasks() -> None:
    left = side("a/left", {"A": 0.8, "B": 0.5, "C": clustering(0.3), "only left": 0.1})
    right = side("b/right", {"A": 0.6, "B": 0.50004, "C": clustering(0.4), "only right": 0.9}, dim=384)
    found = compare(left, right)
    assert [(group.name, [pair.task for pair in group.pairs]) for group in found.types] == [
        ("Clustering", ["C"]),
        ("STS", ["A", "B"]),
    ]
    assert found.overall.outcomes == (1, 1, 1)
    assert (found.overall.left, found.overall.right) == pytest.approx((1.6 / 3, 1.50004 / 3))
    assert sentence(found) == (
        "left at 64 of its 384 dims beats right at its full 384 dims on the mean of 3 tasks: "
        "53.33 against 50.00 (+3.33), with 1 of 3 tasks won and 1 tied."
    )


def test_a_benchmark_is_named_with_how_much_of_it_is_shared() -> None:
    left, right = side("a/left", {"A": 0.5, "B": 0.5, "D": 0.9}), side("b/right", {"A": 0.6, "B": 0.6, "D": 0.1})
    found = compare(left, right, tasks=["A", "B", "C"], benchmark="Bench")
    assert "left at 64 of its 384 dims trails right" in sentence(found)
    assert "the mean of 2 of the 3 tasks of Bench: 50.00 against 60.00 (-10.00), with 0 of 2" in sentence(found)


def test_parts_do_not_count_beside_their_whole() -> None:
    whole, parts = "CQADupstackRetrieval", aggregate_parts()["CQADupstackRetrieval"]
    ours = run_sides([run(part, i / 100) for i, part in enumerate(parts)])[0]
    assert ours.scores[whole].score == pytest.approx(np.arange(12).mean() / 100)
    ada = find_side("ada-002", published_sides())
    found = compare(ours, ada, aggregates=aggregate_parts())
    assert [pair.task for pair in found.overall.pairs] == [whole]
    assert len(compare(ours, ada, tasks=parts, aggregates=aggregate_parts()).overall.pairs) == 12
    assert whole not in run_sides([run(part, 0.5) for part in parts[1:]])[0].scores


def test_tasks_with_other_main_scores_are_left_out_and_renamed_ones_are_not() -> None:
    left = side("a/left", {"A": sts(0.5, "accuracy"), "B": sts(0.5, "cos_sim.spearman")})
    found = compare(left, side("b/right", {"A": 0.4, "B": 0.4}))
    assert list(found.other_metric) == ["A"]
    assert [pair.task for pair in found.overall.pairs] == ["B"]
    assert "tasks won" not in sentence(found)


def test_our_queries_give_an_interval_and_the_verb_heeds_it() -> None:
    rng = np.random.default_rng(0)
    base = rng.random(300) * 0.8
    close, better = base + rng.normal(0, 0.1, 300), base + rng.normal(0.05, 0.1, 300)
    left, level, right = run_sides(
        [
            retrieval_run(task, values, revision=revision)
            for revision, values in (("1", better), ("2", close), ("3", base))
            for task in ("SciFact", "NFCorpus")
        ]
    )
    interval = compare(left, right).overall.interval
    assert interval is not None
    assert 0.03 < interval.low < interval.mean < interval.high < 0.07
    assert sentence(compare(left, right)).startswith("local/model#1 at 64 of its 384 dims beats local/model#3 at 64")
    assert f"[{100 * interval.low:.2f}, {100 * interval.high:.2f}] at 95 %)" in sentence(compare(left, right))
    undecided = compare(level, right)
    assert undecided.overall.outcomes == (0, 2, 0), "tasks whose own interval spans 0 are tied"
    assert "cannot be told from" in sentence(undecided)
    assert sentence(undecided).endswith("with 0 of 2 tasks won and 2 tied.")


def test_scores_over_other_splits_or_subsets_are_left_out_and_said() -> None:
    ada = find_side("ada-002", published_sides())
    assert (ada.scores["STS17"].parts, ada.scores["SciFact"].parts) == (("test/en-en",), ("test/default",))
    shared = {"metric": "cosine_spearman", "task_type": "STS"}
    (ours,) = run_sides(
        [
            run("STS12", 0.7, parts=("test/default",), **shared),
            run("STS17", 0.4, parts=("test/en-ar", "test/en-en"), **shared),
            run("STS13", 0.7, parts=("validation/default",), **shared),
        ]
    )
    found = compare(ours, ada)
    assert [pair.task for pair in found.overall.pairs] == ["STS12"]
    assert sorted(found.other_parts) == ["STS13", "STS17"]
    told = "STS17 (test/en-ar test/en-en against test/en-en)"
    assert any(told in note and "MTEB(eng, v1)" in note for note in notes(found))


def test_two_scores_of_one_view_are_not_chosen_between() -> None:
    assert len(run_sides([run("SciFact", 0.5), run("SciFact", 0.5)])) == 1
    with pytest.raises(UserError, match=r"SciFact has two scores for local/model#0a1b2c@64 \(50.00 and 60.00\)"):
        run_sides([run("SciFact", 0.5), run("SciFact", 0.6)])


@pytest.mark.parametrize("reason", ["other queries", "a main score that is not their mean", "published"])
def test_there_is_no_interval_without_the_scores_behind_both_means(reason: str) -> None:
    values = np.linspace(0, 1, 50)
    left = run_sides([retrieval_run("SciFact", values, revision="1")])[0]
    others = {
        "other queries": run_sides([retrieval_run("SciFact", values[:-1], revision="2")])[0],
        "a main score that is not their mean": run_sides(
            [run("SciFact", 0.7, revision="2", per_query=left.scores["SciFact"].per_query)]
        )[0],
        "published": find_side("ada-002", published_sides()),
    }
    found = compare(left, others[reason])
    assert found.overall.interval is None
    assert "at 95 %" not in sentence(found)


def test_what_cannot_be_compared_is_refused() -> None:
    left = side("a/left", {"A": 0.5})
    with pytest.raises(UserError, match="Both sides are a/left@64; name two different ones"):
        compare(left, left)
    with pytest.raises(UserError, match="a/left@64 and b/right@64 share no task of Bench"):
        compare(left, side("b/right", {"B": 0.5}), tasks=["A", "B"], benchmark="Bench")
    averages = find_side("text-embedding-3-large@1024", published_sides())
    with pytest.raises(UserError, match="Of openai/text-embedding-3-large@1024 only averages are published"):
        compare(averages, find_side("ada-002", published_sides()))
