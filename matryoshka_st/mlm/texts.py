"""Texts to train on and to hold out: read from files, the hub or docstrings, and cut into tokens."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, Features, Value, concatenate_datasets

from matryoshka_st.data import normalize_text
from matryoshka_st.data.files import read_lines
from matryoshka_st.data.rows import Rows, keep_text_rows
from matryoshka_st.data.sources import DOCSTRINGS, read_source
from matryoshka_st.errors import UserError, did_you_mean
from matryoshka_st.mlm.arguments import MlmDataArguments

HELD_OUT_SHARE = 10
TEXT = Features({"text": Value("string")})


def load_texts(data: MlmDataArguments, seed: int) -> tuple[Dataset, Dataset]:
    """The texts to train on and those to score, in the column ``text``; no text is in both.

    Args:
        data: What the recipe says.
        seed: Draws the texts that are used or held out, where there are more.

    Raises:
        UserError: If a source cannot be read, its columns are not understood, or there are too few texts.
    """
    train = concatenate_datasets([_read(source, data.train_split, data) for source in data.train_data])
    source = data.eval_data or (DOCSTRINGS if data.train_data == [DOCSTRINGS] else None)
    if source is None:
        held_out = _sample(train, min(data.eval_size, len(train) // HELD_OUT_SHARE), seed)
        if not len(held_out):
            raise UserError(
                f"{len(train)} training texts are too few to hold any out; give {HELD_OUT_SHARE} or more, or name "
                "--eval_data."
            )
    else:
        held_out = _sample(_read(source, data.eval_split, data), data.eval_size, seed)
    train = _without(train, held_out["text"])
    return train if data.max_train_texts is None else _sample(train, data.max_train_texts, seed), held_out


def tokenize(texts: Dataset, tokenizer: Any, max_seq_length: int) -> Dataset:
    """Examples of at most ``max_seq_length`` tokens; a longer text becomes several, and none is lost."""

    def examples(batch: dict[str, list[str]]) -> dict[str, Any]:
        encoded = tokenizer(
            batch["text"],
            truncation=True,
            max_length=max_seq_length,
            return_overflowing_tokens=True,
            return_special_tokens_mask=True,
        )
        return {name: encoded[name] for name in ("input_ids", "special_tokens_mask")}

    return texts.map(examples, batched=True, remove_columns=texts.column_names, desc="Tokenizing")


def _read(source: str, split: str, data: MlmDataArguments) -> Dataset:
    path = Path(source).expanduser()
    rows = read_lines(path) if path.suffix == ".txt" else read_source(source, split)
    names = _text_columns(rows, data.text_columns)
    dataset = keep_text_rows(rows.select_columns({name: name for name in names}), data.bad_rows)
    if len(names) > 1:
        dataset = dataset.map(_joined, batched=True, remove_columns=names, desc="Joining columns")
    elif names != ["text"]:
        dataset = dataset.rename_column(names[0], "text")
    # parquet may hold large strings, which do not concatenate with others
    return dataset if dataset.features == TEXT else dataset.cast(TEXT)


def _joined(batch: dict[str, list[str]]) -> dict[str, list[str]]:
    return {"text": [" ".join(cells) for cells in zip(*batch.values(), strict=True)]}


def _text_columns(rows: Rows, wanted: Sequence[str] | None) -> list[str]:
    columns = rows.columns
    found = f"{rows.source} has the columns {', '.join(map(repr, columns))}"
    if wanted is None:
        if rows.source == DOCSTRINGS:
            return columns
        if "text" not in columns and len(columns) > 1:
            raise UserError(f"{found}; name those that hold text, for example --text_columns {columns[0]}.")
        return ["text"] if "text" in columns else columns
    for name in wanted:
        if name not in columns:
            raise UserError(f"text_columns names {name!r}, but {found}{did_you_mean(name, columns)}.")
    return list(dict.fromkeys(wanted))


def _sample(texts: Dataset, count: int, seed: int) -> Dataset:
    if count >= len(texts):
        return texts
    return texts.select(np.sort(np.random.default_rng(seed).permutation(len(texts))[:count]))


def _without(train: Dataset, texts: Sequence[str]) -> Dataset:
    held_out = {normalize_text(text) for text in texts}
    kept = [i for i, text in enumerate(train["text"]) if normalize_text(text) not in held_out]
    if not kept:
        raise UserError("Every training text is also a text of the evaluation data; give other --eval_data.")
    return train if len(kept) == len(train) else train.select(kept)
