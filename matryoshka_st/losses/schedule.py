"""Which prefixes a step trains, and with which weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from matryoshka_st.errors import UserError
from matryoshka_st.losses.gather import broadcast
from matryoshka_st.nesting import MatryoshkaDims


class PrefixSchedule:
    """Dims with weights that may change linearly over the run, all or a sample of them per step.

    Args:
        nesting: The dims and their weights at the first step.
        weights_end: Their weights at the last step, in the same order.
        n_dims_per_step: How many to draw; -1: all.

    Raises:
        UserError: If ``n_dims_per_step`` is not valid.
    """

    def __init__(
        self, nesting: MatryoshkaDims, weights_end: tuple[float, ...] | None = None, n_dims_per_step: int = -1
    ) -> None:
        if n_dims_per_step != -1 and not 1 <= n_dims_per_step <= len(nesting):
            raise UserError(f"n_dims_per_step is {n_dims_per_step}; use -1 for all, or 1 to {len(nesting)}.")
        self.nesting = nesting
        self.weights_end = weights_end
        self.n_dims_per_step = n_dims_per_step
        self.progress: float | None = None

    @classmethod
    def of(
        cls,
        dims: Sequence[int],
        weights: Sequence[float] | None,
        weights_end: Sequence[float] | None,
        n_dims_per_step: int,
        width: int | None,
    ) -> PrefixSchedule:
        """Check dims and weights and sort them."""
        end = None if weights_end is None else MatryoshkaDims.of(dims, weights_end, width=width).weights
        return cls(MatryoshkaDims.of(dims, weights, width=width), end, n_dims_per_step)

    def weights(self) -> tuple[float, ...]:
        """The weights of this step.

        Raises:
            UserError: If they change over a run and nobody said how far it is.
        """
        start = self.nesting.weights
        if self.weights_end is None:
            return start
        if self.progress is None and torch.is_grad_enabled():
            raise UserError(
                "matryoshka_weights_end needs to know how far the run is; give the trainer "
                "callbacks=[WeightSchedule(loss)]."
            )
        done = self.progress or 0.0
        return tuple((1 - done) * a + done * b for a, b in zip(start, self.weights_end, strict=True))

    def chosen(self, device: torch.device) -> list[int]:
        """Numbers of the dims to train in this step, ascending; drawn by the first process from its own generator.

        The trainer's checkpoints hold the generator's state, so a resumed run draws what the whole one would have.
        """
        count = len(self.nesting)
        if self.n_dims_per_step in (-1, count) or not torch.is_grad_enabled():
            return list(range(count))
        drawn = torch.randperm(count)[: self.n_dims_per_step].to(device)
        return sorted(broadcast(drawn).tolist())


class WeightSchedule(TrainerCallback):
    """Tells losses with ``matryoshka_weights_end`` how far the run is, a resumed one too.

    Args:
        loss: The trainer's loss, or what holds such losses.

    Example:
        ::

            loss = MatryoshkaContrastiveLoss(model, [384, 64], [1.0, 0.0], matryoshka_weights_end=[1.0, 1.0])
            SentenceTransformerTrainer(..., loss=loss, callbacks=[WeightSchedule(loss)])
    """

    def __init__(self, loss: nn.Module) -> None:
        self.loss = loss

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Before the first batch of each optimizer step."""
        self.tell(state.global_step / max(state.max_steps - 1, 1))

    def tell(self, progress: float) -> None:
        """Set how far the run is, 0 at its first step and 1 at its last."""
        for module in self.loss.modules():
            schedule = getattr(module, "schedule", None)
            if isinstance(schedule, PrefixSchedule):
                schedule.progress = progress
