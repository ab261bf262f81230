"""The basis in which the leading coordinates carry most: an orthogonal matrix, fitted on embeddings without labels.

- :func:`fit_rotation`: the right singular vectors of unit-length embeddings, uncentred, largest singular value first.
  By Eckart and Young (1936) no other basis keeps more of the pairwise dot products in its first ``d`` coordinates.
- :func:`learn_rotation`: most of those products are between texts that have nothing to do with each other, but what
  retrieval and classification ask of a prefix is who is near. From the singular vectors on, the orthogonal matrix
  minimises, summed over the dims, the divergence of each text's softmax over the other texts of a batch at the prefix
  from that at the full width (distillation, arXiv 1503.02531, of similarities, arXiv 1907.09682). What all texts have
  in common tells none apart and would take length from every prefix: their mean direction is left out of both sides
  and becomes the last coordinate (as the mean is taken out in "all but the top", arXiv 1702.01417).
  Pairs of texts that belong together, where there are any, add their own InfoNCE (arXiv 1807.03748) at each prefix:
  what a question shares with its answer then comes before what it shares with other questions.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.utils.parametrizations import orthogonal

from matryoshka_st.errors import UserError
from matryoshka_st.infonce import nested_infonce
from matryoshka_st.neighbours import neighbour_divergence, without_mean
from matryoshka_st.nesting import MatryoshkaDims

logger = logging.getLogger(__name__)

_ROWS_PER_CHUNK = 8192
_WARMUP = 20
_NEAR_SHARE = 0.01
_NEAR_LEAST = 32


def fit_rotation(embeddings: Float[Tensor, "n width"]) -> Float[Tensor, "width width"]:
    """The orthogonal matrix ``R`` that sorts the space by singular value: ``embeddings @ R`` are the rotated vectors.

    Computed in float64 from the width x width Gram matrix of the embeddings scaled to unit length. The largest entry
    of each column is positive, so the same embeddings always give the same signs.

    Args:
        embeddings: One row per text; their lengths do not matter. Fewer rows than columns still give a full basis, but
            the order of its last columns is then arbitrary.

    Returns:
        A float32 rotation on the device of the embeddings.

    Raises:
        UserError: If there are no embeddings, or one of them is not finite.

    >>> fit_rotation(torch.tensor([[0.0, 2.0], [0.0, 3.0], [1.0, 0.0]]))
    tensor([[0., 1.],
            [1., 0.]])
    """
    count, width = embeddings.shape
    if count == 0:
        raise UserError("There are no embeddings to fit a rotation on; give at least as many texts as the width.")
    _require_finite(embeddings)
    if count < width:
        logger.warning(
            "Fitting a rotation of width %d on %d texts leaves its last coordinates in arbitrary order; "
            "give at least %d texts, better ten times as many.",
            width,
            count,
            width,
        )
    gram = torch.zeros(width, width, dtype=torch.float64, device=embeddings.device)
    for chunk in embeddings.split(_ROWS_PER_CHUNK):
        unit = F.normalize(chunk.double(), dim=-1)
        gram += unit.T @ unit
    basis = torch.linalg.eigh(gram).eigenvectors.flip(-1)
    largest = basis.gather(0, basis.abs().argmax(dim=0, keepdim=True))
    rotation: Tensor = basis * largest.sign()
    return rotation.float()


def learn_rotation(
    embeddings: Float[Tensor, "n width"],
    dims: Sequence[int],
    *,
    pairs: Sequence[Int[Tensor, "_ 2"]] = (),
    contrast: float = 1.0,
    like: Sequence[int] = (),
    like_share: float = 0.4,
    steps: int = 600,
    batch_size: int = 1024,
    learning_rate: float = 1e-2,
    scale: float = 20.0,
    seed: int = 13,
) -> Float[Tensor, "width width"]:
    """The orthogonal matrix ``R``: ``embeddings @ R`` are the rotated vectors.

    Args:
        embeddings: One row per text; their lengths do not matter.
        dims: Prefixes to be served; the full width is served by any rotation.
        pairs: Row numbers of texts that belong together, anchor and positive, one tensor for each set. Each step takes
            pairs of one set, drawn in proportion to the root of the sets' sizes.
        contrast: Weight of the pairs' InfoNCE beside the divergence of the neighbours, both summed over the dims.
        like: Row numbers of examples of what will be embedded. A hundredth of the texts, nearest to each, is drawn
            more often: a few dims hold what the texts at hand need, so they should be of that kind.
        like_share: Share of them in each batch.
        steps: Of Adam, with warm-up and cosine decay, from the singular vectors. 0 returns these.
        batch_size: Texts that are each other's candidates; half as many pairs are.
        learning_rate: Peak.
        scale: 1 / temperature of the softmaxes.
        seed: Of the batches.

    Returns:
        A float32 rotation on the device of the embeddings.

    Raises:
        UserError: If dims or embeddings will not do, or ``steps`` or ``contrast`` is negative,
            ``like_share`` is not in (0, 1), or there are pairs or examples and no steps.
    """
    if not 0 < like_share < 1:
        raise UserError(f"like_share is {like_share}; give a share of each batch above 0 and below 1, 0.4 is usual.")
    check_learning(steps, contrast, told=bool(pairs or like))
    count, width = embeddings.shape
    cut = [dim for dim in MatryoshkaDims.of(dims, width=width).dims if dim < width]
    if steps == 0 or not cut or count < 3:
        return fit_rotation(embeddings)
    _require_finite(embeddings)
    unit = without_mean(embeddings)
    start = fit_rotation(unit)
    learned, last = unit @ start[:, :-1], start[:, -1:]
    with torch.enable_grad(), torch.random.fork_rng(devices=[]):
        turn = _orthogonal(width - 1, unit.device)
        optimizer = torch.optim.Adam(turn.parameters(), lr=learning_rate)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, steps))
        draw = torch.Generator().manual_seed(seed)
        near = _near(embeddings, like)
        for _ in range(steps):
            rows = _some_texts(count, near, like_share, batch_size, draw).to(unit.device)
            loss = neighbour_divergence(unit[rows], turn(learned[rows]), cut, scale=scale)
            if pairs:
                anchors, positives = turn(learned[_some_pairs(pairs, batch_size // 2, draw).to(unit.device)]).unbind(1)
                loss = loss + contrast * nested_infonce(anchors, positives, matryoshka_dims=cut, scale=scale).sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return torch.cat([start[:, :-1] @ turn.weight.detach().T, last], dim=1)


def check_learning(steps: int, contrast: float, *, told: bool) -> None:
    """Refuse what no rotation can be learned by; ``told``: pairs or examples are to be learned from.

    Raises:
        UserError: If steps or contrast are negative, or there are no steps to learn in.
    """
    if contrast < 0:
        raise UserError(f"The contrast of the rotation's pairs is {contrast}; give 0 (none) or more, 1 is usual.")
    if steps < 0:
        raise UserError(f"The rotation's steps are {steps}; give 0 (singular vectors alone) or more, 600 is usual.")
    if told and not steps:
        raise UserError(
            "Pairs (contrast) and examples (like) are for a rotation that is learned, and its steps are 0; give 600 "
            "(--steps, in a recipe rotate_steps)."
        )


def _require_finite(embeddings: Float[Tensor, "n width"]) -> None:
    finite = embeddings.isfinite().all(dim=-1)
    if not finite.all():
        row = int((~finite).nonzero()[0])
        raise UserError(
            f"Embedding {row} of {len(embeddings)} is not finite, so no rotation fits; repair the model or drop it."
        )


def _near(embeddings: Float[Tensor, "n width"], examples: Sequence[int]) -> Int[Tensor, " near"]:
    """Rows nearest to any of the examples, which are among them."""
    if not examples:
        return torch.empty(0, dtype=torch.long)
    unit = F.normalize(embeddings.float(), dim=-1)
    scores = unit @ unit[list(examples)].T
    each = min(len(unit), max(_NEAR_LEAST, round(_NEAR_SHARE * len(unit))))
    near: Tensor = scores.topk(each, dim=0).indices.unique()
    return near.cpu()


def _some_texts(
    count: int, near: Int[Tensor, " near"], share: float, batch_size: int, draw: torch.Generator
) -> Int[Tensor, " drawn"]:
    """Distinct rows, in no order; the share of them from ``near`` where there is one."""
    of_near = near[torch.randperm(len(near), generator=draw)[: round(share * batch_size)]]
    rest = torch.randperm(count, generator=draw)[: batch_size - len(of_near)]
    return torch.cat([of_near, rest]).unique() if len(near) else rest


def _some_pairs(pairs: Sequence[Int[Tensor, "_ 2"]], count: int, draw: torch.Generator) -> Int[Tensor, "drawn 2"]:
    """Pairs of one set, at most ``count``, that have no text in common: it would be a wrong negative."""
    sizes = torch.tensor([float(len(rows)) for rows in pairs])
    chosen = pairs[int(torch.multinomial(sizes.sqrt(), 1, generator=draw))]
    drawn = chosen[torch.randperm(len(chosen), generator=draw)[:count]]
    numbers = torch.arange(len(drawn)).repeat_interleave(2)
    last = torch.zeros(int(drawn.max()) + 1, dtype=torch.long).scatter_reduce(0, drawn.flatten(), numbers, "amax")
    return drawn[(last[drawn] == torch.arange(len(drawn))[:, None]).all(dim=1)]


def _orthogonal(width: int, device: torch.device) -> nn.Linear:
    turn = nn.Linear(width, width, bias=False, device=device)
    nn.init.eye_(turn.weight)
    orthogonal(turn, orthogonal_map="cayley")
    return turn


def _rate(step: int, steps: int) -> float:
    return min(1.0, (step + 1) / _WARMUP) * 0.5 * (1 + math.cos(math.pi * step / steps))
