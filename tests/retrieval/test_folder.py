"""On disk: what is saved is loaded, a save that fails or is killed leaves the one before, a damaged one is refused."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from matryoshka_st.errors import UserError
from matryoshka_st.retrieval import AdaptiveRetriever, FunnelRetriever
from tests.conftest import ROOT
from tests.retrieval.oracle import corpus

OPTIONS: dict[str, Any] = {"shortlist_dim": 12, "shortlist": 40}


def small(folder: Path, count: int = 60, **options: Any) -> AdaptiveRetriever:
    retriever = AdaptiveRetriever.build(corpus()[0][:count], **{**OPTIONS, **options})
    retriever.save(folder)
    return retriever


def listing(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("index", ["flat", "hnsw"])
@pytest.mark.parametrize("precision", ["float32", "float16", "int8", "binary"])
@pytest.mark.parametrize("deleted", [0, 30])
def test_loaded_finds_what_was_saved(tmp_path: Path, index: str, precision: str, deleted: int) -> None:
    documents, asked = corpus()
    names = [f"paper {i}" for i in range(400)]
    retriever = AdaptiveRetriever.build(documents[:350], names[:350], index=index, precision=precision, **OPTIONS)
    retriever.add(documents[350:], names[350:])
    retriever.delete(names[:deleted])
    retriever.save(tmp_path / "index")
    loaded = AdaptiveRetriever.load(str(tmp_path / "index"))
    assert loaded.settings == retriever.settings
    assert loaded.ids.tolist() == names[deleted:]
    before, after = retriever.search(asked, 10), loaded.search(asked, 10)
    np.testing.assert_array_equal(after.ids, before.ids)
    np.testing.assert_array_equal(after.scores, before.scores)
    loaded.add(documents[:deleted], names[:deleted])
    assert len(loaded) == 400
    loaded.search(asked, 10)


def test_a_funnel_comes_back_with_all_its_stages(tmp_path: Path) -> None:
    documents, asked = corpus()
    funnel = FunnelRetriever.build(documents, dims=[6, 12, 48], shortlists=[100, 30])
    funnel.save(tmp_path)
    np.testing.assert_array_equal(FunnelRetriever.load(tmp_path).search(asked, 5).ids, funnel.search(asked, 5).ids)
    with pytest.raises(UserError, match=r"holds an index of FunnelRetriever, not of AdaptiveRetriever; load it with"):
        AdaptiveRetriever.load(tmp_path)


@pytest.mark.parametrize("verify", [True, False])
def test_only_prefixes_and_ids_of_a_loaded_index_are_in_ram(tmp_path: Path, verify: bool) -> None:
    documents, asked = corpus()
    built = AdaptiveRetriever.build(documents, **OPTIONS)
    assert built.ram_bytes == 400 * (12 * 4 + 8 + 48 * 4)
    built.save(tmp_path)
    loaded = AdaptiveRetriever.load(tmp_path, verify=verify)
    assert loaded.ram_bytes == 400 * (12 * 4 + 8)
    assert loaded.ram_bytes_per_million == 1e6 * (12 * 4 + 8)
    loaded.search(asked, 10)
    assert loaded.ram_bytes == 400 * (12 * 4 + 8)


def test_unit_vectors_from_a_file_are_not_copied(tmp_path: Path) -> None:
    documents = corpus()[0]
    np.save(tmp_path / "x.npy", documents / np.linalg.norm(documents, axis=1, keepdims=True))
    retriever = AdaptiveRetriever.build(np.load(tmp_path / "x.npy", mmap_mode="r"), **OPTIONS)
    assert retriever.ram_bytes == 400 * (12 * 4 + 8)


def test_saving_again_replaces_and_leaves_no_old_files(tmp_path: Path) -> None:
    retriever = small(tmp_path)
    first = set(listing(tmp_path))
    loaded = AdaptiveRetriever.load(tmp_path)
    loaded.delete([3])
    loaded.save(tmp_path)
    second = set(listing(tmp_path))
    assert len(second) == len(first) == 4
    assert first & second == {"manifest.json"}
    assert len(AdaptiveRetriever.load(tmp_path)) == len(retriever) - 1
    loaded.search(corpus()[1], 5)  # its rows were mapped from a file that is gone


@pytest.mark.parametrize("failing", range(1, 5))
@pytest.mark.parametrize("error", [OSError("No space left on device"), KeyboardInterrupt()])
def test_a_save_that_fails_leaves_the_index_before(
    tmp_path: Path, failing: int, error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = small(tmp_path)
    files, calls, fsync = listing(tmp_path), [], os.fsync

    def failing_fsync(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) == failing:
            raise error
        fsync(descriptor)

    larger = AdaptiveRetriever.build(corpus()[0], **OPTIONS)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", failing_fsync)
        if isinstance(error, OSError):
            with pytest.raises(UserError, match=r"could not be saved in .* \(No space left on device\); an index"):
                larger.save(tmp_path)
        else:
            with pytest.raises(KeyboardInterrupt):
                larger.save(tmp_path)
    assert files.items() <= listing(tmp_path).items()
    loaded = AdaptiveRetriever.load(tmp_path)
    np.testing.assert_array_equal(loaded.search(corpus()[1], 5).ids, before.search(corpus()[1], 5).ids)
    larger.save(tmp_path)
    assert len(listing(tmp_path)) == 4
    assert len(AdaptiveRetriever.load(tmp_path)) == 400


SAVE_FOREVER = """
import sys
from matryoshka_st.retrieval import AdaptiveRetriever
from tests.retrieval.oracle import corpus
documents = corpus(4000, 256)[0]
while True:
    for count in (1000, 4000):
        AdaptiveRetriever.build(documents[:count], shortlist_dim=128).save(sys.argv[1])
        print(count, flush=True)
"""


@pytest.mark.slow
def test_killed_while_saving_there_is_always_a_whole_index(tmp_path: Path) -> None:
    random = np.random.default_rng(5)
    for _ in range(8):
        process = subprocess.Popen(
            [sys.executable, "-c", SAVE_FOREVER, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(random.uniform(0, 0.15))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert len(AdaptiveRetriever.load(tmp_path)) in (1000, 4000)


@pytest.mark.parametrize("kind", ["ids", "shortlist", "vectors_48", "nodes"])
def test_a_file_cut_short_changed_or_missing_is_named(tmp_path: Path, kind: str) -> None:
    retriever = AdaptiveRetriever.build(corpus()[0], index="hnsw", **OPTIONS)
    retriever.delete([1])
    retriever.save(tmp_path)
    (path,) = tmp_path.glob(f"{kind}-*")
    content = path.read_bytes()
    path.write_bytes(content[:-9])
    with pytest.raises(UserError, match=rf"{kind}-\w+\.\w+ has {len(content) - 9} bytes instead of {len(content)}; "):
        AdaptiveRetriever.load(tmp_path, verify=False)
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(UserError, match=rf"{kind}-\w+\.\w+ was changed since it was saved \(its SHA-256 differs\); "):
        AdaptiveRetriever.load(tmp_path)
    path.unlink()
    with pytest.raises(UserError, match=rf"{kind}-\w+\.\w+ is missing; build the index anew\."):
        AdaptiveRetriever.load(tmp_path)


@pytest.mark.parametrize("kind", ["ids", "shortlist", "vectors_48"])
def test_foreign_content_of_the_right_size_is_refused_without_checksums(tmp_path: Path, kind: str) -> None:
    small(tmp_path)
    (path,) = tmp_path.glob(f"{kind}-*")
    path.write_bytes(b"x" * path.stat().st_size)
    with pytest.raises(UserError, match=rf"{kind}-\w+\.\w+ holds no (faiss index|array) that can be read; build the"):
        AdaptiveRetriever.load(tmp_path, verify=False)


def edited(change: dict[str, Any]) -> Any:
    def edit(path: Path) -> None:
        manifest = json.loads(path.read_text())
        for name, value in change.items():
            if value is None:
                del manifest[name]
            else:
                manifest[name] = value
        path.write_text(json.dumps(manifest))

    return edit


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (Path.unlink, r"There is no index in .* \(no manifest\.json\); give the folder that save wrote\."),
        (lambda path: path.write_text("{"), r"manifest\.json cannot be read as JSON; build the index anew\."),
        (lambda path: path.write_bytes(b"\xff\xfe"), r"manifest\.json cannot be read as JSON; build the index anew\."),
        (lambda path: path.write_text("[]"), r"manifest\.json is not the manifest of a matryoshka-st retrieval index"),
        (edited({"format": "other"}), r"manifest\.json is not the manifest of a matryoshka-st retrieval index"),
        (edited({"schema_version": 2}), r"manifest\.json has schema version 2, this release reads 1; build the index"),
        (edited({"settings": None}), r"manifest\.json is not complete \('settings'\); build the index anew\."),
        (edited({"count": "many"}), r"manifest\.json is not complete \(.*'many'\); build the index anew\."),
        (edited({"files": {}}), r"manifest\.json is not complete \('ids'\); build the index anew\."),
        (edited({"files": ["ids"]}), r"manifest\.json is not complete \(.*\); build the index anew\."),
        (edited({"count": 61}), r"do not fit the 61 vectors of its manifest; build the index anew\."),
        (
            edited({"files": {"ids": {"name": "../../etc/passwd", "bytes": 1, "sha256": ""}}}),
            r"names the file '\.\./\.\./etc/passwd', which no index has; build it anew\.",
        ),
    ],
)
@pytest.mark.parametrize("verify", [True, False])
def test_a_manifest_that_will_not_do_is_one_sentence(tmp_path: Path, edit: Any, message: str, verify: bool) -> None:
    small(tmp_path)
    edit(tmp_path / "manifest.json")
    with pytest.raises(UserError, match=message):
        AdaptiveRetriever.load(tmp_path, verify=verify)


def test_settings_that_do_not_fit_the_files_are_refused(tmp_path: Path) -> None:
    small(tmp_path)
    path = tmp_path / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["settings"]["dims"] = [10, 48]
    path.write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=r"shortlist-\w+\.faiss holds another index than the manifest names; build"):
        AdaptiveRetriever.load(tmp_path)


def test_nothing_is_written_over_other_things(tmp_path: Path) -> None:
    retriever = AdaptiveRetriever.build(corpus()[0], **OPTIONS)
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match=r"holds other files than those of an index; give a new or an empty folder\."):
        retriever.save(tmp_path)
    with pytest.raises(UserError, match=r"thesis\.txt is not a folder; give a new or an empty folder\."):
        retriever.save(tmp_path / "thesis.txt")
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "manifest.json").write_text('{"format": "another tool"}')
    with pytest.raises(UserError, match=r"manifest\.json is not the manifest of a matryoshka-st retrieval index"):
        retriever.save(foreign)
    assert listing(foreign) == {"manifest.json": b'{"format": "another tool"}'}
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_a_folder_that_cannot_be_made_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"The index could not be saved in .*; an index that was there before is un"):
        AdaptiveRetriever.build(corpus()[0], **OPTIONS).save(tmp_path / "file" / "index")
