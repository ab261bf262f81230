"""The learned rotation: orthogonal, repeatable, keeps more neighbours of the full width than singular vectors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from sentence_transformers import SentenceTransformer
from torch import Tensor

from matryoshka_st.basis import fit_rotation, learn_rotation
from matryoshka_st.errors import UserError
from matryoshka_st.nesting import truncate_normalize
from matryoshka_st.rotation import rotate
from matryoshka_st.training.prepare import prepare
from matryoshka_st.training.recipe import parse_recipe


def clustered(count: int, width: int, seed: int = 0) -> Tensor:
    """Six groups far apart, which take most of the variance; what is near within a group lies in other directions."""
    generator = torch.Generator().manual_seed(seed)
    groups, directions = (torch.linalg.qr(torch.randn(width, n, generator=generator))[0].T for n in (6, 4))
    fine = torch.randn(count, 4, generator=generator) @ directions
    return 4 * groups[torch.arange(count) % 6] + fine + 0.05 * torch.randn(count, width, generator=generator)


def nearest(x: Tensor) -> Tensor:
    unit = F.normalize(x, dim=1)
    return (unit @ unit.T).fill_diagonal_(-1).argmax(dim=1)


def test_prefixes_have_more_of_the_full_width_s_neighbours_than_singular_vectors_give() -> None:
    fitted_on, unseen = clustered(600, 32).split(400)
    shares = {}
    for steps in (0, 200):
        rotated = unseen @ learn_rotation(fitted_on, [32, 8, 4], steps=steps, batch_size=128)
        same = [(nearest(rotated[:, :dim]) == nearest(unseen)).float().mean().item() for dim in (8, 4)]
        shares[steps] = sum(same) / len(same)
    assert shares[200] > shares[0] + 0.05


def test_pairs_bring_what_they_share_into_the_prefixes() -> None:
    generator = torch.Generator().manual_seed(0)
    shared, own = (torch.linalg.qr(torch.randn(32, n, generator=generator))[0].T for n in (4, 8))
    code = torch.randn(400, 4, generator=generator) @ shared
    sides = [code + torch.randn(400, 8, generator=generator) @ own for _ in range(2)]
    pairs = torch.stack([torch.arange(300), torch.arange(300, 600)], dim=1)
    found = {}
    for name, given in {"texts": [], "pairs": [pairs[:200], pairs[200:]]}.items():
        rotation = learn_rotation(torch.cat([s[:300] for s in sides]), [4], pairs=given, steps=200, batch_size=128)
        assert torch.allclose(rotation.T @ rotation, torch.eye(32), atol=1e-5)
        anchors, positives = (truncate_normalize(s[300:] @ rotation, 4) for s in sides)
        found[name] = ((anchors @ positives.T).argmax(dim=1) == torch.arange(100)).float().mean().item()
    assert found["pairs"] > found["texts"] + 0.2


def test_examples_bring_the_neighbours_of_their_kind_into_the_prefixes() -> None:
    generator = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(32, 32, generator=generator))[0]
    kinds, fine = basis[:2], basis[2:].split(6)[:2]
    usual, rare = (
        3 * kinds[kind] + torch.randn(count, 6, generator=generator) @ fine[kind]
        for kind, count in enumerate((2000, 200))
    )
    texts = torch.cat([usual, rare[:100]])
    kept = {}
    for name, like in {"none": [], "rare": [2000, 2001, 2002, 2003]}.items():
        rotation = learn_rotation(texts, [8], like=like, like_share=0.5, steps=150, batch_size=128)
        kept[name] = (nearest((rare[100:] @ rotation)[:, :8]) == nearest(rare[100:])).float().mean().item()
    assert kept["rare"] > kept["none"] + 0.3


def test_it_stays_orthogonal_is_repeatable_and_leaves_the_random_state_alone() -> None:
    embeddings = clustered(100, 32)
    state = torch.get_rng_state()
    rotation = learn_rotation(embeddings, [32, 4], steps=30, batch_size=32)
    assert torch.equal(state, torch.get_rng_state())
    assert not rotation.requires_grad
    assert torch.allclose(rotation.T @ rotation, torch.eye(32), atol=1e-5)
    assert torch.equal(rotation, learn_rotation(embeddings.clone(), [4, 32], steps=30, batch_size=32))
    assert not torch.equal(rotation, learn_rotation(embeddings, [32, 4], steps=30, batch_size=32, seed=14))
    with torch.no_grad():
        assert torch.equal(rotation, learn_rotation(embeddings, [32, 4], steps=30, batch_size=32))


def test_what_all_texts_share_stays_out_of_the_prefixes() -> None:
    embeddings = clustered(400, 32) + 3.0
    common = F.normalize(F.normalize(embeddings, dim=1).mean(dim=0), dim=0)
    lengths = {
        steps: (common @ learn_rotation(embeddings, [32, 8], steps=steps, batch_size=128))[:8].norm().item()
        for steps in (0, 100)
    }
    assert lengths[0] > 0.99
    assert lengths[100] < 1e-4


def test_without_steps_or_a_prefix_it_is_the_singular_vectors() -> None:
    embeddings = clustered(100, 16)
    assert torch.equal(learn_rotation(embeddings, [16, 4], steps=0), fit_rotation(embeddings))
    assert torch.equal(learn_rotation(embeddings, [16], steps=10), fit_rotation(embeddings))


@pytest.mark.parametrize(
    ("dims", "steps", "sentence"),
    [
        ([8], -1, r"The rotation's steps are -1; give 0 \(singular vectors alone\) or more"),
        ([64], 5, "matryoshka_dims holds 64, above the model's width of 16"),
    ],
)
def test_bad_input_is_refused(dims: list[int], steps: int, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        learn_rotation(clustered(40, 16), dims, steps=steps)


@pytest.mark.parametrize("told", [{"pairs": [torch.tensor([[0, 1]])]}, {"like": [3]}], ids=["pairs", "like"])
def test_pairs_or_examples_without_steps_are_refused(told: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"are for a rotation that is learned, and its steps are 0"):
        learn_rotation(clustered(40, 16), [8], steps=0, **told)


def test_a_negative_contrast_is_refused() -> None:
    with pytest.raises(UserError, match=r"The contrast of the rotation's pairs is -1\.0; give 0"):
        learn_rotation(clustered(40, 16), [8], pairs=[torch.tensor([[0, 1]])], contrast=-1.0)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_a_share_of_texts_near_the_examples_that_is_none_is_refused(share: float) -> None:
    with pytest.raises(UserError, match=f"like_share is {share}; give a share of each batch above 0 and below 1"):
        learn_rotation(clustered(40, 16), [8], like=[0], like_share=share)


def test_an_embedding_that_is_not_finite_is_named() -> None:
    embeddings = clustered(40, 16)
    embeddings[7, 3] = float("nan")
    with pytest.raises(UserError, match="Embedding 7 of 40 is not finite"):
        learn_rotation(embeddings, [8], steps=5)


def test_rotate_and_recipes_build_it_in(tiny_model_path: Path, tmp_path: Path) -> None:
    texts = [f"text {number} on topic {number * 7919 % 1013}" for number in range(64)]
    model = SentenceTransformer(str(tiny_model_path), device="cpu")
    folder = rotate(str(tiny_model_path), texts, tmp_path / "rotated", dims=[32, 8], steps=20)
    before = model.encode(texts, convert_to_tensor=True)
    after = SentenceTransformer(str(folder), device="cpu").encode(texts, convert_to_tensor=True)
    assert torch.allclose(after, before @ learn_rotation(before, [32, 8], steps=20), atol=1e-5)
    pairs = tmp_path / "pairs.csv"
    pairs.write_text("anchor,positive\n" + "\n".join(f"{a},{b}" for a, b in zip(texts[::2], texts[1::2], strict=True)))
    flags = ["--model_name_or_path", str(tiny_model_path), "--train_data", str(pairs), "--rotate", "train"]
    flags += [
        "--matryoshka_dims",
        "32",
        "8",
        "--per_device_train_batch_size",
        "4",
        "--eval_size",
        "2",
        "--use_cpu",
        "1",
    ]
    weights = [
        prepare(parse_recipe([*flags, "--output_dir", str(tmp_path / "out"), "--rotate_steps", steps]))[0].model[2]
        for steps in ("0", "20")
    ]
    assert not torch.equal(weights[0].linear.weight, weights[1].linear.weight)
