"""``matryoshka-st search``: index texts, then query them, with the dims that did the work shown."""

from __future__ import annotations

import logging
import shutil
import sys
import textwrap
from argparse import RawDescriptionHelpFormatter
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console

from matryoshka_st.errors import UserError, did_you_mean
from matryoshka_st.flags import Flags
from matryoshka_st.models import BUNDLED
from matryoshka_st.retrieval.costs import count_operations
from matryoshka_st.retrieval.passages import read_passages
from matryoshka_st.retrieval.text_index import Found, TextIndex, index_texts

logger = logging.getLogger(__name__)

DEFAULT_K = 5
SHOWN_LINES = 3
INDENT = "   "
EXAMPLES = """examples:
  {prog} index docstrings --index output/docs --model bundled
  {prog} query output/docs "read a table from a file" -k 5"""


def main(argv: Sequence[str], prog: str = "matryoshka-st search", *, console: Console | None = None) -> None:
    """Parse the flags of ``search index`` or ``search query``, and do it.

    Args:
        argv: Flags, without the program's name.
        prog: Name shown by ``--help``.
        console: Where results go; default: stdout.

    Raises:
        UserError: If a flag, the source, the index, the model or the query is wrong.
        SystemExit: After ``--help``.
    """
    commands: dict[str, Callable[[Sequence[str], str, Console], None]] = {"index": _index, "query": _query}
    verb, *rest = argv or ["--help"]
    if verb in commands:
        commands[verb](rest, f"{prog} {verb}", console or Console())
    elif verb.startswith("-"):
        _overview(prog).parse([verb])
    else:
        raise UserError(f"search has no command {verb!r}{did_you_mean(verb, commands)}; use index or query.")


def _index(argv: Sequence[str], prog: str, console: Console) -> None:
    given = _index_flags(prog).parse(argv)
    passages = read_passages(given.source, columns=given.columns, unit=given.unit, most=given.max_texts)
    logger.info("%s: %d texts.", given.source, len(passages))
    index = index_texts(
        passages,
        given.index,
        source=given.source,
        model_name=given.model,
        shortlist_dim=given.shortlist_dim,
        rerank_dim=given.rerank_dim,
        batch_size=given.batch_size,
        device=given.device,
        progress=sys.stderr.isatty(),
    )
    _say(console, f"Indexed {len(index)} texts of {given.source}: {given.index}")
    _say(console, _work(index, *index.retriever.settings.shortlists))


def _query(argv: Sequence[str], prog: str, console: Console) -> None:
    given = _query_flags(prog).parse(argv)
    index = TextIndex.load(given.index)
    k = min(DEFAULT_K, len(index)) if given.k is None else given.k
    shortlist = max(k, *index.retriever.settings.shortlists) if given.shortlist is None else given.shortlist
    index.retriever.settings.lengths(k, len(index), [shortlist])
    model = index.load_model(given.model, device=given.device)
    for rank, found in enumerate(index.search(model, " ".join(given.query), k, shortlist=shortlist), start=1):
        _show(console, rank, found)
    _say(console, _work(index, shortlist))


def _show(console: Console, rank: int, found: Found) -> None:
    _say(console, f"{rank}. {found.score:.4f}  {found.place}")
    width = min(119, shutil.get_terminal_size().columns)
    text = " ".join(found.text.split())
    lines = textwrap.wrap(text, width - len(INDENT), max_lines=SHOWN_LINES, placeholder=" ...")
    _say(console, textwrap.indent("\n".join(lines), INDENT))


def _work(index: TextIndex, shortlist: int) -> str:
    """Which dims do what, and how much work that spares."""
    settings, count = index.retriever.settings, len(index)
    first, last = settings.dims
    ranked = f"{last} of {settings.width}" if last < settings.width else f"all {last}"
    if shortlist >= count:
        return f"Dims: {ranked} rank every text, as {count} are no more than the shortlist of {shortlist}."
    cascade = count_operations(count, settings.dims, [shortlist], settings.precision).total
    times = count * last / cascade
    return (
        f"Dims: the first {first} of {settings.width} find {shortlist} of {count} texts, {ranked} rank those "
        f"({times:.1f} times fewer operations than to rank every text)."
    )


def _say(console: Console, line: str) -> None:
    console.print(line, markup=False, highlight=False, soft_wrap=True)


def _overview(prog: str) -> Flags:
    return Flags(
        prog=prog,
        usage="%(prog)s {index,query} ... (each has its own --help)",
        description="Search texts with few dims first: index them once, then query the index.",
        epilog=EXAMPLES.format(prog=prog),
        formatter_class=RawDescriptionHelpFormatter,
    )


def _index_flags(prog: str) -> Flags:
    flags = Flags(
        prog=prog,
        description="Encode texts once and keep their vectors, the texts and the name of the model in a folder.",
        epilog=f"example: {prog} notes/ --index output/notes --model output/first/model --shortlist-dim 64",
    )
    flags.add_argument(
        "source",
        help="a folder or a file (text: .txt .md .rst; tables: .jsonl .parquet .csv .tsv), or 'docstrings' of the "
        "installed packages",
    )
    flags.add_argument(
        "--index", type=Path, required=True, help="folder of the index; one that lies there is replaced at the end"
    )
    flags.add_argument("--model", default=BUNDLED, help="a hub id, a folder, or 'bundled' (default)")
    flags.add_argument(
        "--shortlist-dim",
        type=int,
        help="first dims that find candidates, kept in RAM (default: an eighth of the width or a little more)",
    )
    flags.add_argument("--rerank-dim", type=int, help="first dims that rank the candidates (default: all)")
    flags.add_argument(
        "--columns",
        nargs="+",
        default=[],
        help="columns of tables that make a text (default: 'text', or the only one)",
    )
    flags.add_argument(
        "--unit",
        default="paragraph",
        help="what of a text file is one hit: paragraph (up to a blank line, the default), line or file",
    )
    flags.add_argument("--max-texts", type=int, help="index only the first so many texts")
    flags.add_argument("--batch-size", type=int, default=32, help="texts per forward pass (default 32)")
    flags.add_argument("--device", help="torch device, for example cuda:0 (default: the best one)")
    return flags


def _query_flags(prog: str) -> Flags:
    flags = Flags(
        prog=prog,
        description="Find the texts of an index that are nearest to a query.",
        epilog=f'example: {prog} output/notes "how do I ..." -k 5 --shortlist 500',
    )
    flags.add_argument("index", type=Path, metavar="DIR", help="folder that search index wrote")
    flags.add_argument("query", nargs="+", help="what to look for; several words make one query")
    flags.add_argument("-k", type=int, help=f"texts to show (default {DEFAULT_K})")
    flags.add_argument(
        "--shortlist",
        type=int,
        help="candidates that the first dims find (default 200; more is slower and closer to exact)",
    )
    flags.add_argument("--model", help="where the model of the index lies now, if it was moved")
    flags.add_argument("--device", help="torch device, for example cuda:0 (default: the best one)")
    return flags
