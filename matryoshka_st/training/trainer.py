"""Trainers that stop at what is not finite and never save it: transformers' own, and sentence-transformers'."""

from __future__ import annotations

from typing import Any

import torch
from sentence_transformers import SentenceTransformerTrainer
from torch import Tensor, nn
from transformers import Trainer

from matryoshka_st.errors import UserError
from matryoshka_st.losses import WeightSchedule


class GuardedTrainer(Trainer):
    """A ``Trainer`` that raises on a non-finite loss and refuses to write non-finite weights.

    The host logs a NaN loss as 0 and trains on (``logging_nan_inf_filter``), ending "successfully" with NaN weights.
    The check reads one number per step back from the device.
    """

    model: Any

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
        weights = self.model.state_dict() if state_dict is None else state_dict
        for name, tensor in weights.items():
            if tensor.is_floating_point() and not torch.isfinite(tensor).all():
                raise UserError(
                    f"The weights {name!r} are not finite at step {self.state.global_step}, so they were not saved; "
                    "go on from an earlier checkpoint with a lower learning rate, or bf16 instead of fp16."
                )
        super()._save(output_dir, state_dict)


class MatryoshkaTrainer(GuardedTrainer, SentenceTransformerTrainer):
    """A guarded ``SentenceTransformerTrainer`` that tells the loss how far the run is."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if isinstance(self.loss, nn.Module):
            self.add_callback(WeightSchedule(self.loss))
