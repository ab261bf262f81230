"""What our losses return: named terms that the trainer sums and logs one by one."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from matryoshka_st.errors import UserError


class LossTerms(dict[str, Tensor]):
    """Named scalars whose sum is the loss; scales and adds like that sum.

    Sentence-transformers' trainer takes any dict. The arithmetic is for ``AdaptiveLayerLoss``, which multiplies and
    adds what the loss it wraps returns. ``MatryoshkaLoss`` starts from 0.0, by which it is told apart.

    >>> terms = LossTerms(loss_dim_8=torch.tensor(1.0)) * 2 + LossTerms(loss_dim_8=torch.tensor(3.0))
    >>> terms
    {'loss_dim_8': tensor(5.)}
    """

    def total(self) -> Tensor:
        """The loss."""
        return torch.stack(list(self.values())).sum()

    def __mul__(self, factor: float | Tensor) -> LossTerms:
        return LossTerms({name: value * factor for name, value in self.items()})

    __rmul__ = __mul__

    def __truediv__(self, divisor: float) -> LossTerms:
        return self * (1 / divisor)

    def __add__(self, other: Mapping[str, Tensor] | Tensor) -> LossTerms:
        total = LossTerms(self)
        for name, value in (other if isinstance(other, Mapping) else {"loss_other": other}).items():
            total[name] = total[name] + value if name in total else value
        return total

    def __radd__(self, other: object) -> LossTerms:
        raise UserError(
            f"Named loss terms cannot be added to {other!r}; if MatryoshkaLoss did that, do not wrap this loss in "
            "one, since it trains every prefix by itself."
        )
