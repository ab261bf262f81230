"""The views of a model that a grid asks for."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from matryoshka_st.errors import UserError
from matryoshka_st.evaluation.bank import Bank
from matryoshka_st.evaluation.grid import Grid
from matryoshka_st.evaluation.precision import check_precision
from matryoshka_st.evaluation.prefix_view import CALIBRATION_ROWS, Cut, PrefixView
from matryoshka_st.evaluation.steps import Step, baseline, named_step
from matryoshka_st.insertion import has_routes
from matryoshka_st.training.held_out import load_texts

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer


def make_views(
    bank: Bank,
    model: SentenceTransformer,
    dims: Sequence[int],
    grid: Grid,
    *,
    name: str,
    revision: str,
    batch_size: int = 32,
) -> list[PrefixView]:
    """One view per cut: the plain one first, wide dims first.

    Args:
        bank: Behind all of them.
        model: The bank's model, to encode the texts.
        dims: Checked, in the order wanted.
        grid: What besides.
        name: Files the results.
        revision: Likewise.
        batch_size: Texts per forward pass.

    Raises:
        UserError: If a precision, step, baseline or the texts are not valid.
    """
    precisions = [check_precision(precision) for precision in dict.fromkeys(grid.precisions)]
    if not precisions:
        raise UserError("No precision was given; give one or more, for example float32.")
    if grid.texts and has_routes(model):
        raise UserError(
            "This model embeds queries and documents otherwise than other texts (a Router), so nothing fitted on "
            "--texts suits both; leave out --texts and --baselines."
        )
    before = named_step(grid.before_cut) if grid.before_cut else None
    calibration = _encode_texts(model, grid.texts, batch_size) if grid.texts else None
    cuts = [Cut(dim, precision, grid.normalized, before) for precision in precisions for dim in dims]
    for step in _baseline_steps(grid, before, calibration):
        cuts += [Cut(dim, "float32", grid.normalized, step) for dim in dims]
    return [PrefixView(bank, cut, name=name, revision=revision, calibration=calibration) for cut in cuts]


def _baseline_steps(grid: Grid, before: Step | None, texts: tuple[Tensor, str] | None) -> list[Step]:
    if not grid.baselines:
        return []
    if texts is None:
        raise UserError("Baselines are fitted on texts; name training texts with --texts, for example docstrings.")
    vectors, label = before(texts[0]) if before else texts[0], texts[1]
    fitted = [
        baseline(kind, vectors, label, seed=seed)
        for kind in dict.fromkeys(grid.baselines)
        for seed in (grid.seeds if kind == "random" else [0])
    ]
    return [_after(before, step) for step in fitted] if before else fitted


def _after(first: Step, second: Step) -> Step:
    return Step(f"{first.name}+{second.name}", lambda vectors: second(first(vectors)))


def _encode_texts(model: SentenceTransformer, source: str, batch_size: int) -> tuple[Tensor, str]:
    """Full-width vectors of the texts, and a label that tells them from any others."""
    texts = load_texts(source, CALIBRATION_ROWS)
    digest = hashlib.sha256("\n".join(texts).encode()).hexdigest()[:8]
    vectors = model.encode(texts, batch_size=batch_size, convert_to_tensor=True, show_progress_bar=False)
    return torch.as_tensor(vectors).float().cpu(), f"{Path(source).stem}-{digest}"
