"""Titles, conclusions and abstracts from files of MEDLINE records."""

from __future__ import annotations

import gzip
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

SCRIPT = Path(__file__).parents[1] / "train_scripts" / "pubmed_pairs.py"
FOUND = "Salt in the water of the lake was measured every day of the year. " * 5
SHOWN = "Lakes become saltier in dry years."


def record(*parts: str, title: str = "Salt of a <i>lake</i> in dry years.", language: str = "eng") -> str:
    return f"""
        <PubmedArticle><MedlineCitation><PMID>1</PMID><Article>
            <ArticleTitle>{title}</ArticleTitle><Abstract>{"".join(parts)}</Abstract><Language>{language}</Language>
        </Article></MedlineCitation></PubmedArticle>"""


def part(text: str, kind: str = "UNASSIGNED") -> str:
    return f'<AbstractText Label="{kind}" NlmCategory="{kind}">{text}</AbstractText>'


def records(path: Path, *some: str) -> Path:
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.write(f"<PubmedArticleSet>{''.join(some)}</PubmedArticleSet>")
    return path


def run(*words: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(SCRIPT), *map(str, words)], capture_output=True, text=True, check=False, timeout=120
    )


def test_a_title_has_its_abstract_and_conclusions_what_they_stand_on(tmp_path: Path) -> None:
    told = records(
        tmp_path / "1.xml.gz",
        record(part(FOUND, "METHODS"), part(SHOWN, "CONCLUSIONS")),
        record(part(FOUND), title="Salt and its measurement in lakes"),
        record(part("Too short to say anything."), title="A record of a few words only"),
        record(part(FOUND), title="Erratum."),
        record(part(FOUND), title="Un lac et le sel de son eau", language="fre"),
        record(title="A record with no abstract at all"),
    )
    again = records(tmp_path / "2.xml.gz", record(part(FOUND), title="Salt and its measurement in lakes"))
    done = run(told, again, "--output", tmp_path / "new" / "pairs.parquet")
    assert (done.returncode, done.stderr) == (0, "")
    found = FOUND.strip()
    rows = pq.read_table(tmp_path / "new" / "pairs.parquet").to_pylist()
    assert sorted((row["anchor"], row["positive"]) for row in rows) == [
        (SHOWN, found),
        ("Salt and its measurement in lakes", found),
        ("Salt of a lake in dry years.", f"{found} {SHOWN}"),
    ]


def test_the_order_depends_on_the_seed_alone(tmp_path: Path) -> None:
    file = records(tmp_path / "1.xml.gz", *(record(part(FOUND), title=f"Lake number {i} of many") for i in range(20)))
    tables = []
    for number, seed in enumerate((13, 13, 14)):
        output = tmp_path / f"{number}.parquet"
        assert run(file, "--output", output, "--seed", str(seed)).returncode == 0
        tables.append(pq.read_table(output).column("anchor").to_pylist())
    assert tables[0] == tables[1] != tables[2]
    assert set(tables[0]) == set(tables[2])


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"no archive", "is not a gzipped file of MEDLINE records (Not a gzipped file (b'no')); give .xml.gz files."),
        (
            gzip.compress(b"<PubmedArticleSet>"),
            "is not a gzipped file of MEDLINE records (no element found: line 1, column 18); give .xml.gz files.",
        ),
        (
            gzip.compress(b"<PubmedArticleSet/>")[:-9],
            "is not a gzipped file of MEDLINE records (Compressed file ended before the end-of-stream marker was "
            "reached); give .xml.gz files.",
        ),
        (
            gzip.compress(b"<PubmedArticleSet/>"),
            "No record has an English abstract; give other files of MEDLINE records.",
        ),
    ],
)
def test_what_holds_no_records_is_one_sentence(content: bytes, sentence: str, tmp_path: Path) -> None:
    (tmp_path / "1.xml.gz").write_bytes(content)
    done = run(tmp_path / "1.xml.gz", "--output", tmp_path / "pairs.parquet")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert sentence in done.stderr
    assert not (tmp_path / "pairs.parquet").exists()
