"""Trainers that stop at what is not finite and never save it: transformers' own, and sentence-transformers'."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformerTrainer
from torch import Tensor, nn
from torch.utils.data import BatchSampler
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from matryoshka_st.errors import UserError
from matryoshka_st.losses import WeightSchedule

Batches = Callable[..., BatchSampler]
"""Makes the batch sampler of a dataset from what sentence-transformers tells every one."""

LOSS_WEIGHTS = "loss.safetensors"
MODELS = {"model", "guide"}  # what losses call the models that they hold


class BatchesOfEpoch(TrainerCallback):
    """Tells the samplers the epoch, however deep they are wrapped.

    The host reaches one level. With several processes, batches that a resumed run skips make it two.
    """

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Before the first batch of an epoch is drawn."""
        for sampler in _nested(kwargs["train_dataloader"].batch_sampler):
            if hasattr(sampler, "set_epoch"):
                sampler.set_epoch(int(state.epoch or 0))


def _nested(sampler: Any) -> Iterator[Any]:
    while sampler is not None:
        yield sampler
        sampler = getattr(sampler, "batch_sampler", getattr(sampler, "sampler", None))


class GuardedTrainer(Trainer):
    """A ``Trainer`` that raises on a non-finite loss and refuses to write non-finite weights.

    The host logs a NaN loss as 0 and trains on (``logging_nan_inf_filter``), ending "successfully" with NaN weights.
    The check reads one number per step back from the device.
    """

    model: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.add_callback(BatchesOfEpoch())

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Tensor | Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Tensor | tuple[Tensor, Any]:
        """The host's loss.

        Raises:
            UserError: If it is not finite; the weights are then still those of the last step.
        """
        result = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        loss = result[0] if isinstance(result, tuple) else result
        if not torch.isfinite(loss.detach()):
            raise UserError(
                f"The loss is {loss.item()} at step {self.state.global_step + 1}, so training stopped before it "
                "changed the weights; lower the learning rate, use bf16 instead of fp16, or check the texts."
            )
        return result

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        self.refuse_non_finite(self.model.state_dict() if state_dict is None else state_dict)
        super()._save(output_dir, state_dict)

    def refuse_non_finite(self, weights: Mapping[str, Tensor]) -> None:
        """Raise instead of writing weights that are not finite.

        Raises:
            UserError: Naming the weights and the step.
        """
        for name, tensor in weights.items():
            if tensor.is_floating_point() and not torch.isfinite(tensor).all():
                raise UserError(
                    f"The weights {name!r} are not finite at step {self.state.global_step}, so they were not saved; "
                    "go on from an earlier checkpoint with a lower learning rate, or bf16 instead of fp16."
                )


class MatryoshkaTrainer(GuardedTrainer, SentenceTransformerTrainer):
    """A guarded ``SentenceTransformerTrainer`` that tells the loss how far the run is, and keeps the loss's weights.

    The host trains weights of the loss, such as a classifier's, but leaves them out of its checkpoints.

    Args:
        args: As the host's.
        batches: Makes the batch sampler of a dataset in place of ``args.batch_sampler``, which is saved with every
            checkpoint and can only hold what is small.
        kwargs: As the host's.
    """

    def __init__(self, *args: Any, batches: Batches | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.batches = batches
        if isinstance(self.loss, nn.Module):
            self.add_callback(WeightSchedule(self.loss))

    def get_batch_sampler(self, dataset: Dataset, *args: Any, **kwargs: Any) -> BatchSampler | None:
        """The host's, or what ``batches`` makes."""
        make = super().get_batch_sampler if self.batches is None else self.batches
        return make(dataset, *args, **kwargs)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        own = own_weights(self.loss)
        self.refuse_non_finite(own)
        super()._save(output_dir, state_dict)
        if own:
            save_file(own, Path(output_dir or str(self.args.output_dir)) / LOSS_WEIGHTS)

    def _load_from_checkpoint(self, checkpoint_path: str) -> None:  # type: ignore[override]  # as the host has it
        super()._load_from_checkpoint(checkpoint_path)
        own = own_weights(self.loss)
        if not own:
            return
        path = Path(checkpoint_path) / LOSS_WEIGHTS
        try:
            saved = load_file(path)
        except (OSError, SafetensorError) as error:
            raise UserError(f"{path} cannot be read ({error}); go on from another checkpoint.") from error
        for name, tensor in own.items():
            tensor.copy_(saved[name])


def own_weights(loss: nn.Module | Mapping[str, nn.Module]) -> dict[str, Tensor]:
    """The trained weights of a loss that are not those of a model in it, by name, detached."""
    modules = loss if isinstance(loss, nn.Module) else nn.ModuleDict(loss)
    return {
        name: parameter.detach()
        for name, parameter in modules.named_parameters()
        if parameter.requires_grad and MODELS.isdisjoint(name.split("."))
    }
