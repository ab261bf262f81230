"""The card: one section on dims however often it is saved, valid front matter, and no training rows unless asked."""

from __future__ import annotations

from pathlib import Path

import pytest
from datasets import Dataset
from huggingface_hub import metadata_load
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

from matryoshka_st.card import SECTION_START, dims_section, drop_training_rows, read_section
from matryoshka_st.export import save_model
from matryoshka_st.rotation import rotate_model

MARKER = "xyzzy-secret-row"


@pytest.fixture
def trained(tiny_model: SentenceTransformer, tmp_path: Path) -> SentenceTransformer:
    """The tiny model after two real training steps on rows that all contain the marker."""
    rows = {
        "anchor": [f"{MARKER} question {number}" for number in range(8)],
        "positive": [f"{MARKER} answer {number}" for number in range(8)],
    }
    arguments = SentenceTransformerTrainingArguments(
        output_dir=str(tmp_path / "trainer"),
        max_steps=2,
        per_device_train_batch_size=4,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
    )
    trainer = SentenceTransformerTrainer(
        model=tiny_model,
        args=arguments,
        train_dataset=Dataset.from_dict(rows),
        eval_dataset=Dataset.from_dict(rows),
        loss=MultipleNegativesRankingLoss(tiny_model),
    )
    trainer.train()
    return tiny_model


def card_of(folder: Path) -> str:
    return (folder / "README.md").read_text(encoding="utf-8")


def test_card_of_a_trained_model_holds_no_training_rows(trained: SentenceTransformer, tmp_path: Path) -> None:
    folder = save_model(trained, tmp_path / "out", dims=[8])
    holders = [path for path in folder.rglob("*") if path.is_file() and MARKER.encode() in path.read_bytes()]
    assert not holders
    card = card_of(folder)
    assert "MultipleNegativesRankingLoss" in card
    assert "Training Hyperparameters" in card
    assert "The weather is lovely today." in card
    assert "widget" not in metadata_load(folder / "README.md")


def test_card_shows_training_rows_when_asked(trained: SentenceTransformer, tmp_path: Path) -> None:
    folder = save_model(trained, tmp_path / "out", dims=[8], card_samples=True)
    assert MARKER in card_of(folder)
    assert metadata_load(folder / "README.md")["widget"]


def test_saving_a_reloaded_model_again_drops_the_rows_of_its_old_card(
    trained: SentenceTransformer, tmp_path: Path
) -> None:
    trained.model_card_data.license = "mit"
    folder = save_model(trained, tmp_path / "out", dims=[8], card_samples=True)
    save_model(SentenceTransformer(str(folder), device="cpu"), folder, dims=[8])
    assert MARKER not in card_of(folder)
    assert metadata_load(folder / "README.md")["license"] == "mit"


def test_checkpoints_hold_no_rows_once_they_are_dropped(trained: SentenceTransformer, tmp_path: Path) -> None:
    drop_training_rows(trained)
    trained.save_pretrained(str(tmp_path / "checkpoint"))
    assert MARKER not in card_of(tmp_path / "checkpoint")


def test_section_lists_each_dim_with_score_share_and_bytes(tiny_model: SentenceTransformer, tmp_path: Path) -> None:
    scores = {8: 40.0, 16: 45.0, 24: 46.0, 32: 50.0}
    folder = save_model(tiny_model, tmp_path / "out", dims=[8, 16], scores=scores, metric="nDCG@10 x100")
    section = read_section(card_of(folder))
    assert section is not None
    assert "| Dimensions | nDCG@10 x100 | % of full width | Bytes per vector (float32) |" in section
    assert "| 8 | 40.00 | 80.0 | 32 |\n| 16 | 45.00 | 90.0 | 64 |\n| 32 | 50.00 | 100.0 | 128 |\n" in section
    assert 'SentenceTransformer("out", truncate_dim=8)' in section
    assert "normalize_embeddings=True" in section


def test_section_without_scores_has_no_score_columns() -> None:
    section = dims_section([64, 128, 384], name="me/model")
    assert "| Dimensions | Bytes per vector (float32) |" in section
    assert "| 384 | 1536 |" in section
    assert 'SentenceTransformer("me/model", truncate_dim=64)' in section


def test_missing_scores_show_as_a_dash() -> None:
    section = dims_section([8, 16], name="m", scores={8: 0.5})
    assert "| Dimensions | Score | % of full width |" in section
    assert "| 8 | 0.50 | - | 32 |\n| 16 | - | - | 64 |" in section


def test_snippet_of_the_section_runs(
    tiny_model: SentenceTransformer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    section = read_section(card_of(save_model(tiny_model, tmp_path / "out", dims=[8])))
    assert section is not None
    monkeypatch.chdir(tmp_path)
    scope: dict[str, object] = {}
    exec(section.split("```python\n")[1].split("```")[0], scope)  # noqa: S102
    assert scope["embeddings"].shape == (1, 8)


def test_saving_twice_gives_one_section_with_the_new_dims(tiny_model: SentenceTransformer, tmp_path: Path) -> None:
    folder = save_model(tiny_model, tmp_path / "out", dims=[8])
    save_model(SentenceTransformer(str(folder), device="cpu"), folder, dims=[4])
    card = card_of(folder)
    assert card.count(SECTION_START) == card.count("## Matryoshka Dimensions") == 1
    assert "The first 4 or 32 values" in card
    assert card.index(SECTION_START) < card.index("## Usage")
    assert metadata_load(folder / "README.md")["tags"].count("matryoshka") == 1


OWN_CARD = """---
language: en
license: apache-2.0
tags:
- sentence-transformers
widget:
- source_sentence: my own example
---
# My model

Written by hand.
"""


@pytest.fixture
def own_card(tiny_model: SentenceTransformer, tmp_path: Path) -> SentenceTransformer:
    """The tiny model, loaded from a folder with a hand-written card."""
    tiny_model.save_pretrained(str(tmp_path / "own"))
    (tmp_path / "own" / "README.md").write_text(OWN_CARD, encoding="utf-8")
    return SentenceTransformer(str(tmp_path / "own"), device="cpu")


def test_hand_written_card_of_an_unchanged_model_is_kept(own_card: SentenceTransformer, tmp_path: Path) -> None:
    folder = save_model(own_card, tmp_path / "out", dims=[8])
    assert "# My model\n\nWritten by hand.\n\n<!-- matryoshka-dims: start -->" in card_of(folder)
    metadata = metadata_load(folder / "README.md")
    assert metadata["license"] == "apache-2.0"
    assert metadata["tags"] == ["sentence-transformers", "matryoshka"]
    assert metadata["widget"] == [{"source_sentence": "my own example"}]


def test_rotated_model_gets_a_new_card_with_the_old_license_and_language(
    own_card: SentenceTransformer, tmp_path: Path
) -> None:
    folder = save_model(rotate_model(own_card, [f"text {n}" for n in range(40)]), tmp_path / "out", dims=[8])
    assert "Written by hand." not in card_of(folder)
    assert "(2): Dense(" in card_of(folder)
    metadata = metadata_load(folder / "README.md")
    assert metadata["license"] == "apache-2.0"
    assert metadata["language"] == ["en"]


def test_unreadable_front_matter_does_not_block_saving(own_card: SentenceTransformer, tmp_path: Path) -> None:
    (tmp_path / "own" / "README.md").write_text("---\ntags: [a\n---\n# Broken\n", encoding="utf-8")
    folder = save_model(SentenceTransformer(str(tmp_path / "own"), device="cpu"), tmp_path / "out", dims=[8])
    assert "matryoshka" in metadata_load(folder / "README.md")["tags"]
