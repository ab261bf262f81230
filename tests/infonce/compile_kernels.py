"""Compile the Triton engine's kernels for GPUs that need not be present, and print the names of the kernels compiled.

Run by path, without TRITON_INTERPRET. The engine runs on the CPU with launches that only compile, so what it returns
means nothing.
"""

from __future__ import annotations

import re
import sys
from typing import Any

import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import JITFunction, driver

from matryoshka_st.infonce import nested_problem
from matryoshka_st.infonce import triton as engine
from matryoshka_st.infonce.problem import Beside, Layout, Margin

EVERYTHING = {
    "directions": ("query_to_doc", "query_to_query", "doc_to_query", "doc_to_doc"),
    "hardness_mode": "all_negatives",
    "hardness_strength": 1.0,
    "margin": Margin(0.1),
    "distill": True,
}
SHARED_MEMORY = {80: 101_376, 90: 232_448}  # bytes per program: the least of compute capability 8.x, and of 9.0
INNER_LOOP_FROM_ZERO = re.compile(r"^ {6,}.*scf\.for %\w+ = %c0_i32\w* to", re.MULTILINE)
launch = JITFunction.run
compiled = set()


class AbsentGpu:
    def __init__(self, capability: int) -> None:
        self.capability = capability

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.capability, 32)

    def get_current_device(self) -> int:
        return self.capability

    def get_current_stream(self, device: int) -> int:
        return 0


def compile_only(kernel: JITFunction, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> Any:
    done = launch(kernel, *args, grid=grid, warmup=True, **kwargs)
    if done.metadata.shared > SHARED_MEMORY[done.metadata.target.arch]:
        raise RuntimeError(f"{kernel.__name__} needs {done.metadata.shared} bytes of shared memory")
    if INNER_LOOP_FROM_ZERO.search(done.asm["ttgir"]):
        raise RuntimeError(f"{kernel.__name__} adds every prefix's scores up from its first coordinate again")
    compiled.add(kernel.__name__)
    return done


def run(dtype: torch.dtype, batch: int, dims: tuple[int, ...], with_ids: bool, **options: Any) -> None:
    queries = torch.randn(batch, dims[-1]).to(dtype).requires_grad_()
    documents = torch.randn(2 * batch, dims[-1]).to(dtype).requires_grad_()
    beside = Beside(torch.arange(batch), torch.arange(2 * batch)) if with_ids else Beside()
    problem = nested_problem(dims, Layout(batch, batch), **options)
    engine.nested_losses(queries, documents, problem, beside).sum().backward()


if __name__ == "__main__":
    JITFunction.run = compile_only
    for capability in (80, 90):
        driver.set_active(AbsentGpu(capability))
        run(torch.bfloat16, 256, (64, 128, 256), with_ids=False)
        run(torch.bfloat16, 256, (64, 128, 256), with_ids=True, **EVERYTHING)
    run(torch.float16, 256, (64, 128, 256), with_ids=False)
    run(torch.float32, 1, (1,), with_ids=False, similarity="dot")
    sys.stdout.write(" ".join(sorted(compiled)))
