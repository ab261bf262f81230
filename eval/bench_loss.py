"""Time and memory of the nested loss beside sentence-transformers', forward and backward, interleaved in one run.

python eval/bench_loss.py --output eval/results/bench_loss_cpu.json
"""

from __future__ import annotations

import os
import statistics
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import typer
from rich.console import Console
from rich.table import Table
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.losses import (
    CachedMultipleNegativesRankingLoss,
    MatryoshkaLoss,
    MultipleNegativesRankingLoss,
)
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from matryoshka_st.cli import exit_with_one_sentence
from matryoshka_st.errors import UserError
from matryoshka_st.evaluation.provenance import provenance
from matryoshka_st.files import write_json
from matryoshka_st.infonce import nested_infonce
from matryoshka_st.losses import CachedMatryoshkaContrastiveLoss

Loss = Callable[[Tensor, Tensor], Tensor]
MATMULS = ("aten::mm", "aten::addmm", "aten::addmm_", "aten::bmm", "aten::mv", "aten::addmv_")
EXPONENTIALS = ("aten::exp", "aten::exp_", "aten::logsumexp")


class Given(nn.Module):
    """Stands where an encoder stands in a model: a "token" is already the embedding."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.tokenizer = None

    def get_embedding_dimension(self) -> int:
        """The width."""
        return self.width

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        """The tokens themselves."""
        return {"sentence_embedding": features["input_ids"]}


def ladder(width: int, count: int) -> list[int]:
    """``count`` dims up to the width: evenly spaced for 24, else halving down to 16 (768 512 256 ...).

    Raises:
        UserError: If the width is too small for so many dims.
    """
    if count == 24:
        dims = [width * i // count for i in range(1, count + 1)]
    else:
        powers = [2**e for e in range(4, width.bit_length()) if 2**e < width]
        dims = [*powers[len(powers) - count + 1 :], width]
    if len(set(dims) - {0}) != count:
        raise UserError(f"A width of {width} has no {count} dims here; give a larger --width or a smaller --count.")
    return dims


def losses(width: int, dims: list[int], mini_batch_size: int) -> dict[str, Loss]:
    """Ours, sentence-transformers' looped loss, its loss at the full width alone, and both with cached gradients."""
    model = SentenceTransformer(modules=[Given(width)], device="cpu")
    plain = MultipleNegativesRankingLoss(model)
    looped = MatryoshkaLoss(model, plain, dims[::-1])
    ours_cached = CachedMatryoshkaContrastiveLoss(model, dims, mini_batch_size=mini_batch_size)
    plain_cached = CachedMultipleNegativesRankingLoss(model, mini_batch_size=mini_batch_size)
    looped_cached = MatryoshkaLoss(model, plain_cached, dims[::-1])
    return {
        "ours": lambda q, d: nested_infonce(q, d, matryoshka_dims=dims).sum(),
        "looped": lambda q, d: looped([{"input_ids": q}, {"input_ids": d}], None),
        "single": lambda q, d: plain([{"input_ids": q}, {"input_ids": d}], None),
        "ours_cached": lambda q, d: torch.stack(
            [*ours_cached([{"input_ids": q}, {"input_ids": d}], None).values()]
        ).sum(),
        "looped_cached": lambda q, d: looped_cached([{"input_ids": q}, {"input_ids": d}], None),
    }


def run_once(loss: Loss, leaves: list[Tensor]) -> None:
    """Forward and backward from cleared gradients."""
    for leaf in leaves:
        leaf.grad = None
    loss(*leaves).backward()
    if leaves[0].is_cuda:
        torch.cuda.synchronize()


def repeat(times: int, loss: Loss, leaves: list[Tensor]) -> None:
    """Small cases are repeated so that the clock's grain does not matter."""
    for _ in range(times):
        run_once(loss, leaves)


def peak_memory(loss: Loss, leaves: list[Tensor]) -> int:
    """Bytes at the peak beyond what was there before; the gradients count, buffers inside the BLAS do not."""
    for leaf in leaves:
        leaf.grad = None
    if leaves[0].is_cuda:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run_once(loss, leaves)
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        run_once(loss, leaves)
    assert record.profiler is not None and record.profiler.kineto_results is not None  # noqa: S101
    events = [event for event in record.profiler.kineto_results.events() if event.name() == "[memory]"]
    now = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return peak


def matmul_rate(device: str, dtype: torch.dtype) -> float:
    """FLOP per second of a large matrix product; the best of a few."""
    a = torch.randn(2048, 2048, device=device, dtype=dtype)
    return 2 * 2048**3 / min(timed(lambda: a @ a, device)[0] for _ in range(8))


def timed(run: Callable[[], Any], device: str) -> tuple[float, float]:
    """Wall seconds, and CPU seconds of all threads."""
    start, cpu = time.perf_counter(), time.process_time()
    run()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start, time.process_time() - cpu


def shares(loss: Loss, leaves: list[Tensor]) -> dict[str, float]:
    """What part of the time is spent in matrix products, in exponentials, and in the rest."""
    with profile(activities=[ProfilerActivity.CPU]) as record:
        run_once(loss, leaves)
    spent = {event.key: event.self_cpu_time_total for event in record.key_averages()}
    total = sum(spent.values())
    matmul, exp = (sum(spent.get(name, 0.0) for name in names) / total for names in (MATMULS, EXPONENTIALS))
    return {"matmul": matmul, "exp": exp, "rest": 1 - matmul - exp}


def measure(batch: int, width: int, dims: list[int], repeats: int, device: str, dtype: torch.dtype) -> dict[str, Any]:
    """One case: every loss in turn, ``repeats`` times, after a warm-up."""
    generator = torch.Generator().manual_seed(0)
    leaves = [torch.randn(batch, width, generator=generator).to(device, dtype).requires_grad_() for _ in range(2)]
    mini_batch_size = min(256, batch // 2)
    candidates = losses(width, dims, mini_batch_size)
    peaks = {name: peak_memory(loss, leaves) for name, loss in candidates.items()}
    inner = max(1, 2048 // batch)
    walls: dict[str, list[float]] = {name: [] for name in candidates}
    cpus: dict[str, list[float]] = {name: [] for name in candidates}
    rates = []
    for _ in range(repeats):
        rates.append(matmul_rate(device, dtype))
        for name, loss in candidates.items():
            wall, cpu = timed(partial(repeat, inner, loss, leaves), device)
            walls[name].append(wall / inner)
            cpus[name].append(cpu / inner)
    flops = 8 * batch * batch * width  # scores twice, gradients of both sides
    rate = max(rates)
    return {
        "batch": batch,
        "width": width,
        "dims": dims,
        "mini_batch_size": mini_batch_size,
        "seconds_median": {name: statistics.median(values) for name, values in walls.items()},
        "seconds_min": {name: min(values) for name, values in walls.items()},
        "cpu_seconds_min": {name: min(values) for name, values in cpus.items()},
        "peak_extra_bytes": peaks,
        "matmul_flops_per_second": rate,
        "fraction_of_matmul_rate": flops / rate / min(walls["ours"]),
        "time_shares": shares(candidates["ours"], leaves),
    }


def against(case: dict[str, Any], ours: str, looped: str) -> list[str]:
    """The cells of one of our losses beside sentence-transformers' own."""
    median, best, peak = (case[key] for key in ("seconds_median", "seconds_min", "peak_extra_bytes"))
    return [
        f"{median[ours]:.4f}",
        f"{median[looped]:.4f}",
        f"{median[looped] / median[ours]:.1f}x ({best[looped] / best[ours]:.1f}x)",
        f"{peak[ours] / 1e6:.1f}",
        f"{peak[looped] / 1e6:.1f}",
        f"{peak[looped] / peak[ours]:.1f}x",
    ]


def show(cases: list[dict[str, Any]]) -> list[Table]:
    """One row per case; ratios are sentence-transformers' over ours."""
    titles = {
        "": "forward + backward, median (best of the run in brackets)",
        "_cached": "the same with cached gradients, mini-batches of up to 256",
    }
    tables = []
    for suffix, title in titles.items():
        table = Table(title=title)
        columns = ["B x D", "K", "ours s", "looped s", "faster", "ours MB", "looped MB", "less memory"]
        extra = [] if suffix else ["one width s", "of matmul rate", "matmul / exp / rest"]
        for column in [*columns, *extra]:
            table.add_column(column, justify="right")
        for case in cases:
            cells = against(case, f"ours{suffix}", f"looped{suffix}")
            if not suffix:
                cells += [
                    f"{case['seconds_median']['single']:.4f}",
                    f"{case['fraction_of_matmul_rate']:.0%}",
                    " / ".join(f"{share:.0%}" for share in case["time_shares"].values()),
                ]
            table.add_row(f"{case['batch']} x {case['width']}", str(len(case["dims"])), *cells)
        tables.append(table)
    return tables


def main(
    batch: Annotated[list[int] | None, typer.Option(help="Batch sizes")] = None,
    width: Annotated[list[int] | None, typer.Option(help="Embedding widths")] = None,
    count: Annotated[list[int] | None, typer.Option(help="Numbers of dims")] = None,
    repeats: Annotated[int, typer.Option(min=1)] = 5,
    dtype: Annotated[Literal["float32", "bfloat16", "float16"], typer.Option(help="Of the embeddings")] = "float32",
    threads: Annotated[int | None, typer.Option(help="CPU threads; default: torch's own choice")] = None,
    output: Annotated[Path | None, typer.Option(help="Where to write the JSON")] = None,
    quick: Annotated[bool, typer.Option(help="A smoke test of seconds")] = False,
) -> None:
    """Measure every combination of batch, width and number of dims, print a table and write a JSON."""
    warnings.filterwarnings("ignore", message=".*full model dimension.*")
    if threads is not None:
        torch.set_num_threads(threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    batches = batch or ([64] if quick else [64, 256, 1024, 4096])
    widths, counts = width or ([384] if quick else [768]), count or ([5] if quick else [1, 5, 6, 24])
    load = os.getloadavg()
    times = 1 if quick else repeats
    grid = [(b, d, ladder(d, k)) for b in batches for d in widths for k in counts]
    cases = [measure(b, d, dims, times, device, getattr(torch, dtype)) for b, d, dims in grid]
    Console(width=160).print(*show(cases))
    result = {
        "schema_version": 1,
        **provenance(["torch", "sentence-transformers", *(["triton"] if device == "cuda" else [])], device),
        "dtype": dtype,
        "load_average": {"before": load, "after": os.getloadavg()},
        "cases": cases,
    }
    if output is not None:
        write_json(output, result)


if __name__ == "__main__":
    with exit_with_one_sentence():
        typer.run(main)
