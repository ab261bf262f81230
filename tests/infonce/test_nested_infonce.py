"""The nested loss against sentence-transformers' own looped loss, values and gradients, in float64."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sentence_transformers.sentence_transformer.losses import MatryoshkaLoss, MultipleNegativesRankingLoss
from torch import Tensor, nn

from matryoshka_st.errors import UserError
from matryoshka_st.infonce import nested_infonce
from matryoshka_st.infonce.tiles import tile_size

from .exact import exact_value_and_gradients

JOINT = [
    ("query_to_doc", *extra)
    for extra in [
        (),
        ("query_to_query",),
        ("doc_to_query",),
        ("doc_to_doc",),
        ("query_to_query", "doc_to_query"),
        ("query_to_query", "doc_to_doc"),
        ("doc_to_query", "doc_to_doc"),
        ("query_to_query", "doc_to_query", "doc_to_doc"),
    ]
]
LEGAL = [(names, "joint") for names in JOINT] + [
    (("query_to_doc",), "per_direction"),
    (("query_to_doc", "doc_to_query"), "per_direction"),
]


class Embeddings(nn.Module):
    """Stands where a SentenceTransformer stands in a loss: a "feature" is already the embedding."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def get_embedding_dimension(self) -> int:
        return self.width

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"sentence_embedding": features["x"]}


@dataclass
class Case:
    columns: list[Tensor]
    dims: list[int]
    weights: list[float]
    scale: float
    directions: tuple[str, ...]
    partition_mode: str

    def ours(self, columns: list[Tensor]) -> Tensor:
        return nested_infonce(
            columns[0],
            torch.cat(columns[1:]),
            matryoshka_dims=self.dims,
            matryoshka_weights=self.weights,
            scale=self.scale,
            directions=self.directions,
            partition_mode=self.partition_mode,
        ).sum()

    def sentence_transformers(self, columns: list[Tensor]) -> Tensor:
        model = Embeddings(columns[0].shape[1])
        inner = MultipleNegativesRankingLoss(
            model, scale=self.scale, directions=self.directions, partition_mode=self.partition_mode
        )
        loss = MatryoshkaLoss(model, inner, self.dims, self.weights)
        return loss([{"x": column} for column in columns], None)

    def value_and_gradients(self, which: str) -> list[Tensor]:
        columns = [column.clone().requires_grad_() for column in self.columns]
        value = getattr(self, which)(columns)
        return [value.detach(), *torch.autograd.grad(value, columns)]


def assert_equals(case: Case, reference: list[Tensor], ours: list[Tensor]) -> None:
    """1e-12 of the largest entry, plus the rounding of what cancels to (nearly) zero: 16 eps of a full gradient."""
    smallest = min(column[:, : min(case.dims)].norm(dim=1).min().item() for column in case.columns)
    rounding = 16 * torch.finfo(torch.float64).eps * case.scale * sum(case.weights) / min(smallest, 1.0)
    for a, b in zip(reference, ours, strict=True):
        assert (a - b).abs().max() <= 1e-12 * a.abs().max() + rounding


def assert_equals_looped(case: Case) -> None:
    assert_equals(case, case.value_and_gradients("sentence_transformers"), case.value_and_gradients("ours"))


@st.composite
def cases(draw: st.DrawFn, batches: int = 17, widths: int = 33) -> Case:
    batch, negatives, width = draw(st.integers(1, batches)), draw(st.integers(0, 3)), draw(st.integers(1, widths))
    dims = draw(st.lists(st.integers(1, width), min_size=1, max_size=5, unique=True))
    dims = [*dims, width] if width not in dims and draw(st.booleans()) else dims
    directions, partition_mode = draw(st.sampled_from(LEGAL))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    columns = [torch.randn(batch, width, dtype=torch.float64, generator=generator) for _ in range(2 + negatives)]
    return Case(
        columns,
        dims,
        draw(st.lists(st.floats(0.1, 3.0), min_size=len(dims), max_size=len(dims))),
        draw(st.floats(0.5, 60.0)),
        directions,
        partition_mode,
    )


@pytest.mark.filterwarnings("ignore:.*full model dimension")
@settings(max_examples=300, deadline=None)
@given(cases())
def test_loss_and_gradients_equal_the_looped_loss(case: Case) -> None:
    assert_equals_looped(case)


@settings(max_examples=100, deadline=None)
@given(cases(batches=3, widths=12))
def test_loss_and_gradients_are_exact_where_the_looped_loss_itself_rounds(case: Case) -> None:
    """A saturated row's loss of 1e-6 is the difference of two numbers near 50 there, not so here."""
    exact = exact_value_and_gradients(
        case.columns, case.dims, case.weights, case.scale, case.directions, case.partition_mode
    )
    ours = case.value_and_gradients("ours")
    assert_equals(case, exact, ours)
    torch.testing.assert_close(ours[0], exact[0], rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize(("directions", "partition_mode"), LEGAL)
@pytest.mark.parametrize(("rows", "columns"), [(5, 4), (1, 100), (100, 1)])
def test_tiles_do_not_change_the_result(
    directions: tuple[str, ...], partition_mode: str, rows: int, columns: int
) -> None:
    vectors = [torch.randn(13, 24, dtype=torch.float64) for _ in range(4)]
    case = Case(vectors, [24, 7, 1], [1.0, 0.5, 2.0], 20.0, directions, partition_mode)
    whole = case.value_and_gradients("ours")
    with tile_size(rows, columns):
        torch.testing.assert_close(case.value_and_gradients("ours"), whole, rtol=1e-12, atol=1e-12)
        assert_equals_looped(case)


def test_one_loss_per_dim_ascending_with_its_own_gradient() -> None:
    q, d = (torch.randn(6, 8, dtype=torch.float64, requires_grad=True) for _ in range(2))
    losses = nested_infonce(q, d, matryoshka_dims=[8, 2, 4])
    for loss, dim in zip(losses, [2, 4, 8], strict=True):
        alone = nested_infonce(q, d, matryoshka_dims=[dim]).squeeze()
        torch.testing.assert_close(loss, alone)
        got, want = (torch.autograd.grad(x, [q, d], retain_graph=True) for x in (loss, alone))
        torch.testing.assert_close(got, want)


def test_weights_follow_their_dims() -> None:
    q, d = torch.randn(4, 6), torch.randn(4, 6)
    plain = nested_infonce(q, d, matryoshka_dims=[6, 3])
    weighted = nested_infonce(q, d, matryoshka_dims=[6, 3], matryoshka_weights=[5.0, 2.0])
    torch.testing.assert_close(weighted, plain * torch.tensor([2.0, 5.0]))


@settings(max_examples=30, deadline=None)
@given(st.permutations(range(7)), st.floats(1e-3, 1e3))
def test_row_order_and_input_scale_do_not_matter(order: list[int], factor: float) -> None:
    q, d = torch.randn(7, 12, dtype=torch.float64), torch.randn(14, 12, dtype=torch.float64)
    documents = torch.cat([block[order] for block in d.split(7)])
    a = nested_infonce(q, d, matryoshka_dims=[12, 5, 1])
    b = nested_infonce(q[order] * factor, documents, matryoshka_dims=[12, 5, 1])
    torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_half_precision_inputs_are_accumulated_in_float32(dtype: torch.dtype) -> None:
    q, d = (torch.randn(32, 48).to(dtype).requires_grad_() for _ in range(2))
    losses = nested_infonce(q, d, matryoshka_dims=[48, 16])
    exact_q, exact_d = (x.detach().double().requires_grad_() for x in (q, d))
    exact = nested_infonce(exact_q, exact_d, matryoshka_dims=[48, 16])
    assert losses.dtype == torch.float32
    torch.testing.assert_close(losses.double(), exact, rtol=1e-5, atol=1e-6)
    losses.sum().backward()
    exact.sum().backward()
    assert q.grad is not None and q.grad.dtype == dtype and exact_q.grad is not None
    tolerance = {torch.float16: 2e-3, torch.bfloat16: 2e-2, torch.float32: 1e-5}[dtype]
    torch.testing.assert_close(q.grad.double(), exact_q.grad, rtol=tolerance, atol=tolerance / 10)


def test_autocast_does_not_lower_the_precision() -> None:
    q, d = (torch.randn(16, 24, requires_grad=True) for _ in range(2))
    plain = nested_infonce(q, d, matryoshka_dims=[24, 8])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = nested_infonce(q, d, matryoshka_dims=[24, 8])
        torch.testing.assert_close(torch.autograd.grad(cast.sum(), q), torch.autograd.grad(plain.sum(), q))
    assert torch.equal(plain, cast)


@pytest.mark.parametrize(("directions", "partition_mode"), LEGAL)
@pytest.mark.parametrize("batch", [1, 5])
def test_zero_vectors_ties_and_single_rows_stay_finite(
    batch: int, directions: tuple[str, ...], partition_mode: str
) -> None:
    q = torch.ones(batch, 6)
    d = torch.ones(2 * batch, 6)
    q[0], d[-1], d[0, :3] = 0.0, 0.0, 0.0
    q.requires_grad_(), d.requires_grad_()
    losses = nested_infonce(
        q, d, matryoshka_dims=[1, 3, 6], directions=directions, partition_mode=partition_mode, scale=100.0
    )
    losses.sum().backward()
    assert losses.isfinite().all() and q.grad.isfinite().all() and d.grad.isfinite().all()
    assert not q.grad[0].any()


def test_a_nan_embedding_gives_a_nan_loss_and_nan_gradients() -> None:
    q, d = torch.randn(4, 6), torch.randn(4, 6, requires_grad=True)
    q[1, 2] = torch.nan
    loss = nested_infonce(q, d, matryoshka_dims=[6], directions=["query_to_doc", "query_to_query"]).sum()
    loss.backward()
    assert loss.isnan() and d.grad.isnan().any()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"scale": 0.0}, r"scale is 0\.0; it is 1 / temperature"),
        ({"scale": float("inf")}, "scale is inf"),
        ({"directions": ["doc_to_query"]}, "name 'query_to_doc' and, once each"),
        ({"directions": ["query_to_doc", "sideways"]}, "name 'query_to_doc' and, once each"),
        ({"directions": ["query_to_doc", "query_to_doc"]}, "name 'query_to_doc' and, once each"),
        ({"partition_mode": "both"}, "partition_mode is 'both'; use 'joint' or 'per_direction'"),
        (
            {"directions": ["query_to_doc", "doc_to_doc"], "partition_mode": "per_direction"},
            "cannot hold 'doc_to_doc', whose softmax has no positive",
        ),
        ({"matryoshka_dims": [9]}, "holds 9, above the model's width of 8"),
    ],
)
def test_bad_options_are_refused_in_one_sentence(arguments: dict, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        nested_infonce(torch.randn(2, 8), torch.randn(2, 8), **{"matryoshka_dims": [8], **arguments})


def test_documents_must_fit_the_queries() -> None:
    with pytest.raises(UserError, match=r"documents has shape \(3, 8\) for queries of shape \(2, 8\)"):
        nested_infonce(torch.randn(2, 8), torch.randn(3, 8), matryoshka_dims=[8])
