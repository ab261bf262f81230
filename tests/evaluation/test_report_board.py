from __future__ import annotations

import pytest

from matryoshka_st.errors import UserError
from matryoshka_st.evaluation.report.board import Board, View, board, pareto_front

from .report_runs import TASKS, make_run, many_runs


def view_of(scored: Board, dim: int, precision: str = "float32", variant: str = "") -> View:
    (found,) = (
        view for view in scored.scores if (view.dim, view.precision, view.series.variant) == (dim, precision, variant)
    )
    return found


def test_the_groups_are_the_task_types_and_then_all_tasks() -> None:
    groups = board(many_runs()).groups
    assert [group.name for group in groups] == ["Retrieval", "STS", "Mean"]
    assert groups[0].tasks == ("NFCorpus", "SciFact")
    assert groups[-1].tasks == tuple(sorted(TASKS))


def test_one_type_needs_no_second_mean() -> None:
    scored = board([make_run(0.4, task="STS12"), make_run(0.6, task="STSBenchmark")])
    assert [group.name for group in scored.groups] == ["STS"]
    assert scored.score(view_of(scored, 384), scored.overall) == pytest.approx(0.5)


def test_the_mean_is_over_tasks() -> None:
    scored = board([make_run(0.2, task="SciFact"), make_run(0.5, task="STS12"), make_run(0.8, task="STSBenchmark")])
    assert scored.score(view_of(scored, 384), scored.overall) == pytest.approx(0.5)


def test_a_view_without_a_task_has_no_mean_over_it() -> None:
    both = [make_run(0.9, dim=384, task=task) for task in ("STS12", "STSBenchmark", "SciFact")]
    lacks_the_hard_one = [make_run(0.9, dim=64, task=task) for task in ("STS12", "SciFact")]
    scored = board([*both, *lacks_the_hard_one])
    small = view_of(scored, 64)
    retrieval, sts, mean = scored.groups
    assert scored.score(small, retrieval) == 0.9
    assert scored.score(small, sts) is None and scored.score(small, mean) is None
    assert scored.share(small, mean) is None
    assert scored.missing(small, mean) == ["STSBenchmark"]
    assert [view.dim for view in pareto_front(scored, mean)] == [384]


def test_the_share_is_of_the_same_series_uncut_in_float32() -> None:
    runs = [
        make_run(0.8),
        make_run(0.78, precision="int8"),
        make_run(0.4, dim=64, precision="int8"),
        make_run(0.5, variant="pca"),
        make_run(0.4, dim=64, variant="pca"),
        make_run(0.4, dim=64, variant="random-0"),
    ]
    scored = board(runs)
    assert scored.share(view_of(scored, 64, "int8"), scored.overall) == pytest.approx(0.5)
    assert scored.share(view_of(scored, 64, variant="pca"), scored.overall) == pytest.approx(0.8)
    assert scored.share(view_of(scored, 64, variant="random-0"), scored.overall) is None


def test_nothing_is_a_share_of_nothing() -> None:
    scored = board([make_run(0.0), make_run(0.1, dim=64)])
    assert scored.share(view_of(scored, 64), scored.overall) is None


@pytest.mark.parametrize(
    ("models", "labels"),
    [
        ([("local/a", "1", ""), ("local/b", "2", "")], ["a", "b"]),
        ([("local/a", "1", ""), ("local/a", "1", "pca")], ["a", "a pca"]),
        ([("x/a", "1", ""), ("y/a", "2", "")], ["x/a", "y/a"]),
        ([("local/a", "1234567890", ""), ("local/a", "2345678901", "")], ["a@1234567", "a@2345678"]),
    ],
)
def test_labels_are_as_short_as_they_may_be(models: list[tuple[str, str, str]], labels: list[str]) -> None:
    runs = [make_run(model=model, revision=revision, variant=variant) for model, revision, variant in models]
    assert list(board(runs).labels.values()) == labels


def test_views_come_wide_and_fine_first() -> None:
    cuts = [(64, "binary"), (384, "int8"), (64, "float32"), (384, "float32")]
    scored = board([make_run(dim=dim, precision=precision) for dim, precision in cuts])
    assert [(view.dim, view.precision) for view in scored.scores] == [
        (384, "float32"), (384, "int8"), (64, "float32"), (64, "binary"),
    ]  # fmt: skip


def test_models_come_in_the_order_given_and_the_plain_cut_before_its_baselines() -> None:
    runs = [
        make_run(model=model, variant=variant) for model in ("local/z", "local/a") for variant in ("svd", "", "pca")
    ]
    assert list(board(runs).labels.values()) == ["z", "z pca", "z svd", "a", "a pca", "a svd"]


def test_the_pareto_front_by_hand() -> None:
    """Sizes are 4 bytes per float32 dim; a tie in both size and score beats neither."""
    scores = {384: 0.80, 256: 0.80, 128: 0.70, 64: 0.72, 32: 0.30}
    runs = [make_run(score, dim=dim) for dim, score in scores.items()]
    runs += [make_run(0.72, dim=64, variant="pca"), make_run(0.71, dim=64, variant="svd")]
    scored = board(runs)
    front = [(view.dim, view.series.variant) for view in pareto_front(scored, scored.overall)]
    assert front == [(32, ""), (64, ""), (64, "pca"), (256, "")]


def test_the_same_result_in_two_folders_counts_once() -> None:
    scored = board([make_run(0.5), make_run(0.5)])
    assert list(scored.scores.values()) == [{"STS12": 0.5}]


def test_two_scores_of_one_view_are_refused() -> None:
    with pytest.raises(
        UserError, match=r"STS12 has two scores for local/small at 384 dims, float32 \(50.00 and 60.00\)"
    ):
        board([make_run(0.5), make_run(0.6)])


def test_a_task_with_two_metrics_is_refused() -> None:
    with pytest.raises(
        UserError, match="STS12 is STS cosine_spearman in one result and STS accuracy in another; give"
    ):
        board([make_run(0.5), make_run(0.6, dim=64, metric="accuracy")])


def test_a_task_scored_on_two_subsets_is_refused() -> None:
    english, all_languages = ("test/en",), ("test/de", "test/en")
    assert len(board([make_run(0.5, parts=english), make_run(0.6, parts=english, dim=64)]).scores) == 2
    with pytest.raises(UserError, match=r"cosine_spearman test/en in one result and .* test/de test/en in another"):
        board([make_run(0.5, parts=english), make_run(0.6, parts=all_languages, dim=64)])


def test_nothing_is_refused() -> None:
    with pytest.raises(UserError, match="There is nothing to report; give folders that hold results"):
        board([])
