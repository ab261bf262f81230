"""What the figures draw, as plain numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Curve:
    """The score (0 to 1) at each dim, and that of the full width if it is known."""

    label: str
    scores: Mapping[int, float]
    full: float | None

    @classmethod
    def down_from_the_widest(cls, label: str, scores: Mapping[int, float]) -> Curve:
        """A curve whose widest dim is the full width."""
        return cls(label, scores, scores[max(scores)])

    def shares(self) -> dict[int, float]:
        """The share of the full width's score at each dim; a single dim has nothing to be compared with."""
        return (
            {dim: score / self.full for dim, score in self.scores.items()}
            if self.full and len(self.scores) > 1
            else {}
        )


@dataclass(frozen=True)
class Spot:
    """One view in the plane of size and score."""

    label: str
    dim: int
    precision: str
    bytes_per_vector: int
    score: float
    on_front: bool
