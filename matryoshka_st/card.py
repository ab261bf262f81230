"""The model card: a section on the valid dims, and no training rows unless asked.

sentence-transformers generates the card and says nothing about dims; it also copies rows of the training data into it
(three samples per dataset, the shortest texts as widget, and the usage snippet).
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from huggingface_hub import ModelCard, metadata_load, metadata_save
from yaml import YAMLError

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

logger = logging.getLogger(__name__)

TAG = "matryoshka"
SECTION_START = "<!-- matryoshka-dims: start -->"
SECTION_END = "<!-- matryoshka-dims: end -->"

_GENERATED_TAG = "generated_from_trainer"
_SECTION = re.compile(re.escape(SECTION_START) + r".*?" + re.escape(SECTION_END), re.DOTALL)
_USAGE_HEADING = re.compile(r"^## Usage\b", re.MULTILINE)
_BYTES_PER_FLOAT32 = 4
_ROUTES = """

For retrieval, embed queries with `encode_query` and documents with `encode_document`: both order the dimensions for
that, and `encode` orders them for all other uses. Never compare what `encode` gave with what the other two gave."""


def prepare_card(model: SentenceTransformer) -> None:
    """Set up the card data: the tag, the license and language of the card the model came with, and no hub look-ups."""
    data = model.model_card_data
    data.add_tags(TAG)
    data.local_files_only = True
    loaded = _loaded_card(model)
    if loaded is None:
        return
    if data.license is None:
        data.license = loaded.data.get("license")
    if not data.language and (language := loaded.data.get("language")):
        data.set_language(language)


def renew_card(model: SentenceTransformer) -> None:
    """Have the card written anew on saving, for a model that it no longer describes; license and language stay."""
    prepare_card(model)
    model._model_card_text = None


def drop_training_rows(model: SentenceTransformer) -> None:
    """Remove every row of training or evaluation data from the model's card data, for good.

    The card that the model came with is written anew if it shows rows of an earlier training. To keep rows out of the
    checkpoints of a training as well, call this once the trainer is built.
    """
    data = model.model_card_data
    data.widget = []
    data.usage_examples = data.usage_examples_display = data.similarities = None
    data.label_example_list = []
    for dataset in (*data.train_datasets, *data.eval_datasets):
        for key in ("examples", "examples_table", "_example_columns"):
            dataset.pop(key, None)
    if _shows_rows(_loaded_card(model)):
        renew_card(model)


def write_dims_section(
    folder: Path,
    dims: Sequence[int],
    *,
    name: str,
    scores: Mapping[int, float] | None = None,
    metric: str | None = None,
    routes: bool = False,
) -> None:
    """Put the section on dims into the folder's ``README.md``, in place of an earlier one, and tag the card.

    Args:
        folder: A saved model.
        dims: The declared dims, ascending; the last is the full width.
        name: The path or hub id that the snippet loads.
        scores: The score at each dim.
        metric: What the scores measure.
        routes: Queries and documents are embedded otherwise than other texts.
    """
    path = folder / "README.md"
    card = path.read_text(encoding="utf-8") if path.exists() else ""
    section = dims_section(dims, name=name, scores=scores, metric=metric, routes=routes)
    path.write_text(_with_section(card, section), encoding="utf-8")
    metadata = metadata_load(path) or {}
    tags = metadata.get("tags") or []
    if TAG not in tags:
        metadata_save(path, {**metadata, "tags": [*tags, TAG]})


def dims_section(
    dims: Sequence[int],
    *,
    name: str,
    scores: Mapping[int, float] | None = None,
    metric: str | None = None,
    routes: bool = False,
) -> str:
    """The section on dims, as Markdown between two markers.

    >>> print(dims_section([32, 64], name="my-model", scores={32: 45.0, 64: 50.0}, metric="nDCG@10"))
    <!-- matryoshka-dims: start -->
    ## Matryoshka Dimensions
    <BLANKLINE>
    The first 32 or 64 values of an embedding are themselves an embedding.
    <BLANKLINE>
    | Dimensions | nDCG@10 | % of full width | Bytes per vector (float32) |
    |---:|---:|---:|---:|
    | 32 | 45.00 | 90.0 | 128 |
    | 64 | 50.00 | 100.0 | 256 |
    <BLANKLINE>
    ```python
    from sentence_transformers import SentenceTransformer
    <BLANKLINE>
    model = SentenceTransformer("my-model", truncate_dim=32)
    embeddings = model.encode(["A sentence to embed."], normalize_embeddings=True)
    ```
    <BLANKLINE>
    Pass `normalize_embeddings=True`: vectors are cut after the model normalizes them, so a cut one is shorter than 1,
    which dot products notice and cosine similarity does not.
    <!-- matryoshka-dims: end -->
    """
    *shorter, full = dims
    choices = f"{', '.join(map(str, shorter))} or {full}" if shorter else f"{full}"
    return f"""{SECTION_START}
## Matryoshka Dimensions

The first {choices} values of an embedding are themselves an embedding.

{_table(dims, scores, metric)}

```python
from sentence_transformers import SentenceTransformer

model = SentenceTransformer("{name}", truncate_dim={_example_dim(dims)})
embeddings = model.encode(["A sentence to embed."], normalize_embeddings=True)
```

Pass `normalize_embeddings=True`: vectors are cut after the model normalizes them, so a cut one is shorter than 1,
which dot products notice and cosine similarity does not.{_ROUTES if routes else ""}
{SECTION_END}"""


def read_section(card: str) -> str | None:
    """The section on dims of a card, if it has one."""
    match = _SECTION.search(card)
    return match.group() if match else None


def _table(dims: Sequence[int], scores: Mapping[int, float] | None, metric: str | None) -> str:
    if not scores:
        rows = [f"| {dim} | {dim * _BYTES_PER_FLOAT32} |" for dim in dims]
        return "\n".join(["| Dimensions | Bytes per vector (float32) |", "|---:|---:|", *rows])
    full = scores.get(dims[-1])
    rows = [
        f"| {dim} | {_score(scores.get(dim))} | {_percent(scores.get(dim), full)} | {dim * _BYTES_PER_FLOAT32} |"
        for dim in dims
    ]
    header = f"| Dimensions | {metric or 'Score'} | % of full width | Bytes per vector (float32) |"
    return "\n".join([header, "|---:|---:|---:|---:|", *rows])


def _score(score: float | None) -> str:
    return "-" if score is None else f"{score:.2f}"


def _percent(score: float | None, full: float | None) -> str:
    return "-" if score is None or not full else f"{100 * score / full:.1f}"


def _example_dim(dims: Sequence[int]) -> int:
    return 64 if 64 in dims[:-1] else dims[0]


def _with_section(card: str, section: str) -> str:
    if read_section(card) is not None:
        return _SECTION.sub(lambda _: section, card, count=1)
    usage = _USAGE_HEADING.search(card)
    if usage is None:
        return f"{card.rstrip()}\n\n{section}\n"
    return f"{card[: usage.start()]}{section}\n\n{card[usage.start() :]}"


def _loaded_card(model: SentenceTransformer) -> ModelCard | None:
    text = model._model_card_text
    if not text:
        return None
    try:
        return ModelCard(text, ignore_metadata_errors=True)
    except (ValueError, YAMLError) as error:
        logger.warning("The card that the model came with has unreadable front matter and is written anew: %s", error)
        model._model_card_text = None
        return None


def _shows_rows(card: ModelCard | None) -> bool:
    if card is None or _GENERATED_TAG not in (card.data.get("tags") or []):
        return False
    return "* Samples:" in card.text or bool(card.data.get("widget"))
