"""The bundled MiniLM on 60,000 real question pairs, in one process and in two."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from sentence_transformers import SentenceTransformer

from matryoshka_st.verify import verify_model

SCRIPT = Path(__file__).parents[2] / "train_scripts" / "finetune.py"
LAUNCHERS = {
    "one process": [str(Path(sys.executable).with_name("matryoshka-st")), "train"],
    "two processes": [
        sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2", str(SCRIPT),
    ],
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_twenty_steps_on_quora_save_a_model_that_cuts(launcher: str, shared_data: Path, tmp_path: Path) -> None:
    flags = [
        "--max_steps",
        "20",
        "--per_device_train_batch_size",
        "32",
        "--max_seq_length",
        "32",
        "--eval_size",
        "200",
    ]
    done = subprocess.run(
        [
            *LAUNCHERS[launcher],
            "--train_data", str(shared_data / "pairs" / "quora_duplicates.parquet"),
            "--output_dir", str(tmp_path / "out"), "--use_cpu", *flags,
        ],
        env={**os.environ, "OMP_NUM_THREADS": "2" if launcher == "one process" else "1"},
        capture_output=True,
        text=True,
        timeout=1500,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("VERDICT: ") == 1
    model = SentenceTransformer(str(tmp_path / "out" / "model"), truncate_dim=64, device="cpu")
    assert model.encode(["How do I cut an embedding?"]).shape == (1, 64)
    assert verify_model(tmp_path / "out" / "model").ok
