"""Where and with what something was measured, for the JSON beside a figure."""

from __future__ import annotations

import os
import platform
import shlex
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch


def provenance(packages: Sequence[str], device: str = "cpu") -> dict[str, Any]:
    """The command, the device's name, the threads and the versions.

    Args:
        packages: Whose versions count.
        device: ``cpu`` or a CUDA device.
    """
    return {
        "command": shlex.join(["python", *sys.argv]),
        "device": torch.cuda.get_device_name(device) if device.startswith("cuda") else processor(),
        "threads": torch.get_num_threads(),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in packages}},
    }


def processor() -> str:
    """The CPU's name and its number of cores."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor()}, {os.cpu_count()} cores"
