"""Run a function in several gloo processes on this machine, and collect what they return or raise."""

from __future__ import annotations

import multiprocessing
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.profiler import ProfilerActivity, profile

multiprocessing.set_forkserver_preload(["sentence_transformers.sentence_transformer.losses"])


def run_processes(world: int, function: Callable[..., Any], *arguments: Any) -> list[Any]:
    """``function(rank, world, *arguments)`` of each process, in the order of ranks; an exception is returned too."""
    with tempfile.TemporaryDirectory() as folder:
        mp.start_processes(
            _work, (world, folder, function, arguments), nprocs=world, start_method="forkserver", join=True
        )
        return [torch.load(Path(folder) / f"{rank}.pt", weights_only=False) for rank in range(world)]


def _work(rank: int, world: int, folder: str, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    warnings.simplefilter("error")
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world)
    try:
        result = function(rank, world, *arguments)
    except Exception as error:
        result = error
    torch.save(result, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


def collectives(function: Callable[[], None]) -> list[tuple[str, list[int]]]:
    """Name and shape of what ``function`` asks of the process group, in order."""
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as profiler:
        function()
    events = [event for event in profiler.events() if event.name.startswith("c10d::")]
    return [(event.name.removeprefix("c10d::"), next(filter(None, event.input_shapes), [])) for event in events]
