"""Options of the nested loss, each against sentence-transformers where it has the option, else a plain reference."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from sentence_transformers.sentence_transformer.losses import (
    GISTEmbedLoss,
    MatryoshkaLoss,
    MultipleNegativesRankingLoss,
)
from sentence_transformers.util import dot_score
from torch import Tensor

from matryoshka_st.errors import UserError
from matryoshka_st.infonce import nested_infonce, nested_problem, nested_terms
from matryoshka_st.infonce.problem import Beside, Layout, Margin
from matryoshka_st.infonce.tiles import tile_size
from tests.infonce.test_nested_infonce import JOINT, LEGAL, Embeddings

HARDNESS = ["in_batch_negatives", "hard_negatives", "all_negatives"]
DIMS = (3, 7, 12)


def vectors(count: int, width: int = 12, rows: int = 9, seed: int = 3) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(rows, width, dtype=torch.float64, generator=generator) for _ in range(count)]


def value_and_gradients(loss: Any, columns: list[Tensor]) -> list[Tensor]:
    leaves = [column.clone().requires_grad_() for column in columns]
    value = loss(leaves)
    return [value.detach(), *torch.autograd.grad(value, leaves)]


def assert_same(ours: Any, reference: Any, columns: list[Tensor], tolerance: float = 1e-12) -> None:
    """Values and gradients equal relative to the largest entry of each."""
    for a, b in zip(value_and_gradients(reference, columns), value_and_gradients(ours, columns), strict=True):
        assert (a - b).abs().max() <= tolerance * a.abs().max()


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from([*HARDNESS, None]),
    st.sampled_from(LEGAL),
    st.booleans(),
    st.integers(0, 2),
    st.floats(0.1, 9.0),
    st.integers(1, 12),
    st.integers(0, 10**6),
)
def test_hardness_and_dot_products_equal_sentence_transformers(
    mode: Any, legal: Any, dot: bool, negatives: int, strength: float, rows: int, seed: int
) -> None:
    directions, partition_mode = legal
    options = {"directions": directions, "partition_mode": partition_mode, "scale": 1.5 if dot else 20.0}
    options |= {"hardness_mode": mode, "hardness_strength": strength}

    def ours(columns: list[Tensor]) -> Tensor:
        return nested_infonce(
            columns[0],
            torch.cat(columns[1:]),
            matryoshka_dims=DIMS,
            similarity="dot" if dot else "cosine",
            **options,
        ).sum()

    def looped(columns: list[Tensor]) -> Tensor:
        if dot:  # MatryoshkaLoss always normalises, so truncate here
            losses = [MultipleNegativesRankingLoss(Embeddings(12), similarity_fct=dot_score, **options)] * len(DIMS)
            features = [[{"x": column[:, :dim]} for column in columns] for dim in DIMS]
            return sum(loss(feature, None) for loss, feature in zip(losses, features, strict=True))
        model = Embeddings(12)
        loss = MatryoshkaLoss(model, MultipleNegativesRankingLoss(model, **options), list(DIMS))
        return loss([{"x": column} for column in columns], None)

    columns = vectors(2 + negatives, rows=rows, seed=seed)
    with tile_size(5, 7):
        reference, got = value_and_gradients(looped, columns), value_and_gradients(ours, columns)
    for a, b in zip(reference, got, strict=True):
        assert (a - b).abs().max() <= 1e-12 * a.abs().max() + 1e-13


@pytest.mark.parametrize(("directions", "partition_mode"), LEGAL)
@pytest.mark.parametrize("world", [2, 3])
def test_ranks_average_to_the_joined_batch(directions: Any, partition_mode: str, world: int) -> None:
    columns = vectors(4, rows=4 * world)
    ids = torch.arange(4 * world) // 2, torch.arange(12 * world) % 11

    def joined(columns: list[Tensor]) -> Tensor:
        return loss(columns[0], columns, Layout(4 * world, 4 * world))

    def loss(queries: Tensor, columns: list[Tensor], layout: Layout) -> Tensor:
        problem = nested_problem(
            DIMS,
            layout,
            directions=directions,
            partition_mode=partition_mode,
            hardness_mode="all_negatives",
            hardness_strength=5.0,
            margin=Margin(0.1),
            distill=True,
        )
        return nested_terms(queries, torch.cat(columns[1:]), problem, Beside(*ids)).sum()

    def ranks(columns: list[Tensor]) -> Tensor:
        layouts = [Layout(4, 4 * world, 4 * rank) for rank in range(world)]
        return torch.stack([loss(columns[0], columns, layout) for layout in layouts]).mean()

    def ranks_of_local_queries(columns: list[Tensor]) -> Tensor:
        layouts = [Layout(4, 4 * world, 4 * rank) for rank in range(world)]
        queries = columns[0].split(4)
        return torch.stack([loss(q, columns, layout) for q, layout in zip(queries, layouts, strict=True)]).mean()

    assert_same(ranks, joined, columns)
    if directions == ("query_to_doc",):
        assert_same(ranks_of_local_queries, joined, columns)
    else:
        with tile_size(3, 5):
            assert_same(ranks, joined, columns)


def plain_reference(columns: list[Tensor], directions: Any, partition: str, banned: Any) -> Tensor:
    """The loss written out, with ``banned(row name, column name, row, column) -> bool`` for masks. K losses."""
    rows = columns[0].shape[0]
    scale = 20.0
    losses = []
    for dim in DIMS:
        x = [F.normalize(column[:, :dim]) for column in columns]
        sides = {"query": x[0], "doc": torch.cat(x[1:])}
        groups = []
        for direction in directions:
            left, right = direction.split("_to_")
            scores = scale * sides[left][:rows] @ sides[right].T
            allowed = [
                [
                    (i == j and left != right)
                    or (not (left == right and j % rows == i) and not banned(left, right, i, j))
                    for j in range(scores.shape[1])
                ]
                for i in range(rows)
            ]
            groups.append(scores.masked_fill(~torch.tensor(allowed), -torch.inf))
        if partition == "joint":
            groups = [torch.cat(groups, dim=1)]
        normaliser = torch.stack([group.logsumexp(1) for group in groups]).mean(0)
        losses.append((normaliser - scale * (x[0] * x[1]).sum(1)).mean())
    return torch.stack(losses)


@pytest.mark.parametrize(("directions", "partition_mode"), LEGAL)
def test_equal_texts_are_left_out(directions: Any, partition_mode: str) -> None:
    columns = vectors(3, rows=6)
    query_ids = torch.tensor([5, 8, 5, 7, 6, 9])
    document_ids = torch.tensor([1, 2, 3, 2, 4, 5, 10, 2, 1, 12, 5, 13])

    def banned(left: str, right: str, row: int, column: int) -> bool:
        same_document = bool(document_ids[column] == document_ids[row])
        return same_document or (column < 6 and bool(query_ids[column] == query_ids[row]))

    def ours(columns: list[Tensor]) -> Tensor:
        return nested_infonce(
            columns[0],
            torch.cat(columns[1:]),
            matryoshka_dims=DIMS,
            directions=directions,
            partition_mode=partition_mode,
            beside=Beside(query_ids, document_ids),
        ).sum()

    assert_same(ours, lambda c: plain_reference(c, directions, partition_mode, banned).sum(), columns)
    with tile_size(4, 5):
        assert_same(ours, lambda c: plain_reference(c, directions, partition_mode, banned).sum(), columns)


@pytest.mark.parametrize("strategy", ["absolute", "relative"])
@pytest.mark.parametrize("value", [-0.2, 0.0, 0.05, 0.3])
@pytest.mark.parametrize("guided", [True, False])
@pytest.mark.parametrize("directions", JOINT)
def test_margins_equal_a_plain_reference(strategy: str, value: float, guided: bool, directions: Any) -> None:
    columns = vectors(3)
    guides = vectors(3, width=5, seed=8) if guided else columns
    guide = {"query": F.normalize(guides[0]), "doc": F.normalize(torch.cat(guides[1:]))}

    def banned(left: str, right: str, row: int, column: int) -> bool:
        positive = guide["query"][row] @ guide["doc"][row]
        bound = positive - (value if strategy == "absolute" else value * positive.abs())
        return bool(guide[left][row] @ guide[right][column] > bound)

    def ours(columns: list[Tensor]) -> Tensor:
        beside = Beside(query_guide=guides[0], document_guide=torch.cat(guides[1:])) if guided else None
        margin = Margin(value, strategy)  # type: ignore[arg-type]
        documents = torch.cat(columns[1:])
        return nested_infonce(
            columns[0], documents, matryoshka_dims=DIMS, directions=directions, margin=margin, beside=beside
        ).sum()

    with tile_size(4, 11):
        assert_same(ours, lambda c: plain_reference(c, directions, "joint", banned).sum(), columns)


class Gist(GISTEmbedLoss):
    """Sentence-transformers' guided loss without its checks for tokenizers."""

    def __init__(self, model: Embeddings, guide: Embeddings, **options: Any) -> None:
        torch.nn.Module.__init__(self)
        self.model, self.guide, self.temperature, self.must_retokenize = model, guide, 0.05, False
        self.similarity_fct = torch.nn.CosineSimilarity(dim=-1)
        self.cross_entropy_loss = torch.nn.CrossEntropyLoss()
        self.gather_across_devices = False
        for name, value in options.items():
            setattr(self, name, value)


class Guide(Embeddings):
    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"sentence_embedding": features["guide"]}


@pytest.mark.parametrize("strategy", ["absolute", "relative"])
@pytest.mark.parametrize("value", [0.0, 0.1, 0.4])
@pytest.mark.parametrize("negatives", [0, 1])
@pytest.mark.parametrize("contrast", [False, True])
def test_margins_equal_gist_embed_loss(strategy: str, value: float, negatives: int, contrast: bool) -> None:
    """Its positive-positive scores leave out hard negatives and ours do not, so contrasting is compared on pairs."""
    columns, guides = vectors(2 + negatives, width=12), vectors(2 + negatives, width=6, seed=4)
    contrast_positives = contrast and not negatives
    directions = ["query_to_doc", *(["query_to_query"] * contrast), *(["doc_to_doc"] * contrast_positives)]

    def gist(columns: list[Tensor]) -> Tensor:
        options = {"margin_strategy": strategy, "margin": value}
        loss = Gist(
            Embeddings(12), Guide(6), contrast_anchors=contrast, contrast_positives=contrast_positives, **options
        )
        cut = [[column[:, :dim] for column in columns] for dim in DIMS]
        features = [[{"x": x, "guide": g} for x, g in zip(part, guides, strict=True)] for part in cut]
        return sum(loss(feature, None) for feature in features)

    def ours(columns: list[Tensor]) -> Tensor:
        return nested_infonce(
            columns[0],
            torch.cat(columns[1:]),
            matryoshka_dims=DIMS,
            directions=directions,
            margin=Margin(value, strategy),  # type: ignore[arg-type]
            beside=Beside(query_guide=guides[0], document_guide=torch.cat(guides[1:])),
        ).sum()

    assert_same(ours, gist, columns)


@pytest.mark.parametrize(("directions", "partition_mode"), LEGAL)
@pytest.mark.parametrize("similarity", ["cosine", "dot"])
def test_self_distillation_equals_its_definition(directions: Any, partition_mode: str, similarity: Any) -> None:
    columns = vectors(3)
    scale = 20.0 if similarity == "cosine" else 0.7
    options = {"directions": directions, "partition_mode": partition_mode, "similarity": similarity, "scale": scale}
    weights = torch.tensor([[1.0, 0.5, 2.0], [0.3, 4.0, 1.0]], dtype=torch.float64)

    def ours(columns: list[Tensor]) -> Tensor:
        problem = nested_problem(DIMS, Layout(9, 9), distill=True, margin=Margin(-0.6), **options)
        return (nested_terms(columns[0], torch.cat(columns[1:]), problem) * weights).sum()

    def plain(columns: list[Tensor]) -> Tensor:
        full = [F.normalize(x.detach()) for x in (columns[0], torch.cat(columns[1:]))]
        guide = full[0] @ full[1].T
        excluded = (guide > guide.diagonal()[:, None] + 0.6) & ~torch.eye(9, 18, dtype=torch.bool)
        prefixes = []
        for dim in DIMS:
            q, d = columns[0][:, :dim], torch.cat(columns[1:])[:, :dim]
            q, d = (F.normalize(q), F.normalize(d)) if similarity == "cosine" else (q, d)
            prefixes.append(F.log_softmax((scale * q @ d.T).masked_fill(excluded, -1e9), dim=1))
        teacher = prefixes[-1].detach()
        divergences = torch.stack([F.kl_div(p, teacher, reduction="batchmean", log_target=True) for p in prefixes])
        infonce = nested_infonce(
            columns[0], torch.cat(columns[1:]), matryoshka_dims=DIMS, margin=Margin(-0.6), **options
        )
        return (infonce * weights[0]).sum() + (divergences * weights[1]).sum()

    assert_same(ours, plain, columns, 1e-11)
    with tile_size(4, 5):
        assert_same(ours, plain, columns, 1e-11)


def test_self_distillation_passes_gradcheck_and_is_zero_at_the_full_width() -> None:
    """The teacher is detached, so finite differences hold for prefixes that share no coordinate with it."""
    q, d = (x[:, :8] for x in vectors(2, rows=5))
    problem = nested_problem((3, 8), Layout(5, 5), distill=True)
    assert nested_terms(q, d, problem)[1, 1] == 0
    tails = q[:, 3:].clone(), d[:, 3:].clone()
    alone = nested_problem((3, 8), Layout(5, 5), distill=True, similarity="dot", scale=0.5)

    def divergence(q_head: Tensor, q_tail: Tensor) -> Tensor:
        full = torch.cat([q_head, q_tail], dim=1)
        return nested_terms(full, d, alone)[1, 0]

    head = q[:, :3].clone().requires_grad_()
    tail = tails[0].clone().requires_grad_()
    gradients = torch.autograd.grad(divergence(head, tail), [head, tail])
    assert not gradients[1].any()
    teacher = F.softmax(0.5 * q @ d.T, dim=1)

    def student(head: Tensor) -> Tensor:
        return F.kl_div(F.log_softmax(0.5 * head @ d[:, :3].T, dim=1), teacher, reduction="batchmean")

    step = 1e-6 * torch.randn(5, 3, dtype=torch.float64)
    finite = (student(head + step) - student(head - step)) / 2
    torch.testing.assert_close((gradients[0] * step).sum(), finite, rtol=1e-6, atol=0)


def test_infonce_passes_gradcheck_in_every_direction() -> None:
    q, d = (x.requires_grad_() for x in vectors(2, width=5, rows=4))
    for directions, partition_mode in LEGAL:
        problem = nested_problem((2, 5), Layout(4, 4), directions=directions, partition_mode=partition_mode, scale=3.0)
        torch.autograd.gradcheck(lambda a, b, p=problem: nested_terms(a, b, p), (q, d))


@pytest.mark.parametrize("scale", [20.0, 64.0, 65.0, 200.0])
@pytest.mark.parametrize("dims", [[1], [1, 4]])
def test_large_scales_neither_overflow_nor_vanish_in_float32(scale: float, dims: list[int]) -> None:
    q, d = torch.randn(6, 4), torch.randn(6, 4)
    d[:, 0], q[:, 0] = d[:, 0].abs(), -q[:, 0].abs()
    q.requires_grad_(), d.requires_grad_()
    losses = nested_infonce(q, d, matryoshka_dims=dims, scale=scale)
    exact = nested_infonce(q.detach().double(), d.detach().double(), matryoshka_dims=dims, scale=scale)
    torch.testing.assert_close(losses.double(), exact, rtol=1e-5, atol=1e-4)
    losses.sum().backward()
    assert q.grad.isfinite().all() and d.grad.isfinite().all()


def test_masks_may_leave_the_positive_alone() -> None:
    q, d = (x.requires_grad_() for x in vectors(2))
    ids = torch.zeros(9, dtype=torch.int64)
    losses = nested_infonce(q, d, matryoshka_dims=DIMS, beside=Beside(ids, ids))
    losses.sum().backward()
    assert (losses.abs() < 1e-12).all() and (q.grad.abs() < 1e-12).all() and (d.grad.abs() < 1e-12).all()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"similarity": "euclid"}, "similarity is 'euclid'; use 'cosine' or 'dot'"),
        ({"hardness_mode": "hard"}, "hardness_mode is 'hard'; use one of"),
        ({"hardness_strength": -1.0}, r"hardness_strength is -1\.0; it is a finite number of 0 or more"),
        ({"margin": Margin(float("nan"))}, "The margin is nan; it is a finite number"),
        ({"margin": Margin(0.1, "both")}, "strategy is 'both'; use 'absolute' or 'relative'"),
        ({"engine": "fast"}, "engine is 'fast'; use 'auto', 'tiled' or 'triton'"),
        ({"beside": Beside(torch.zeros(2, dtype=torch.int64))}, "Give query_ids and document_ids, or neither"),
        ({"beside": Beside(query_guide=torch.zeros(3, 4))}, "query_guide has 3 rows; give 2"),
        ({"layout": Layout(2, 2, 1)}, "does not hold its rows"),
        ({"layout": Layout(1, 2, 0), "directions": ["query_to_doc", "doc_to_query"]}, "give 1|needs 2"),
    ],
)
def test_bad_options_are_refused(arguments: dict[str, Any], sentence: str) -> None:
    queries = torch.randn(1 if "directions" in arguments else 2, 8)
    with pytest.raises(UserError, match=sentence):
        nested_infonce(queries, torch.randn(2, 8), **{"matryoshka_dims": [8], **arguments})


def test_triton_is_refused_where_it_cannot_run() -> None:
    q, d = torch.randn(2, 8, dtype=torch.float64), torch.randn(2, 8, dtype=torch.float64)
    with pytest.raises(UserError, match=r"engine='triton' is not available: .*; use engine='tiled'"):
        nested_infonce(q, d, matryoshka_dims=[8], engine="triton")
