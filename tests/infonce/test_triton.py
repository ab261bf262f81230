"""The Triton engine against the tiled one in float64 on the same rounded inputs: in the interpreter, and on a GPU."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor

from matryoshka_st.errors import UserError
from matryoshka_st.infonce import nested_infonce, nested_problem, nested_terms
from matryoshka_st.infonce.problem import Beside, Layout, Margin
from tests.infonce.test_nested_infonce import LEGAL

pytest.importorskip("triton")
from matryoshka_st.infonce import triton as engine
from matryoshka_st.infonce import triton_operands
from matryoshka_st.infonce.triton_operands import BLOCKS, INTERPRETED, Blocks

ALL = ("query_to_doc", "query_to_query", "doc_to_query", "doc_to_doc")
SMALL = Blocks(16, 32, 16, 16, num_warps=4, num_stages=2)
EPSILON = {torch.float32: 2.0**-23, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}
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
        beside = Beside(
            *(None if x is None else x.to(device, dtype if x.is_floating_point() else None) for x in beside)
        )
        layout = Layout(self.batch, self.batch * self.peers, self.rank * self.batch)
        losses = nested_terms(*leaves, nested_problem(self.dims, layout, **self.options), beside, name)
        weights = torch.rand(losses.shape, generator=torch.Generator().manual_seed(self.seed)) + 0.5
        gradients = torch.autograd.grad((losses * weights.to(losses)).sum(), leaves)
        assert losses.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        assert all(gradient.dtype == dtype for gradient in gradients)
        return [x.detach().cpu().double() for x in (losses, *gradients)]

    def rounding(self) -> float:
        """What float32 rounding of the logits, and of what cancels where a prefix is short, may do to a gradient."""
        queries, documents, _ = self.tensors()
        scale = self.options.get("scale", 20.0)
        if self.options.get("similarity") == "dot":
            longest = max(x.norm(dim=1).max().item() for x in (queries, documents))
            return EPSILON[torch.float32] * max(scale * longest**2, 1.0) * scale * longest
        shortest = min(x[:, : self.dims[0]].norm(dim=1).min().item() for x in (queries, documents))
        return EPSILON[torch.float32] * max(scale, 1.0) * scale / min(shortest, 1.0)


def assert_equals_tiled(case: Case, device: str) -> None:
    reference, ours = case.run("tiled", torch.float64, "cpu"), case.run("triton", case.dtype, device)
    torch.testing.assert_close(ours[0], reference[0], rtol=1e-5, atol=1e-5)
    for a, b in zip(reference[1:], ours[1:], strict=True):
        assert (a - b).abs().max() <= 8 * EPSILON[case.dtype] * a.abs().max() + case.rounding()


MARGIN = Margin(0.1)
HARD = {"hardness_mode": "all_negatives", "hardness_strength": 3.0}
SINGLE = {
    "one pair": Case(batch=1, negatives=0),
    "one row, three negatives": Case(batch=1, negatives=3),
    "3 x 47 x 32": Case(batch=3, negatives=2, dims=(1, 32, 47), width=47),
    "17 rows": Case(batch=17, negatives=3, dims=(3, 16, 33), width=40),
    "one dim": Case(dims=(13,)),
    "every dim": Case(dims=tuple(range(1, 14))),
    **{
        f"{' '.join(names)}, {mode}": Case(options={"directions": names, "partition_mode": mode})
        for names, mode in LEGAL
    },
    "dot": Case(options={"similarity": "dot", "scale": 0.3, "directions": ALL}),
    **{
        mode: Case(negatives=2, options={"hardness_mode": mode, "hardness_strength": 7.0, "directions": ALL})
        for mode in ("in_batch_negatives", "hard_negatives", "all_negatives")
    },
    "ids": Case(batch=9, ids=True, options={"directions": ALL}),
    "margin": Case(dims=(1, 5), options={"margin": MARGIN, "directions": ALL}),
    "relative margin": Case(options={"margin": Margin(0.3, "relative")}),
    "margin of a guide": Case(guide=21, options={"margin": MARGIN, "directions": ALL}),
    "distill": Case(options={"distill": True}),
    "distill, dot, all directions": Case(
        options={"distill": True, "similarity": "dot", "scale": 0.2, "directions": ALL}
    ),
    "second of three peers": Case(peers=3, rank=1, ids=True, options={"directions": ALL, "margin": MARGIN}),
    "last of three peers, local queries": Case(
        peers=3, rank=2, local_queries=True, guide=8, options={"margin": MARGIN, "distill": True, **HARD}
    ),
    "everything": Case(
        peers=2, rank=1, ids=True, guide=21, options={"margin": MARGIN, "distill": True, "directions": ALL, **HARD}
    ),
}
HALF = [
    replace(SINGLE[name], dtype=dtype, dims=(4, 9, 13), width=13)
    for name in ("17 rows", "query_to_doc doc_to_query, per_direction", "dot", "margin of a guide", "everything")
    for dtype in (torch.float16, torch.bfloat16)
]
sweep = pytest.mark.parametrize(
    "case", [*SINGLE.values(), *HALF], ids=[*SINGLE, *(f"half precision {i}" for i in range(len(HALF)))]
)


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles so small that these cases take many of them."""
    for dtype in BLOCKS:
        monkeypatch.setitem(BLOCKS, dtype, SMALL)


@interpreted
@sweep
@pytest.mark.usefixtures("small_blocks")
def test_equals_the_tiled_engine(case: Case) -> None:
    assert_equals_tiled(case, "cpu")


@pytest.mark.gpu
@needs_gpu
class TestOnGpu:
    @sweep
    def test_equals_the_tiled_engine(self, case: Case) -> None:
        assert_equals_tiled(case, "cuda")

    @pytest.mark.parametrize("dtype", list(BLOCKS))
    def test_many_tiles(self, dtype: torch.dtype) -> None:
        assert_equals_tiled(Case(batch=333, negatives=2, dims=(32, 100, 256), width=256, dtype=dtype), "cuda")

    def test_auto_chooses_it(self) -> None:
        q, d = torch.randn(8, 16, device="cuda"), torch.randn(8, 16, device="cuda")
        auto, chosen = (nested_infonce(q, d, matryoshka_dims=[16, 4], engine=name) for name in ("auto", "triton"))
        assert torch.equal(auto, chosen)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    width = draw(st.integers(1, 33))
    directions, partition_mode = draw(st.sampled_from(LEGAL))
    peers, similarity = draw(st.integers(1, 3)), draw(st.sampled_from(["cosine", "cosine", "dot"]))
    options = {
        "directions": directions,
        "partition_mode": partition_mode,
        "similarity": similarity,
        "scale": draw(st.floats(0.5, 60.0)) if similarity == "cosine" else 0.1,
        "margin": draw(st.sampled_from([None, MARGIN, Margin(-0.1), Margin(0.2, "relative")])),
        "distill": draw(st.booleans()),
        **draw(st.sampled_from([{}, HARD])),
    }
    return Case(
        draw(st.integers(1, 17)),
        draw(st.integers(0, 3)),
        tuple(sorted(draw(st.sets(st.integers(1, width), min_size=1, max_size=5)))),
        width,
        peers=peers,
        rank=draw(st.integers(0, peers - 1)),
        local_queries=not any(name.endswith("query") for name in directions) and draw(st.booleans()),
        ids=draw(st.booleans()),
        guide=draw(st.sampled_from([0, 5])),
        options=options,
        seed=draw(st.integers(0, 2**31)),
    )


@interpreted
@settings(max_examples=60, deadline=None, phases=[Phase.generate])  # shrinking would take minutes
@given(cases())
def test_equals_the_tiled_engine_whatever_the_options(case: Case) -> None:
    assert_equals_tiled(case, "cpu")


@interpreted
@pytest.mark.parametrize("name", ["17 rows", "everything"])
def test_tiles_and_regions_do_not_change_the_result(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    whole = SINGLE[name].run("triton", torch.float32, "cpu")
    for dtype in BLOCKS:
        monkeypatch.setitem(BLOCKS, dtype, SMALL)
    monkeypatch.setattr(triton_operands, "_SCRATCH", 1)
    torch.testing.assert_close(SINGLE[name].run("triton", torch.float32, "cpu"), whole, rtol=1e-4, atol=1e-5)


@interpreted
def test_the_same_bits_every_time() -> None:
    first, second = (SINGLE["17 rows"].run("triton", torch.float32, "cpu") for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@interpreted
@pytest.mark.skipif(not hasattr(torch.backends, "fp32_precision"), reason="this torch has no such setting")
def test_products_are_made_as_torch_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = nested_problem((4, 13), Layout(3, 3, 0))
    plan = triton_operands.plan_of(torch.randn(3, 13), torch.randn(3, 13), problem)
    assert plan.precision == "ieee"
    monkeypatch.setattr(torch.backends, "fp32_precision", "tf32")  # as --tf32 of transformers does
    assert plan.precision == "tf32"
    assert_equals_tiled(Case(batch=3, dims=(4, 13), width=13), "cpu")


@interpreted
def test_views_of_larger_tensors_and_mixed_types() -> None:
    q, d = torch.randn(24, 6).T, torch.randn(6, 30)[:, 3:27].bfloat16()
    q.requires_grad_(), d.requires_grad_()
    losses, gradients = [], []
    for name in ("tiled", "triton"):
        losses.append(nested_infonce(q, d, matryoshka_dims=[24, 10], engine=name))
        gradients.append(torch.autograd.grad(losses[-1].sum(), [q, d]))
    torch.testing.assert_close(*losses)
    torch.testing.assert_close(*gradients)


@interpreted
@pytest.mark.parametrize(("directions", "partition_mode"), LEGAL)
@pytest.mark.parametrize("batch", [1, 5])
def test_zero_vectors_and_ties_stay_finite(batch: int, directions: tuple[str, ...], partition_mode: str) -> None:
    q, d = torch.ones(batch, 6), torch.ones(2 * batch, 6)
    q[0], d[-1], d[0, :3] = 0.0, 0.0, 0.0
    q.requires_grad_(), d.requires_grad_()
    options = {"directions": directions, "partition_mode": partition_mode, "scale": 100.0, "engine": "triton"}
    losses = nested_infonce(q, d, matryoshka_dims=[1, 3, 6], **options)
    losses.sum().backward()
    assert losses.isfinite().all() and q.grad.isfinite().all() and d.grad.isfinite().all()
    assert not q.grad[0].any()


@interpreted
def test_a_nan_embedding_gives_a_nan_loss_and_nan_gradients() -> None:
    q, d = torch.randn(4, 6), torch.randn(4, 6, requires_grad=True)
    q[1, 2] = torch.nan
    loss = nested_infonce(q, d, matryoshka_dims=[6], engine="triton").sum()
    loss.backward()
    assert loss.isnan() and d.grad.isnan().any()


@interpreted
def test_auto_takes_the_tiled_engine_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(engine, "nested_losses")
    assert nested_infonce(torch.randn(2, 4), torch.randn(2, 4), matryoshka_dims=[4]).isfinite().all()


@interpreted
def test_says_why_it_cannot_run(monkeypatch: pytest.MonkeyPatch) -> None:
    q, d = torch.randn(2, 4), torch.randn(2, 4)
    with pytest.raises(UserError, match=r"engine='triton' is not available: the embeddings are torch.float64"):
        nested_infonce(q.double(), d.double(), matryoshka_dims=[4], engine="triton")
    monkeypatch.setattr(engine, "INTERPRETED", False)
    with pytest.raises(UserError, match="the embeddings are on cpu and its kernels run on CUDA; use engine='tiled'"):
        nested_infonce(q, d, matryoshka_dims=[4], engine="triton")
    monkeypatch.setitem(sys.modules, engine.__name__, None)
    with pytest.raises(UserError, match=r"it cannot be imported .*pip install 'matryoshka-st\[triton\]'"):
        nested_infonce(q, d, matryoshka_dims=[4], engine="triton")


def test_kernels_compile_for_gpus_that_are_not_here(tmp_path: Path) -> None:
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    script = Path(__file__).with_name("compile_kernels.py")
    done = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["block_products", "log_sum_exps", "residuals"]
