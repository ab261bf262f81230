"""Batches of groups of near texts, and what a run with the objective ``neighbours`` trains on."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from datasets import Dataset
from sentence_transformers import SentenceTransformer

from matryoshka_st.errors import UserError
from matryoshka_st.neighbours import neighbour_divergence, without_mean
from matryoshka_st.training import run
from matryoshka_st.training.near_batches import NearBatchSampler
from matryoshka_st.training.recipe import parse_recipe

NEIGHBOURS = ["--objective", "neighbours", "--group_size", "2", "--group_among", "4"]


def sampler(count: int = 60, **changed: int) -> NearBatchSampler:
    topics = torch.randn(6, 16).repeat_interleave(count // 6, dim=0)
    unit = F.normalize(topics + 0.1 * torch.randn(count, 16), dim=1)
    options = {"group_size": 5, "group_among": 10, "batch_size": 20, **changed}
    return NearBatchSampler(range(count), unit=unit, drop_last=True, seed=3, **options)


def test_batches_are_full_and_of_distinct_rows() -> None:
    batches = list(sampler())
    assert len(batches) == len(sampler()) == 3
    assert all(len(set(batch)) == len(batch) == 20 for batch in batches)
    assert all(0 <= row < 60 for batch in batches for row in batch)


def test_a_group_is_of_the_rows_nearest_to_its_centre() -> None:
    for batch in sampler(batch_size=5):
        assert len({row // 10 for row in batch}) == 1


def test_a_group_among_all_rows_is_drawn_at_random() -> None:
    for batch in sampler(group_size=10, group_among=60, batch_size=10):
        assert len({row // 10 for row in batch}) > 2


def test_an_epoch_can_be_repeated_and_the_next_one_differs() -> None:
    torch.manual_seed(0)
    one = sampler()
    first = list(one)
    assert list(one) == first
    one.set_epoch(1)
    assert list(one) != first


def test_a_small_dataset_is_one_batch() -> None:
    assert [sorted(batch) for batch in sampler(batch_size=1000)] == [list(range(60))]


@pytest.mark.parametrize(("size", "among"), [(0, 4), (5, 4)])
def test_groups_that_do_not_fit_are_refused(size: int, among: int) -> None:
    with pytest.raises(UserError, match=f"group_size is {size} and group_among {among}; give a group of 1 text or"):
        sampler(group_size=size, group_among=among)


def test_every_text_of_the_pairs_is_trained_on_once_with_its_own_target(flags: list[str]) -> None:
    prepared, _ = run.prepare(parse_recipe([*flags, *NEIGHBOURS]))
    assert isinstance(prepared.train, Dataset) and prepared.targets is not None
    texts, labels = list(prepared.train["text"]), list(prepared.train["label"])
    assert labels == list(range(len(texts))) and len(set(texts)) == len(texts)
    pairs, _ = run.prepare(parse_recipe(flags))
    assert isinstance(pairs.train, Dataset)
    assert set(texts) == {text for name in pairs.train.column_names for text in pairs.train[name]}
    embeddings = prepared.model.encode(texts, convert_to_tensor=True)
    torch.testing.assert_close(prepared.targets[torch.tensor(labels)], embeddings, rtol=1e-4, atol=1e-5)


def test_prefixes_come_nearer_to_the_neighbours_of_the_full_width(flags: list[str], tmp_path: Path) -> None:
    longer = ["--teacher_scale", "20", "--max_steps", "60", "--per_device_train_batch_size", "32", "--dropout", "0"]
    recipe = parse_recipe([*flags, *NEIGHBOURS, *longer])
    prepared, _ = run.prepare(recipe)
    assert isinstance(prepared.train, Dataset) and prepared.targets is not None
    texts, unit = list(prepared.train["text"]), without_mean(prepared.targets)
    run.train(recipe)
    trained = SentenceTransformer(str(tmp_path / "out" / "model"), device="cpu")
    after = trained.encode(texts, convert_to_tensor=True)
    for dim in (4, 16):
        before = neighbour_divergence(unit, prepared.targets, [dim], scale=20.0)
        assert neighbour_divergence(unit, after, [dim], scale=20.0) < 0.8 * before
    card = (tmp_path / "out" / "model" / "README.md").read_text()
    assert "NeighbourDistillLoss" in card and "tung2019similarity" in card
    assert not any(word in card for word in ("fjord", "lagoon")), "no training row in the card"


@pytest.mark.parametrize(
    ("extra", "named"),
    [
        (["--teacher_weight", "1"], "teacher_weight is 1.0"),
        (["--mini_batch_size", "4"], "mini_batch_size is 4"),
        (["--batch_sampler", "group_by_label"], "batch_sampler is 'group_by_label'"),
    ],
)
def test_settings_of_contrastive_training_are_refused(flags: list[str], extra: list[str], named: str) -> None:
    with pytest.raises(UserError, match=f"{named}, which objective 'neighbours' does not use; leave it out"):
        run.prepare(parse_recipe([*flags, *NEIGHBOURS, *extra]))


def test_a_dry_run_takes_a_step(flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run.dry_run(parse_recipe([*flags, *NEIGHBOURS]))
    assert "loss on three rows: loss_neighbours_dim_4" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()
