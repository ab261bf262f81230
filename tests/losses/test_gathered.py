"""Two and three processes train like one on the joined batch, with one gather and one reduce-scatter per step."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from matryoshka_st import UserError
from matryoshka_st.losses import CachedMatryoshkaContrastiveLoss, MatryoshkaContrastiveLoss

from .processes import collectives, run_processes

ROWS = 4  # of each process
NOUNS = ["fish", "house", "tree", "sea", "ship", "dish", "mouse", "bee", "tea", "chip", "town", "car"]
COLUMNS = [
    ["red fish", "old house", "new tree", "green sea", "tall ship", "red fish"] * 2,
    ["a red fish", "an old house", "a new tree", "the green sea", "one tall ship", "my red fish"] * 2,
    [f"no {word}" for word in NOUNS],
    [f"a {word}" for word in reversed(NOUNS)],
]
DIRECTIONS = [("query_to_doc",), ("query_to_doc", "query_to_query"), ("query_to_doc", "doc_to_query"),
              ("query_to_doc", "doc_to_doc"),
              ("query_to_doc", "query_to_query", "doc_to_query", "doc_to_doc")]  # fmt: skip


@dataclass(frozen=True)
class Case:
    columns: int = 2
    mini_batch_size: int | None = None
    options: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        options = " ".join(f"{key}={value}" for key, value in self.options.items())
        return f"{self.columns} columns, mini-batches {self.mini_batch_size}, {options or 'plain'}"

    def loss(self, model: SentenceTransformer, **options: Any) -> MatryoshkaContrastiveLoss:
        options = {**self.options, **options}
        if "guide" in options:
            options["guide"] = tiny(options["guide"], seed=1)
        if self.mini_batch_size is None:
            return MatryoshkaContrastiveLoss(model, [32, 8, 1], [1.0, 2.0, 0.5], **options)
        cached = {"mini_batch_size": self.mini_batch_size, **options}
        return CachedMatryoshkaContrastiveLoss(model, [32, 8, 1], [1.0, 2.0, 0.5], **cached)


def cases(bert: Path) -> list[Case]:
    every = [
        Case(columns, size, {"directions": directions})
        for columns in (2, 4)
        for size in (None, 3)
        for directions in DIRECTIONS
    ]
    options: list[dict[str, Any]] = [
        {"directions": ("query_to_doc", "doc_to_query"), "partition_mode": "per_direction"},
        {"exclude_duplicates": True},
        {"margin": 0.1, "directions": DIRECTIONS[-1], "exclude_duplicates": True},
        {"margin": 0.1, "margin_strategy": "relative", "guide": str(bert)},
        {"margin": 1e-6, "guide": str(bert), "directions": DIRECTIONS[-1]},  # 0 leaves equal texts to rounding
        {"distill_weight": 0.5, "hardness_mode": "all_negatives", "hardness_strength": 5.0},
        {"similarity": "dot"},
    ]
    return every + [Case(3, size, chosen) for size in (None, 3) for chosen in options]


def tiny(bert: str, seed: int = 0) -> SentenceTransformer:
    return copy.deepcopy(_tiny(bert, seed))


@cache
def _tiny(bert: str, seed: int) -> SentenceTransformer:
    transformer = Transformer(bert, max_seq_length=32)
    model = SentenceTransformer(modules=[transformer, Pooling(32, pooling_mode="mean"), Normalize()], device="cpu")
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)
    transformer.model.pooler.requires_grad_(False)  # not used, and DDP waits for all parameters
    return model.double().eval()


def features(model: SentenceTransformer, columns: int, rows: slice, of: int) -> list[dict[str, Any]]:
    """The rows of each column, tokenized with those of all processes, so that the padding is the same."""
    tokenized = [model.preprocess(column[:of]) for column in COLUMNS[:columns]]
    return [{key: value[rows] if isinstance(value, Tensor) else value for key, value in t.items()} for t in tokenized]


def gradients(model: torch.nn.Module) -> list[Tensor]:
    return [parameter.grad for parameter in model.parameters() if parameter.grad is not None]


def prepared(rank: int, world: int, bert: str, case: Case) -> tuple[SentenceTransformer, Any, Any]:
    model = tiny(bert)
    loss = case.loss(model, gather_across_devices=True)
    loss.model = DistributedDataParallel(model)
    return model, loss, features(model, case.columns, slice(rank * ROWS, (rank + 1) * ROWS), world * ROWS)


def train(rank: int, world: int, bert: str, todo: list[Case]) -> list[tuple[dict[str, Tensor], list[Tensor]]]:
    """Of each case: this process's terms and the averaged gradients."""
    done = []
    for case in todo:
        model, loss, own = prepared(rank, world, bert, case)
        terms = loss(own)
        terms.total().backward()
        done.append(({name: value.detach() for name, value in terms.items()}, gradients(model)))
    return done


def count(rank: int, world: int, bert: str, case: Case) -> list[tuple[str, list[int]]]:
    """The collectives of a step."""
    _, loss, own = prepared(rank, world, bert, case)
    return collectives(lambda: loss(own).total().backward())


@pytest.mark.parametrize("world", [2, 3])
def test_gradients_are_those_of_one_process_on_the_joined_batch(tiny_bert_path: Path, world: int) -> None:
    bert = str(tiny_bert_path)
    todo = cases(tiny_bert_path)
    by_rank = run_processes(world, train, bert, todo)
    for result in by_rank:
        assert not isinstance(result, Exception), result
    for i, case in enumerate(todo):
        model = tiny(bert)
        alone = Case(case.columns, None, case.options).loss(model)
        terms = alone(features(model, case.columns, slice(None), world * ROWS))
        terms.total().backward()
        for name, value in terms.items():
            mean = sum(done[i][0][name] for done in by_rank) / world
            torch.testing.assert_close(mean, value.detach(), rtol=0, atol=1e-10, msg=f"{case}: {name}")
        for done in by_rank:
            for got, want in zip(done[i][1], gradients(model), strict=True):
                assert (got - want).abs().max() <= 1e-10 * max(1.0, want.abs().max().item()), str(case)


@pytest.mark.parametrize("mini_batch_size", [None, 3], ids=["plain", "cached"])
@pytest.mark.parametrize("directions", DIRECTIONS[::4], ids=["documents", "queries too"])
@pytest.mark.parametrize("masks", [False, True], ids=["no masks", "masks"])
def test_each_step_gathers_once_and_scatters_once(
    tiny_bert_path: Path, mini_batch_size: int | None, directions: tuple[str, ...], masks: bool
) -> None:
    bert = str(tiny_bert_path)
    options = {"exclude_duplicates": True, "margin": 1e-6, "guide": bert} if masks else {}
    asked, _ = run_processes(2, count, bert, Case(3, mini_batch_size, {"directions": directions, **options}))
    gathered = 2 if directions == DIRECTIONS[0] else 3
    beside = [[2 * 3, ROWS], [2 * 3, ROWS, 32]] if masks else []
    assert [shape for name, shape in asked if name == "_allgather_base_"] == [
        [2, 2],  # the sizes of the batches
        [2 * gathered, ROWS, 32],
        *beside,
    ]
    assert [shape for name, shape in asked if name == "_reduce_scatter_base_"] == [[gathered, ROWS, 32]]
    others = {name for name, _ in asked} - {"_allgather_base_", "_reduce_scatter_base_"}
    assert others <= {"allreduce_", "broadcast_"}  # DDP's own: gradients, buffers


def one_step(
    rank: int, world: int, bert: str, rows: list[int], columns: list[int], mini_batch_size: int | None
) -> dict[str, Tensor]:
    model = tiny(bert)
    options = {"exclude_duplicates": True, "margin": 1e-6, "guide": bert, "n_dims_per_step": 1}
    loss = Case(mini_batch_size=mini_batch_size, options=options).loss(model, gather_across_devices=True)
    terms: dict[str, Tensor] = loss(features(model, columns[rank], slice(0, rows[rank]), 9))
    return {name: value.detach() for name, value in terms.items()}


@pytest.mark.parametrize("mini_batch_size", [None, 2], ids=["plain", "cached"])
@pytest.mark.parametrize(
    ("rows", "columns", "sentence"),
    [
        ([4, 3], [2, 2], "batches of one size, and the processes have 2 columns of 4, 2 columns of 3 rows; set data"),
        ([4, 0], [2, 2], "2 columns of 4, 2 columns of 0 rows"),
        ([0, 0], [2, 2], "2 columns of 0, 2 columns of 0 rows"),
        ([2, 2], [3, 2], "3 columns of 2, 2 columns of 2 rows"),
    ],
    ids=["another size", "no data", "no data anywhere", "other columns"],
)
def test_batches_that_do_not_fit_are_an_error_everywhere(
    tiny_bert_path: Path, rows: list[int], columns: list[int], sentence: str, mini_batch_size: int | None
) -> None:
    results = run_processes(2, one_step, str(tiny_bert_path), rows, columns, mini_batch_size)
    assert all(isinstance(result, UserError) and sentence in str(result) for result in results), results


def train_sharded(rank: int, world: int, bert: str, case: Case) -> list[Tensor]:
    model = tiny(bert)
    loss = case.loss(model, gather_across_devices=True)
    fully_shard(model, mesh=init_device_mesh("cpu", (world,)))
    loss(features(model, case.columns, slice(rank * ROWS, (rank + 1) * ROWS), world * ROWS)).total().backward()
    return [gradient.full_tensor() for gradient in gradients(model)]


@pytest.mark.parametrize("mini_batch_size", [None, 3], ids=["plain", "cached"])
def test_sharded_models_get_the_same_gradients(tiny_bert_path: Path, mini_batch_size: int | None) -> None:
    case = Case(3, mini_batch_size, {"directions": DIRECTIONS[-1]})
    sharded, _ = run_processes(2, train_sharded, str(tiny_bert_path), case)
    assert not isinstance(sharded, Exception), sharded
    model = tiny(str(tiny_bert_path))
    Case(3, None, case.options).loss(model)(features(model, 3, slice(None), 2 * ROWS)).total().backward()
    for got, want in zip(sharded, gradients(model), strict=True):
        assert (got - want).abs().max() <= 1e-10 * max(1.0, want.abs().max().item())


def draw_dims(rank: int, world: int, bert: str) -> list[list[str]]:
    model = tiny(bert)
    torch.manual_seed(rank)
    loss = MatryoshkaContrastiveLoss(model, [32, 16, 8, 4, 2], n_dims_per_step=2)
    return [sorted(loss(features(model, 2, slice(0, 2), 4))) for _ in range(8)]


def test_processes_draw_the_same_dims(tiny_bert_path: Path) -> None:
    first, second, third = run_processes(3, draw_dims, str(tiny_bert_path))
    assert first == second == third
    assert len({tuple(names) for names in first}) > 1
    assert all(len(names) == 2 for names in first)


def test_one_process_gathers_nothing(tiny_bert_path: Path) -> None:
    model = tiny(str(tiny_bert_path))
    own = features(model, 3, slice(0, 4), 4)
    gathered = Case(3).loss(model, gather_across_devices=True)([dict(column) for column in own])
    assert gathered == Case(3).loss(model)(own)


@pytest.mark.parametrize("mini_batch_size", [None, 2], ids=["plain", "cached"])
def test_an_empty_batch_of_one_process_is_an_error(tiny_bert_path: Path, mini_batch_size: int | None) -> None:
    model = tiny(str(tiny_bert_path))
    with pytest.raises(UserError, match="The batch is empty; give one row or more"):
        Case(mini_batch_size=mini_batch_size).loss(model)(features(model, 2, slice(0, 0), 2))
