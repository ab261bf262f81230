from __future__ import annotations

import sys
from collections.abc import Callable

import mteb
import pytest
from mteb.abstasks.abstask import AbsTask
from mteb.mocks.mock_tasks import MockAggregatedTask, MockImageClassificationTask, MockSTSTask

from matryoshka_st.errors import OptionalDependencyError, UserError
from matryoshka_st.evaluation.tasks import find_task, fresh_task, load_task, require_mteb


def test_names_instances_and_classes_are_tasks(small_task: Callable[[str], AbsTask]) -> None:
    assert find_task("STS12").metadata.name == "STS12"
    assert find_task(small_task("Retrieval")).metadata.name == "HeldOut"
    assert find_task(MockSTSTask).metadata.name == "MockSTSTask"


def test_the_given_task_stays_as_it_is() -> None:
    given = mteb.get_task("MassiveIntentClassification")
    found = find_task(given, languages=["eng"], splits=["validation"])
    assert found.hf_subsets == ["en"]
    assert list(found.eval_splits) == ["validation"]
    assert len(given.hf_subsets) > 50
    assert list(given.eval_splits) == ["validation", "test"]


def test_the_test_split_is_the_default_where_there_is_one() -> None:
    assert list(find_task("MLQuestions").eval_splits) == ["test"]
    assert list(find_task("MSMARCO").eval_splits) == ["dev"]


def test_twins_share_data_but_not_random_state(small_task: Callable[[str], AbsTask]) -> None:
    task = small_task("Clustering")
    first, second = fresh_task(task), fresh_task(task)
    assert first.dataset is second.dataset
    assert first.rng_state.random() == second.rng_state.random()
    assert first.np_rng.random() == second.np_rng.random()


def test_an_unknown_name_gets_the_nearest_one() -> None:
    with pytest.raises(UserError, match=r"mteb has no task 'STSBenchmrk'; did you mean 'STSBenchmark'\?"):
        find_task("STSBenchmrk")


def test_an_average_names_its_parts() -> None:
    with pytest.raises(UserError, match="average over other tasks; name those instead: Mock"):
        find_task(MockAggregatedTask)


def test_only_text_is_evaluated() -> None:
    with pytest.raises(UserError, match="works on image; only text"):
        find_task(MockImageClassificationTask)


def test_a_language_that_a_task_lacks_is_named() -> None:
    for code in ("deu", "en"):
        with pytest.raises(UserError, match=f"'STS12' has no subset in {code}; it has eng.*; give three-letter codes"):
            find_task("STS12", languages=[code])


def test_a_split_that_the_data_lacks_is_named(small_task: Callable[[str], AbsTask]) -> None:
    task = find_task(small_task("STS"), splits=["validation"])
    with pytest.raises(UserError, match="no split 'validation'; its data has test"):
        load_task(task)


def test_data_out_of_reach_names_the_way_out() -> None:
    with pytest.raises(UserError, match=r"'mteb/sts12-sts' of task 'STS12' could not be loaded .*--dataset-mirror"):
        load_task(find_task("STS12"))


def test_without_mteb_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mteb", None)
    with pytest.raises(OptionalDependencyError, match=r"pip install 'matryoshka-st\[eval\]'"):
        require_mteb()
