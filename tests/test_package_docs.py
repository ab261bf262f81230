"""Names and descriptions of what services do, read from wheels that are not installed."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pyarrow.parquet as pq
import pytest

SCRIPT = Path(__file__).parents[1] / "train_scripts" / "package_docs.py"
CARD = r'''
raise RuntimeError("this must never run")

class CardCreateParams:
    """A card that was sent to its holder by post."""

    decline_reason: str
    """
    Why the payment with the card was declined.

    Args:
        x: Not prose.
    """
    fee = "\d"
    """The fee of a payment in another currency."""
    raw_response: str
    """A description that belongs to code, not to cards."""
    silent: str

    def freeze(self):
        """Stop all payments with a card that was lost. It can be used again later."""

    async def to_json(self):
        """Return the card as JSON that an SDK can read."""
'''
PAIRS = {
    "card decline reason": "Why the payment with the card was declined.",
    "card fee": "The fee of a payment in another currency.",
    "card freeze": "Stop all payments with a card that was lost. It can be used again later.",
}


def make_wheel(path: Path, **sources: str) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, source in sources.items():
            archive.writestr(name.replace("__", "/") + ".py", source)
    return path


def harvest(*words: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(SCRIPT), *map(str, words)], capture_output=True, text=True, check=False, timeout=120
    )


def test_fields_and_functions_become_pairs_and_code_does_not(tmp_path: Path) -> None:
    wheel = make_wheel(tmp_path / "bank.whl", bank__card=CARD, bank__broken="def (", bank__tests__card=CARD)
    copied = make_wheel(tmp_path / "copy.whl", other__card=CARD)
    done = harvest(wheel, copied, "--output", tmp_path / "new" / "docs.parquet")
    assert (done.returncode, done.stderr) == (0, ""), "no warning about an escape that somebody else wrote"
    rows = pq.read_table(tmp_path / "new" / "docs.parquet").to_pylist()
    assert {row["anchor"]: row["positive"] for row in rows} == PAIRS
    assert len(rows) == len(PAIRS), "each description once"


def test_the_draw_depends_on_the_seed_alone(tmp_path: Path) -> None:
    fields = "\n".join(
        f'    field_{word}: str\n    """The {word} of what was bought in a shop."""'
        for word in ("price", "size", "weight", "colour", "maker", "age", "name", "place")
    )
    wheel = make_wheel(tmp_path / "shop.whl", shop__order=f"class Order:\n{fields}")
    tables = []
    for number, seed in enumerate((13, 13, 14)):
        output = tmp_path / f"{number}.parquet"
        assert harvest(wheel, "--output", output, "--most", "4", "--seed", str(seed)).returncode == 0
        tables.append(pq.read_table(output).to_pylist())
    assert tables[0] == tables[1] != tables[2]
    assert [len(table) for table in tables] == [4, 4, 4]


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (
            b"no archive",
            "x.whl is not a wheel (File is not a zip file); give .whl files, as pip download writes them.",
        ),
        (None, "No wheel has a name with a description in prose; give SDKs that document their fields."),
    ],
)
def test_what_holds_no_pairs_is_one_sentence(content: bytes | None, sentence: str, tmp_path: Path) -> None:
    wheel = tmp_path / "x.whl"
    if content is None:
        make_wheel(wheel, empty="x = 1")
    else:
        wheel.write_bytes(content)
    done = harvest(wheel, "--output", tmp_path / "docs.parquet")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert sentence in done.stderr
    assert not (tmp_path / "docs.parquet").exists()
