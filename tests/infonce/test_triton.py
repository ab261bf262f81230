"""The Triton engine against the tiled one in float64 on the same rounded inputs: in the interpreter, and on a GPU."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from matryoshka_st.errors import UserError
from matryoshka_st.infonce import nested_infonce, nested_problem, nested_terms, tiled
from matryoshka_st.infonce.problem import Beside, Layout, Margin
from tests.infonce.test_nested_infonce import LEGAL

pytest.importorskip("triton")
from matryoshka_st.infonce import triton as engine
from matryoshka_st.infonce.triton_operands import BLOCKS, INTERPRETED, Blocks

ALL = ("query_to_doc", "query_to_query", "doc_to_query", "doc_to_doc")
SMALL = Blocks(16, 32, 16, 16, num_warps=4, num_stages=2)
EPSILON = {torch.float32: 2.0**-23, torch.float16: 2.0**-10, torch.bfloat16: 2.0**-7}
needs_gpu = pytest.mark.skipif(
    INTERPRETED or not torch.cuda.is_available(), reason="needs a CUDA device, and TRITON_INTERPRET unset"
)
interpreted = pytest.mark.skipif(not INTERPRETED, reason="TRITON_INTERPRET is unset, as kernels are compiled here")


@dataclass(frozen=True)
class Case:
    batch: int = 5
    negatives: int = 1
    dims: tuple[int, ...] = (1, 7, 13)
    width: int = 13
    dtype: torch.dtype = torch.float32
    peers: int = 1
    rank: int = 0
    local_queries: bool = False
    ids: bool = False
    guide: int = 0
    options: dict[str, Any] = field(default_factory=dict)
    seed: int = 13

    def tensors(self) -> tuple[Tensor, Tensor, Beside]:
        """Queries and documents rounded to the type, in float64, and what stands beside them."""
        generator = torch.Generator().manual_seed(self.seed)
        world = self.batch * self.peers
        documents = (1 + self.negatives) * world

        def randn(rows: int, width: int) -> Tensor:
            return torch.randn(rows, width, generator=generator).to(self.dtype).double()

        def ids(rows: int) -> Tensor:
            return torch.randint(max(2, 2 * rows // 3), (rows,), generator=generator)

        queries, guide = randn(world, self.width), randn(world, self.guide or 1)
        if self.local_queries:
            local = slice(self.rank * self.batch, (self.rank + 1) * self.batch)
            queries, guide = queries[local], guide[local]
        beside = Beside()
        if self.ids:
            beside = beside._replace(query_ids=ids(world), document_ids=ids(documents))
        if self.guide:
            beside = beside._replace(query_guide=guide, document_guide=randn(documents, self.guide))
        return queries, randn(documents, self.width), beside

    def run(self, name: str, dtype: torch.dtype, device: str) -> list[Tensor]:
        """Losses, then the gradients of queries and documents for random weights of all losses."""
        queries, documents, beside = self.tensors()
        leaves = [x.to(device, dtype).requires_grad_() for x in (queries, documents)]
        beside = Beside(*(None if x is None else x.to(device, dtype if x.is_floating_point() else None) for x in beside))
        layout = Layout(self.batch, self.batch * self.peers, self.rank * self.batch)
        losses = nested_terms(*leaves, nested_problem(self.dims, layout, **self.options), beside, name)
        weights = torch.rand(losses.shape, generator=torch.Generator().manual_seed(self.seed)) + 0.5
        gradients = torch.autograd.grad((losses * weights.to(losses)).sum(), leaves)
        assert losses.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        assert all(gradient.dtype == dtype for gradient in gradients)
        return [x.detach().cpu().double() for x in (losses, *gradients)]

    def rounding(self) -> float:
        """What float32 leaves of terms that cancel: the two parts of the gradient of a prefix with a small norm."""
        queries, documents, _ = self.tensors()
        norms = [x[:, : self.dims[0]].norm(dim=1) for x in (queries, documents)]
        smallest = 1.0 if self.options.get("similarity") == "dot" else min(x[x > 0].min().item() for x in norms)
        return EPSILON[self.dtype] * self.options.get("scale", 20.0) / self.batch / min(smallest, 1.0)


def assert_equals_tiled(case: Case, device: str) -> None:
    reference, ours = case.run("tiled", torch.float64, "cpu"), case.run("triton", case.dtype, device)
    torch.testing.assert_close(ours[0], reference[0], rtol=1e-5, atol=1e-5)
    for a, b in zip(reference[1:], ours[1:], strict=True):
        assert (a - b).abs().max() <= 16 * EPSILON[case.dtype] * a.abs().max() + 4 * case.rounding()


def small_blocks(patch: pytest.MonkeyPatch) -> None:
    for dtype in BLOCKS:
        patch.setitem(BLOCKS, dtype, SMALL)
