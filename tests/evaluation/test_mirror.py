from __future__ import annotations

from pathlib import Path

import mteb
import pytest

from matryoshka_st.errors import UserError
from matryoshka_st.evaluation.mirror import mirror_folder, point_at_mirror
from matryoshka_st.evaluation.tasks import find_task, load_task


def test_the_folder_is_laid_out_as_on_the_hub() -> None:
    task = mteb.get_task("STSBenchmark")
    assert mirror_folder(task, Path("/data")) == Path("/data/mteb/stsbenchmark-sts")


def test_only_this_instance_is_redirected(tmp_path: Path) -> None:
    (tmp_path / "mteb" / "stsbenchmark-sts").mkdir(parents=True)
    task = mteb.get_task("STSBenchmark")
    official = task.metadata.dataset
    point_at_mirror(task, tmp_path)
    assert task.metadata.dataset["path"] == str(tmp_path / "mteb" / "stsbenchmark-sts")
    assert task.metadata.dataset["revision"] == official["revision"]
    assert mteb.get_task("STSBenchmark").metadata.dataset == official


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"needs the folder '{tmp_path}/mteb/scifact', which does not exist"):
        point_at_mirror(mteb.get_task("SciFact"), tmp_path)


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize(
    ("name", "rows"),
    [
        ("STSBenchmark", 1379),
        ("SciFact", 300),
        ("Banking77Classification", 3080),
        ("MassiveIntentClassification", 2974),
        ("MLQuestions", 1500),
    ],
)
def test_real_tasks_load_without_a_request(name: str, rows: int, shared_data: Path) -> None:
    task = find_task(name, languages=["eng"])
    load_task(task, shared_data / "mirror")
    data = task.dataset
    for subset in task.hf_subsets:
        data = data.get(subset, data)
    split = data["test"]
    assert len(split["queries"] if name in ("SciFact", "MLQuestions") else split) == rows


def test_a_subset_that_the_mirror_lacks_is_named(shared_data: Path) -> None:
    task = find_task("MassiveIntentClassification")
    with pytest.raises(UserError, match="no data for its subset 'af', only for en; choose the languages"):
        load_task(task, shared_data / "mirror")
