"""What one of two processes trains on when its run is resumed in the middle of the second epoch."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from accelerate.data_loader import prepare_data_loader
from safetensors.torch import load_file
from torch.utils.data import DataLoader
from transformers import TrainerCallback

from matryoshka_st.training import run
from matryoshka_st.training.recipe import parse_recipe
from matryoshka_st.training.trainer import MatryoshkaTrainer


class OneOfTwo(MatryoshkaTrainer):
    """Gets the batches of the second of two processes, which accelerate cuts out of all."""

    def get_train_dataloader(self) -> DataLoader:
        whole = self._build_dataloader(self.train_dataset, self.args.train_batch_size, "train")
        return prepare_data_loader(whole, num_processes=2, process_index=1, even_batches=False, put_on_device=False)


class Killed(TrainerCallback):
    def on_step_end(self, args: object, state: object, control: object, **_: object) -> None:
        if state.global_step == 8:
            raise KeyboardInterrupt


class Doomed(OneOfTwo):
    def __init__(self, **kwargs: object) -> None:
        super().__init__(callbacks=[Killed()], **kwargs)


@pytest.mark.parametrize(
    "extra",
    [
        ["--batch_sampler", "no_duplicates"],
        ["--objective", "neighbours", "--group_size", "2", "--group_among", "4", "--max_train_rows", "44"],
        ["--train_data", "pairs.jsonl", "more.jsonl", "--max_train_rows", "48"],
    ],
    ids=["no duplicates", "neighbours", "two sets"],
)
def test_the_second_epoch_is_resumed_with_its_own_batches(
    flags: list[str], pairs: Path, tmp_path: Path, extra: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(pairs, tmp_path / "more.jsonl")
    monkeypatch.chdir(tmp_path)
    recipe = [*flags, *extra, "--save_steps", "7", "--eval_strategy", "no", "--max_steps", "9"]
    monkeypatch.setattr(run, "MatryoshkaTrainer", OneOfTwo)
    run.train(parse_recipe(recipe))
    whole = load_file(tmp_path / "out" / "model" / "model.safetensors")
    shutil.rmtree(tmp_path / "out")
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(run, "MatryoshkaTrainer", Doomed)
        run.train(parse_recipe(recipe))
    run.train(parse_recipe(recipe))
    resumed = load_file(tmp_path / "out" / "model" / "model.safetensors")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
