"""Batches made of groups of near texts, so that few dims learn to tell apart what lies within one topic."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any

import torch
from jaxtyping import Float, Int
from sentence_transformers.base.sampler import DefaultBatchSampler
from torch import Tensor

from matryoshka_st.errors import UserError


class NearBatchSampler(DefaultBatchSampler):
    """Each batch: some texts drawn at random, and for each a group drawn from the texts nearest to it.

    An epoch draws each text once as the centre of a group at most, and has as many batches as fit the dataset; texts
    may come several times or not at all. Every batch has ``batch_size`` distinct rows.

    Args:
        dataset: Its length says how many rows there are.
        unit: Unit vectors, one per row of the dataset: who is near whom.
        group_size: Rows of a group.
        group_among: The group is drawn from so many nearest rows. Equal to ``group_size``: the nearest; much larger:
            rows of one topic; all rows: at random.
        batch_size: Rows of a batch; of a small dataset all.
        options: As sentence-transformers passes them: ``drop_last``, ``generator``, ``seed`` and the like.

    Raises:
        UserError: If the sizes do not fit each other.
    """

    def __init__(
        self,
        dataset: Any,
        *,
        unit: Float[Tensor, "n width"],
        group_size: int,
        group_among: int,
        batch_size: int,
        **options: Any,
    ) -> None:
        super().__init__(dataset, batch_size=min(batch_size, len(dataset)), **options)
        if not 1 <= group_size <= group_among:
            raise UserError(
                f"group_size is {group_size} and group_among {group_among}; give a group of 1 text or more, drawn "
                "from as many or more."
            )
        self.unit = unit
        self.group_size = min(group_size, self.batch_size)
        self.group_among = min(group_among, len(dataset))

    def __len__(self) -> int:
        return len(self.unit) // self.batch_size

    def __iter__(self) -> Iterator[list[int]]:
        draw = torch.Generator().manual_seed(self.seed + self.epoch)
        centres = torch.randperm(len(self.unit), generator=draw).split(self.batch_size // self.group_size)
        for number in range(len(self)):
            yield self._batch(centres[number], draw)

    def _batch(self, centres: Int[Tensor, " groups"], draw: torch.Generator) -> list[int]:
        nearest = (self.unit[centres] @ self.unit.T).topk(self.group_among, dim=1).indices.cpu()
        chosen = torch.rand(nearest.shape, generator=draw).topk(self.group_size, dim=1).indices
        rows = dict.fromkeys(nearest.gather(1, chosen).flatten().tolist())
        spare = torch.randperm(len(self.unit), generator=draw)[: self.batch_size].tolist()
        missing = (row for row in spare if row not in rows)
        return [*rows, *islice(missing, self.batch_size - len(rows))]
