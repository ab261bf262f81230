"""Docstrings become clean pairs, split by module without leaks, and nothing that is read is run."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from matryoshka_st.data import load_pairs, normalize_text
from matryoshka_st.data.prose import MOST_BODY_CHARACTERS, split_docstring
from matryoshka_st.docstrings import DocPair, harvest_docstrings, load_docstrings
from matryoshka_st.errors import UserError

FUNCTION = '''
def f():
    """{summary}

    {body}

    Args:
        x: A number that is not prose.
    """
'''
SUMMARY = "Sort the items of a list."
BODY = "The sort is stable, so that equal items keep the order that they had."


def write_package(root: Path, modules: int = 40) -> Path:
    """A package of modules with two good docstrings each, one of them shared by all."""
    package = root / "pkg"
    package.mkdir(parents=True)
    words = ["alpha", "beta", "gamma", "delta", "kappa", "sigma", "omega"]
    for number in range(modules):
        kind = f"{words[number % 7]} {words[number // 7]}"
        own = FUNCTION.format(summary=f"Compute the {kind} value.", body=f"In {kind} order, {BODY}")
        shared = FUNCTION.format(summary=SUMMARY, body=BODY)
        (package / f"module_{number}.py").write_text(own + shared)
    return root


def all_pairs(splits: dict[str, list[DocPair]]) -> list[DocPair]:
    return [pair for pairs in splits.values() for pair in pairs]


@pytest.mark.parametrize(
    ("text", "summary", "body"),
    [
        (f"{SUMMARY}\n\n{BODY}", SUMMARY, BODY),
        (f"{SUMMARY} {BODY}", SUMMARY, BODY),
        (f"{SUMMARY}\n\nThe sort\n   is stable, so that equal\nitems keep it.\n", None, None),
        (f"Sort the ``items`` of a\n:class:`~builtins.list`.\n\n{BODY}", "Sort the items of a list.", BODY),
        (f"{SUMMARY}\n\n{BODY}\n\nArgs:\n    x: Something else entirely.", SUMMARY, BODY),
        (f"{SUMMARY}\n\n{BODY}\n\nParameters\n----------\nx : int\n    Something.\n\nMore.", SUMMARY, BODY),
        (f"{SUMMARY}\n\n{BODY}\n:param x: something\n:returns: nothing", SUMMARY, BODY),
        (f"{SUMMARY}\n\n>>> sort([2, 1])\n[1, 2]\n\n{BODY}", SUMMARY, BODY),
        (f"{SUMMARY}\n\n.. versionadded:: 3.2\n   Since then it is\n\n{BODY}", SUMMARY, BODY),
        (f"{SUMMARY}\n\n- one\n- two\n\n{BODY}\n\n    code = 1", SUMMARY, BODY),
        (f"{SUMMARY}\n\n{BODY} It is used as in::\n\n    sort(x)", SUMMARY, BODY),
        (f"{SUMMARY}\n\nSee :func:`sort <a.b.sort>`, `the guide <http://x.y>`_ and [keys](k.md) for more [1]_ of it.",
         SUMMARY, "See a.b.sort, the guide and keys for more of it."),
        (SUMMARY, None, None),
        (f"Sort.\n\n{BODY}", None, None),
        (f"{SUMMARY}\n\nToo short.", None, None),
        (f"{'Sort ' * 31}it.\n\n{BODY}", None, None),
        (f"{SUMMARY}\n\nParameters:\n    x: The first of the two values\n    y: The second of them", None, None),
        (f"{SUMMARY}\n\nx^2 + y^2 -> (z * 7) / 2; a[0] + b[1] % 4 - c / 2 @ 7", None, None),
        ("", None, None),
    ],
)  # fmt: skip
def test_prose_is_kept_and_the_rest_is_not(text: str, summary: str | None, body: str | None) -> None:
    assert split_docstring(text) == ((summary, body) if summary else None)


def test_long_text_is_cut_at_a_sentence() -> None:
    pair = split_docstring(f"{SUMMARY}\n\n" + f"{BODY} " * 20)
    assert pair is not None
    assert len(pair[1]) <= MOST_BODY_CHARACTERS
    assert pair[1].endswith("had.")


def test_modules_are_read_and_never_run(tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    code = f'"""{SUMMARY}\n\n{BODY}\n"""\nopen({str(marker)!r}, "w")\nraise SystemExit\n'
    (tmp_path / "effect.py").write_text(code)
    assert all_pairs(harvest_docstrings(roots=[tmp_path])) == [DocPair(SUMMARY, BODY, "effect")]
    assert not marker.exists()


def test_files_that_cannot_be_used_are_passed_over(tmp_path: Path) -> None:
    good = f'"""{SUMMARY}\n\n{BODY}\n"""\n'
    files = {
        "good.py": good,
        "syntax.py": good + "def (:\n",
        "python2.py": good + "print 'x'\n",
        "null.py": good + "\0",
        "huge.py": good + "#" * 1_000_001,
        "tests/helper.py": good,
        "test_it.py": good,
        "_vendor/copy.py": good,
        "notes.txt": good,
        "escape.py": '"""Match a digit with \\d in a pattern."""\n',
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "latin.py").write_bytes(b'"""caf\xe9"""')
    (tmp_path / "gone.py").symlink_to(tmp_path / "nowhere.py")
    assert [pair.module for pair in all_pairs(harvest_docstrings(roots=[tmp_path]))] == ["good"]


def test_splits_share_neither_modules_nor_texts(tmp_path: Path) -> None:
    splits = harvest_docstrings(roots=[write_package(tmp_path)])
    assert len(all_pairs(splits)) == 41
    assert sum(pair.summary == SUMMARY for pair in all_pairs(splits)) == 1
    assert SUMMARY not in {pair.summary for pair in splits["train"]}
    modules = [{pair.module for pair in pairs} for pairs in splits.values()]
    assert sum(map(len, modules)) == len(set.union(*modules))
    assert len(splits["train"]) > len(splits["test"]) > 0


def test_order_depends_on_names_and_seed_alone(tmp_path: Path) -> None:
    first = harvest_docstrings(roots=[write_package(tmp_path / "one")])
    root = write_package(tmp_path / "other")
    for path in sorted((root / "pkg").iterdir(), reverse=True):
        text = path.read_text()
        path.unlink()
        path.write_text(text)
    assert harvest_docstrings(roots=[root]) == first
    assert harvest_docstrings(roots=[root], seed=14) != first


def test_packages_and_limit_narrow_the_harvest(tmp_path: Path) -> None:
    root = write_package(tmp_path)
    (root / "other.py").write_text(f'"""Another summary of some text.\n\nOtherwise, {BODY}\n"""\n')
    everything = harvest_docstrings(roots=[root])
    assert [pair.module for pair in all_pairs(harvest_docstrings(["other"], roots=[root]))] == ["other"]
    limited = harvest_docstrings(["pkg", "other"], roots=[root], limit=3)
    assert limited == {split: pairs[:3] for split, pairs in everything.items()}


def test_unknown_split() -> None:
    with pytest.raises(UserError, match="no split 'validation'; use one of train, dev, test"):
        load_pairs("docstrings", split="validation")


def test_installed_packages_are_enough_for_a_first_run(record_property: pytest.RecordProperty) -> None:
    start = time.perf_counter()
    train, dev, test = (load_pairs("docstrings", split=split) for split in ("train", "dev", "test"))
    record_property("harvest_seconds", round(time.perf_counter() - start, 1))
    print(f"harvest: {time.perf_counter() - start:.1f} s, {len(train)} train, {len(dev)} dev, {len(test)} test pairs")  # noqa: T201
    assert len(train) >= 2_560
    assert len(dev) >= 100
    assert len(test) >= 1_200
    texts = [
        {normalize_text(text) for name in part.column_names for text in part[name]} for part in (train, dev, test)
    ]
    assert sum(map(len, texts)) == len(set.union(*texts)) == 2 * (len(train) + len(dev) + len(test))
    assert load_docstrings("test", limit=1_200).to_dict() == test.select(range(1_200)).to_dict()


def test_installed_harvest_repeats_itself() -> None:
    first, again = (harvest_docstrings(["json", "email", "networkx"]) for _ in range(2))
    assert first == again
    assert {pair.module.split(".")[0] for pair in all_pairs(first)} <= {"json", "email", "networkx"}
