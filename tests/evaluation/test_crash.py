"""A killed run, a torn file and a full disk: the same command again ends with the same table."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from matryoshka_st.evaluation.runs import read_runs

pytestmark = pytest.mark.slow

TASKS = {"STS12": "sts12-sts", "STS13": "sts13-sts", "STS14": "sts14-sts"}


@pytest.fixture
def mirror(tmp_path: Path) -> Path:
    draw = random.Random(5)
    for name in TASKS.values():
        folder = tmp_path / "mirror" / "mteb" / name
        folder.mkdir(parents=True)
        rows = [
            {
                "sentence1": "".join(draw.choices("abcdefgh ", k=40)),
                "sentence2": "".join(draw.choices("abcdefgh ", k=40)),
                "score": draw.uniform(0, 5),
            }
            for _ in range(300)
        ]
        (folder / "test.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    return tmp_path / "mirror"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small tmpfs needs root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


class Evaluation:
    def __init__(self, model: Path, mirror: Path) -> None:
        self.words = [sys.executable, "-m", "matryoshka_st", "eval", str(model), "--dims", "32", "8"]
        self.words += ["--tasks", *TASKS, "--precisions", "float32", "binary", "--dataset-mirror", str(mirror)]

    def start(self, output: Path) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*self.words, "--output", str(output)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def table(self, output: Path) -> str:
        process = self.start(output)
        out, errors = process.communicate()
        assert process.returncode == 0, errors
        return out


@pytest.fixture
def evaluation(tiny_model_path: Path, mirror: Path) -> Evaluation:
    return Evaluation(tiny_model_path, mirror)


def finished(output: Path) -> list[Path]:
    results = (output / "results").rglob("STS*.json")
    return [path for path in results if path.parent.name != "matryoshka"]


def test_killed_torn_and_run_again(evaluation: Evaluation, tmp_path: Path) -> None:
    expected = evaluation.table(tmp_path / "whole")
    output = tmp_path / "killed"
    process = evaluation.start(output)
    while len(finished(output)) < 3 and process.poll() is None:
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    kept = {path: path.stat().st_mtime_ns for path in finished(output)}
    assert 3 <= len(kept) < 12
    torn = min(kept)
    torn.write_bytes(torn.read_bytes()[: torn.stat().st_size // 2])
    assert evaluation.table(output) == expected
    assert torn.with_name(torn.name + ".corrupt").exists()
    assert all(path.stat().st_mtime_ns == when for path, when in kept.items() if path != torn)
    assert len(finished(output)) == len(read_runs([output])) == 12


def test_a_full_disk_is_one_sentence_and_loses_nothing(
    evaluation: Evaluation, small_disk: Path, tmp_path: Path
) -> None:
    process = evaluation.start(small_disk / "out")
    _, errors = process.communicate()
    assert process.returncode == 2
    (line,) = [line for line in errors.splitlines() if line.startswith("error: ")]
    assert "could not be written" in line and "No space left on device" in line
    kept = finished(small_disk / "out")
    assert kept
    assert not [path for path in (small_disk / "out").iterdir() if path.name.startswith(".writing")]
    subprocess.run(["mount", "-o", "remount,size=8m", str(small_disk)], check=True)
    before = {path: path.stat().st_mtime_ns for path in kept}
    assert evaluation.table(small_disk / "out") == evaluation.table(tmp_path / "whole")
    assert all(path.stat().st_mtime_ns == when for path, when in before.items())
