"""What the Triton kernels read: padded blocks, inverse prefix norms, keys and guides of queries and documents.

Legend: B local rows, W samples, N documents, K prefixes, S coordinates per step, P width once each block b_k is padded
to whole steps.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
import triton
from jaxtyping import Float
from torch import Tensor
from triton.runtime.interpreter import InterpretedFunction

from matryoshka_st.infonce.exclusions import margin_bounds, match_keys
from matryoshka_st.infonce.problem import DOCUMENTS, QUERIES, Beside, Direction, Layout, Problem, local_rows
from matryoshka_st.infonce.triton_tiles import Side, Span, Task, place

INTERPRETED = isinstance(place, InterpretedFunction)
_NO_NORM = 1e-12  # the eps of torch.nn.functional.normalize
_SCRATCH = 2**27  # bytes
_HARDNESS = {None: 0, "in_batch_negatives": 1, "hard_negatives": 2, "all_negatives": 3}


class Blocks(NamedTuple):
    """What one program works on: a tile of scores, and at most so many coordinates per step.

    Tiles have ``narrow`` columns where a program keeps more than one of them in its registers.
    """

    rows: int
    columns: int
    narrow: int
    step: int
    num_warps: int
    num_stages: int


BLOCKS = {
    torch.float32: Blocks(64, 64, 64, 32, num_warps=4, num_stages=2),
    torch.float16: Blocks(128, 128, 64, 64, num_warps=8, num_stages=3),
    torch.bfloat16: Blocks(128, 128, 64, 64, num_warps=8, num_stages=3),
}


class Plan(NamedTuple):
    """A problem cut for the kernels; ``widths`` are those of the blocks, ``ends`` (K + 1, from 0 on) are in steps.

    ``scratch`` bounds, in bytes, the residuals of a region and the log-sum-exps of single tiles.
    """

    problem: Problem
    dtype: torch.dtype
    blocks: Blocks
    widths: tuple[int, ...]
    ends: Tensor
    prefix_of_step: Tensor
    scratch: int

    @property
    def precision(self) -> str:
        """How float32 products are made, by torch's own setting."""
        setting = getattr(torch.backends.cuda.matmul, "fp32_precision", None)  # torch 2.9 and later
        if setting is None:
            setting = "ieee" if torch.get_float32_matmul_precision() == "highest" else "tf32"
        return "tf32" if setting == "tf32" else "ieee"


class Operand(NamedTuple):
    """Queries or documents: where the local rows start, rows x P coordinates, K x rows inverse norms if cosine."""

    start: int
    x: Tensor
    inverse: Tensor | None


class Masks(NamedTuple):
    """What excludes columns: keys W x 2 and N x 2, guides, inverse norms of these (queries, documents), B bounds."""

    keys: tuple[Tensor, Tensor] | None = None
    guides: tuple[Tensor, Tensor] | None = None
    guide_inverses: tuple[Tensor, Tensor] | None = None
    bounds: Tensor | None = None


def plan_of(queries: Tensor, documents: Tensor, problem: Problem) -> Plan:
    """Choose block sizes for a problem: the table's, unless the embeddings or the blocks of the width are smaller."""
    table = BLOCKS[queries.dtype]
    count = len(problem.dims)
    most_columns = _power_of_two(max(len(queries), len(documents)))
    blocks = table._replace(
        rows=min(table.rows, _power_of_two(problem.layout.batch)),
        columns=min(table.columns, most_columns),
        narrow=min(table.narrow, most_columns),
        step=min(table.step, _power_of_two(-(-problem.dims[-1] // count))),
    )
    widths = tuple(high - low for low, high in zip((0, *problem.dims), problem.dims, strict=False))
    steps = torch.tensor([-(-width // blocks.step) for width in widths], dtype=torch.int32)
    prefix_of_step = torch.arange(count, dtype=torch.int32).repeat_interleave(steps)
    ends = F.pad(steps.cumsum(0, dtype=torch.int32), (1, 0))
    device = queries.device
    return Plan(problem, queries.dtype, blocks, widths, ends.to(device), prefix_of_step.to(device), _SCRATCH)


def padded_widths(plan: Plan) -> list[int]:
    """The blocks' widths in whole steps."""
    return [-(-width // plan.blocks.step) * plan.blocks.step for width in plan.widths]


def operands_of(queries: Tensor, documents: Tensor, plan: Plan) -> tuple[Operand, Operand]:
    """Pad the blocks of both and compute their norms."""
    starts = local_rows(queries, plan.problem.layout).start, plan.problem.layout.offset
    pair = []
    for x, start in zip((queries, documents), starts, strict=True):
        inverse = None
        if plan.problem.similarity == "cosine":
            squares = [_norms(block).square_() for block in x.split(plan.widths, dim=1)]
            inverse = _inverse(torch.stack(squares).cumsum(0).sqrt_())
        pair.append(Operand(start, _padded(x, plan.widths, plan.blocks.step), inverse))
    return pair[0], pair[1]


def masks_of(queries: Tensor, documents: Tensor, plan: Plan, beside: Beside) -> Masks:
    """Prepare what excludes columns; the rules are those of :mod:`matryoshka_st.infonce.exclusions`."""
    problem = plan.problem
    masks = Masks()
    if beside.query_ids is not None and beside.document_ids is not None:
        query_keys, document_keys = match_keys(beside.query_ids, beside.document_ids)
        masks = masks._replace(keys=(query_keys.int().contiguous(), document_keys.int()))
    if problem.margin is not None:
        guides = (
            queries.detach() if beside.query_guide is None else _as_floats(beside.query_guide),
            documents.detach() if beside.document_guide is None else _as_floats(beside.document_guide),
        )
        batch, offset = problem.layout.batch, problem.layout.offset
        local = guides[QUERIES][local_rows(guides[QUERIES], problem.layout)].float()
        positives = guides[DOCUMENTS][offset : offset + batch].float()
        width = (guides[0].shape[1],)
        masks = masks._replace(
            guides=(_padded(guides[0], width, plan.blocks.step), _padded(guides[1], width, plan.blocks.step)),
            guide_inverses=(_inverse(_norms(guides[0])), _inverse(_norms(guides[1]))),
            bounds=margin_bounds(local, positives, problem.margin, Layout(batch, batch)),
        )
    return masks


def sides_of(direction: Direction, operands: tuple[Operand, Operand], plan: Plan, masks: Masks) -> tuple[Side, Side]:
    """Rows and columns of a direction's score matrix."""
    batch = plan.problem.layout.batch
    start = operands[direction.rows].start
    sides = []
    for which, rows in ((direction.rows, slice(start, start + batch)), (direction.columns, slice(None))):
        x, inverse = operands[which].x[rows], operands[which].inverse
        side = Side(x, x.stride(0))
        if inverse is not None:
            side = side._replace(inverse=inverse[:, rows], inverse_stride=inverse.stride(0))
        if masks.guides is not None and masks.guide_inverses is not None:
            guide = masks.guides[which][rows]
            side = side._replace(
                guide=guide,
                guide_stride=guide.stride(0),
                guide_inverse=masks.guide_inverses[which][rows],
                guide_steps=guide.shape[1] // plan.blocks.step,
            )
        sides.append(side)
    if masks.keys is not None:
        keys = masks.keys[QUERIES][plan.problem.layout.offset :], masks.keys[direction.columns]
        sides = [side._replace(keys=key) for side, key in zip(sides, keys, strict=True)]
    return sides[0], sides[1]


def task_of(plan: Plan, masks: Masks) -> Task:
    """What the logits are made of."""
    problem = plan.problem
    layout = problem.layout
    return Task(
        plan.ends,
        len(plan.widths),
        layout.world_batch,
        layout.offset,
        float(problem.scale),
        float(problem.hardness_strength),
        masks.bounds,
    )


def options_of(direction: Direction, plan: Plan, columns: int) -> dict[str, Any]:
    """The compile-time arguments of a kernel of score tiles with so many columns."""
    blocks = plan.blocks
    return {
        "OWN": direction.own,
        "HARDNESS": _HARDNESS[plan.problem.hardness_mode] if is_query_to_doc(direction) else 0,
        "PRECISION": plan.precision,
        "STEP": blocks.step,
        "ROWS": blocks.rows,
        "COLUMNS": columns,
        "num_warps": blocks.num_warps,
        "num_stages": blocks.num_stages,
    }


def grid_of(span: Span, plan: Plan, columns: int) -> tuple[int]:
    """One program per tile."""
    down = triton.cdiv(span.end_row - span.row, plan.blocks.rows)
    return (down * triton.cdiv(span.end_column - span.column, columns),)


def is_query_to_doc(direction: Direction) -> bool:
    """Whether its logits are those that hardness and distillation are about."""
    return direction[:2] == (QUERIES, DOCUMENTS)


def whole(count: int, unit: int) -> int:
    """The largest multiple of ``unit`` that is not above ``count``; one unit at least."""
    return max(count // unit, 1) * unit


def _padded(x: Tensor, widths: tuple[int, ...], step: int) -> Tensor:
    """``x`` with each block padded with zeros to whole steps: itself where they are whole."""
    if INTERPRETED and x.dtype == torch.bfloat16:  # the interpreter multiplies the bits of bfloat16
        x = x.float()
    if x.stride(1) == 1 and not any(width % step for width in widths):
        return x
    return torch.cat(
        [F.pad(block, (0, -width % step)) for block, width in zip(x.split(widths, 1), widths, strict=True)], 1
    )


def _norms(x: Tensor) -> Float[Tensor, " rows"]:
    norms: Tensor = torch.linalg.vector_norm(x, dim=1, dtype=torch.float32)
    return norms


def _inverse(norms: Tensor) -> Tensor:
    """1 / norm; 0 for a zero vector."""
    return torch.where(norms > _NO_NORM, 1 / norms, torch.zeros_like(norms))


def _as_floats(guide: Tensor) -> Tensor:
    return guide if guide.dtype in BLOCKS else guide.float()


def _power_of_two(count: int) -> int:
    """The smallest that is not below ``count``; 16 at least, which a matrix product needs."""
    return max(16, 1 << (count - 1).bit_length())
