"""What a run leaves to read: the table per dim, the verdict, ``metrics.json`` and the plot."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from matryoshka_st.files import write_json

SCHEMA_VERSION = 1
BYTES_PER_DIM = 4
MARGIN = 0.005


@dataclass(frozen=True)
class Scores:
    """Scores per dim, 0 to 1, before and after training."""

    metric: str
    before: dict[int, float]
    after: dict[int, float]


def table(scores: Scores) -> Table:
    """One row per dim, widest first: before, after, change (all x100), share of the full width, bytes per vector."""
    result = Table(title=f"{scores.metric} x100 on held-out data")
    for column in ("dim", "before", "after", "change", "% of full width", "bytes per vector"):
        result.add_column(column, justify="right")
    full = scores.after[max(scores.after)]
    for dim in sorted(scores.after, reverse=True):
        before, after = scores.before[dim], scores.after[dim]
        share = f"{100 * after / full:.1f}" if full > 0 else "-"
        result.add_row(
            str(dim),
            f"{100 * before:.2f}",
            f"{100 * after:.2f}",
            f"{100 * (after - before):+.2f}",
            share,
            f"{BYTES_PER_DIM * dim:,}",
        )
    return result


def verdict(scores: Scores) -> str:
    """One line to search a log for: WIN or REGRESSION when the mean over dims moved by half a point, else MARGINAL.

    >>> verdict(Scores("nDCG@10", {64: 0.5, 32: 0.4}, {64: 0.6, 32: 0.5}))
    'VERDICT: WIN | mean nDCG@10 over 2 dims x100: 45.00 -> 55.00 (+10.00) | better at 2 of 2 dims'
    """
    before, after = (sum(values.values()) / len(values) for values in (scores.before, scores.after))
    change = after - before
    word = "WIN" if change >= MARGIN else "REGRESSION" if change <= -MARGIN else "MARGINAL"
    dims = len(scores.after)
    better = sum(scores.after[dim] > scores.before[dim] for dim in scores.after)
    return (
        f"VERDICT: {word} | mean {scores.metric} over {dims} dims x100: "
        f"{100 * before:.2f} -> {100 * after:.2f} ({100 * change:+.2f}) | better at {better} of {dims} dims"
    )


def write_metrics(path: Path, scores: Scores, **facts: Any) -> None:
    """Write the scores and any other facts of the run as JSON."""
    write_json(path, {"schema_version": SCHEMA_VERSION, **asdict(scores), "verdict": verdict(scores), **facts})
