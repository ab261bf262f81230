"""What is set up before the first step."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import pytest
import torch
from sentence_transformers import SentenceTransformer
from torch import nn

from matryoshka_st.errors import UserError
from matryoshka_st.training.per_source import rotation_pairs
from matryoshka_st.training.prepare import load_base_model, load_train_data, prepare, recipe_texts
from matryoshka_st.training.recipe import parse_recipe


def sizes(flags: list[str]) -> list[int]:
    train = load_train_data(parse_recipe(flags))
    return [len(rows) for rows in train.values()] if hasattr(train, "values") else [len(train)]


def test_max_train_rows_limits_each_source_alike_or_on_its_own(flags: list[str], pairs: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.jsonl"
    other.write_text(pairs.read_text())
    both = [*flags, "--train_data", str(pairs), str(other)]
    assert sizes(both) == [96, 96]
    assert sizes([*both, "--max_train_rows", "40"]) == [40, 40]
    assert sizes([*both, "--max_train_rows", "10", "500"]) == [10, 96]
    assert sizes([*flags, "--max_train_rows", "7"]) == [7]
    with pytest.raises(UserError, match="max_train_rows has 3 numbers for 2 training sets; give one for all or one"):
        sizes([*both, "--max_train_rows", "1", "2", "3"])
    with pytest.raises(UserError, match="max_train_rows is 0; give 1 or more"):
        sizes([*both, "--max_train_rows", "5", "0"])


def test_a_rotation_reads_several_sources_so_many_texts_of_each(flags: list[str], tmp_path: Path) -> None:
    other = tmp_path / "other.csv"
    other.write_text("anchor,positive\n" + "\n".join(f"a lone ask {i},its own reply {i}" for i in range(20)))
    recipe = parse_recipe([*flags, "--rotate", "train", str(other), "--rotate_texts", "30", "5"])
    texts = recipe_texts(recipe, load_train_data(recipe))
    assert len(texts) == 35
    assert sum("lone ask" in text or "own reply" in text for text in texts) == 5
    recipe = parse_recipe([*flags, "--rotate", "train", str(other), "--rotate_texts", "8"])
    assert len(recipe_texts(recipe, load_train_data(recipe))) == 16
    recipe = parse_recipe([*flags, "--rotate", "train", "--rotate_texts", "8", "9"])
    with pytest.raises(UserError, match="rotate_texts has 2 numbers for 1 sources of --rotate; give one for all"):
        recipe_texts(recipe, load_train_data(recipe))
    recipe = parse_recipe([*flags, "--rotate", "train", "--rotate_texts", "0"])
    with pytest.raises(UserError, match="rotate_texts is 0; give 1 or more"):
        recipe_texts(recipe, load_train_data(recipe))


def test_a_rotation_learns_from_pairs_of_its_sources_and_from_examples(flags: list[str], tmp_path: Path) -> None:
    rows = [("ask one", "reply one"), ("ask two", "reply two"), ("ask one", "ask two")] + [
        (f"ask {i}", f"reply {i}") for i in range(50)
    ]
    other = tmp_path / "other.csv"
    other.write_text("anchor,positive\n" + "\n".join(",".join(row) for row in rows))
    texts, (pairs, few) = rotation_pairs([str(other), str(other)], [500, 7])
    assert len(texts) == len(set(texts)) == 104
    assert sorted((texts[a], texts[p]) for a, p in pairs.tolist()) == sorted(rows)
    assert len(few) == 3
    weights = [
        prepare(parse_recipe([*flags, "--rotate", "train", "--rotate_steps", "20", *extra]))[0].model[2].linear.weight
        for extra in ([], ["--rotate_contrast", "1"], ["--rotate_like", "an example of my own", "and another"])
    ]
    for one, other in combinations(weights, 2):
        assert not torch.allclose(one, other, atol=1e-3)


def test_a_contrast_that_cannot_be_had_is_refused(flags: list[str], tmp_path: Path) -> None:
    (tmp_path / "lines.txt").write_text("one text\nanother\n")
    with pytest.raises(UserError, match=r"lines.txt holds texts, and a contrast needs pairs; name pairs"):
        rotation_pairs([str(tmp_path / "lines.txt")], [50])
    with pytest.raises(UserError, match=r"a rotation that is learned, and its steps are 0; give 600 .*rotate_steps"):
        prepare(parse_recipe([*flags, "--rotate", "train", "--rotate_contrast", "1"]))


def test_dropout_is_set_for_the_run_and_not_saved(flags: list[str], tmp_path: Path) -> None:
    prepared, _ = prepare(parse_recipe([*flags, "--dropout", "0.25"]))
    rates = {module.p for module in prepared.model.modules() if isinstance(module, nn.Dropout)}
    assert rates == {0.25}
    prepared.model.save(str(tmp_path / "saved"))
    assert SentenceTransformer(str(tmp_path / "saved"), device="cpu")[0].auto_model.config.hidden_dropout_prob == 0.1
    with pytest.raises(UserError, match=r"dropout is 1.0; give a rate of 0 or more and below 1"):
        prepare(parse_recipe([*flags, "--dropout", "1"]))


def test_a_model_stored_in_half_precision_is_trained_in_float32(
    flags: list[str], tiny_model_path: Path, tmp_path: Path
) -> None:
    SentenceTransformer(str(tiny_model_path), device="cpu").half().save_pretrained(str(tmp_path / "half"))
    model, _ = load_base_model(parse_recipe([*flags, "--model_name_or_path", str(tmp_path / "half")]))
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


@pytest.mark.parametrize("name", ["max_seq_length", "saved_max_seq_length"])
@pytest.mark.parametrize(
    ("length", "sentence"),
    [
        (65, "is 65, but the model has 64 positions; give 64 or less"),
        (0, "is 0; give 1 or more, or leave it out"),
        (-5, "is -5; give 1 or more, or leave it out"),
    ],
)
def test_a_length_that_the_model_cannot_read_is_refused(
    flags: list[str], length: int, sentence: str, name: str
) -> None:
    with pytest.raises(UserError, match=f"^{name} {sentence}"):
        prepare(parse_recipe([*flags, f"--{name}", str(length)]))


@pytest.mark.parametrize(
    ("extra", "sentence"),
    [
        (["--lora_r", "0"], "lora_r is 0; give a rank of 1 or more, 16 is usual"),
        (["--lora_dropout", "1"], r"lora_dropout is 1\.0; give a rate of 0 or more and below 1"),
        (["--lora_dropout", "-0.1"], r"lora_dropout is -0\.1; give a rate of 0 or more and below 1"),
    ],
    ids=str,
)
def test_adapters_that_cannot_be_are_refused(flags: list[str], extra: list[str], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        prepare(parse_recipe([*flags, "--lora", *extra]))


def test_an_output_folder_inside_a_file_is_refused(flags: list[str], pairs: Path) -> None:
    with pytest.raises(UserError, match=r"pairs\.jsonl/run/model cannot be written, as .*pairs\.jsonl is a file"):
        prepare(parse_recipe([*flags, "--output_dir", str(pairs / "run")]))
