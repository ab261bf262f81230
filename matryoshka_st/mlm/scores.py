"""How well each prefix predicts held-out tokens, and the table of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from rich.table import Table
from transformers import EvalPrediction

from matryoshka_st.errors import UserError
from matryoshka_st.mlm.model import IGNORED


@dataclass(frozen=True)
class MlmScores:
    """Scores per dim over the masked tokens of the held-out texts."""

    accuracy: dict[int, float]
    """Share of the tokens that are predicted right."""
    loss: dict[int, float]
    """Cross-entropy in nats per token."""
    masked_tokens: int
    most_frequent: float
    """Accuracy of always predicting the most frequent token: what a useless prefix comes to."""


class ScorePerDim:
    """``compute_metrics`` of a trainer: ``accuracy_D`` and ``loss_D`` for each scored dim ``D``, and their base.

    Args:
        dims: The scored dims, in the order of the model's output.
    """

    def __init__(self, dims: Sequence[int]) -> None:
        self.dims = tuple(dims)

    def __call__(self, prediction: EvalPrediction) -> dict[str, float]:
        """Average what the texts add, over the masked tokens of all of them."""
        losses, hits = (np.asarray(values, dtype=np.float64).sum(axis=0) for values in prediction.predictions)
        words = np.asarray(prediction.label_ids)
        words = words[words != IGNORED]
        if not len(words):
            raise UserError(
                "None of the held-out tokens was masked, so there is nothing to score; hold out more texts."
            )
        return {
            **{f"accuracy_{dim}": float(value) for dim, value in zip(self.dims, hits / len(words), strict=True)},
            **{f"loss_{dim}": float(value) for dim, value in zip(self.dims, losses / len(words), strict=True)},
            "masked_tokens": len(words),
            "most_frequent": float(np.bincount(words).max() / len(words)),
        }

    def read(self, metrics: dict[str, float]) -> MlmScores:
        """The scores out of what the trainer's ``evaluate`` returns."""
        accuracy = {dim: metrics[f"eval_accuracy_{dim}"] for dim in self.dims}
        loss = {dim: metrics[f"eval_loss_{dim}"] for dim in self.dims}
        return MlmScores(accuracy, loss, int(metrics["eval_masked_tokens"]), metrics["eval_most_frequent"])


def table(scores: MlmScores, trained: Sequence[int]) -> Table:
    """One row per dim, widest first: accuracy, its share of the full width, loss, and whether the dim was trained."""
    result = Table(
        title=f"masked tokens predicted, of {scores.masked_tokens:,} held out",
        caption=f"always the most frequent token: {100 * scores.most_frequent:.2f}",
    )
    for column in ("dim", "accuracy x100", "% of full width", "loss (nats)", "trained"):
        result.add_column(column, justify="right")
    full = scores.accuracy[max(scores.accuracy)]
    for dim in sorted(scores.accuracy, reverse=True):
        accuracy = scores.accuracy[dim]
        share = f"{100 * accuracy / full:.1f}" if full > 0 else "-"
        mark = "yes" if dim in trained else "cut"
        result.add_row(str(dim), f"{100 * accuracy:.2f}", share, f"{scores.loss[dim]:.3f}", mark)
    return result
