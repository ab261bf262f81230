"""Every block of the README runs, in the order it stands there, in one folder."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

README = Path(__file__).parents[1] / "README.md"


def blocks(text: str) -> list[tuple[str, str]]:
    return re.findall(r"^```(bash|python)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


def test_the_two_commands_come_first_and_are_targets() -> None:
    first = README.read_text().split("```")[1]
    targets = (README.parent / "Makefile").read_text()
    for line in first.strip().splitlines():
        make, target = line.split()[:2]
        assert make == "make"
        assert re.search(rf"^{target}:", targets, re.MULTILINE)


@pytest.mark.slow
def test_the_blocks_run(tmp_path: Path, shared_data: Path) -> None:
    """What the blocks would fetch from the hub comes from the mirror."""
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    found = blocks(README.read_text())
    shell, script = "bash", "python"
    assert [language for language, _ in found] == [shell, script, shell, script, *[shell] * 5]
    for language, code in found:
        local = re.sub(r" (eval|check) ", rf" \1 --dataset-mirror {shared_data / 'mirror'} ", code)
        program = ["bash", "-euc", local]
        if language == "python":
            program = [sys.executable, "-c", code]
        done = subprocess.run(program, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=900)
        assert done.returncode == 0, f"{code}\n{done.stdout}\n{done.stderr}"
