r"""How small a shortlist may be: nDCG@10, operations, wall time and RAM beside faiss exact search at full width.

    python eval/bench_retrieval.py --pairs paper_title_abstract.parquet --tasks SciFact --tasks MLQuestions \
        --mirror MIRROR --cache CACHE --output eval/results/bench_retrieval_cpu.json

Every text is encoded once and kept in the cache, so that a stopped run goes on. Shortlists are tuned on one half of
the queries (MLQuestions: on its dev split) and reported on the other. Exact search and ours are timed in turn, in one
process; ours is an index that was saved and loaded, so that its full-width vectors are memory-mapped.
"""

from __future__ import annotations

import hashlib
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import faiss
import numpy as np
import torch
import typer
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from matryoshka_st.data import load_pairs
from matryoshka_st.errors import UserError
from matryoshka_st.evaluation.provenance import provenance
from matryoshka_st.evaluation.tasks import find_task, load_task, subsets_of
from matryoshka_st.files import write_json
from matryoshka_st.models import load_model, weights_hash
from matryoshka_st.nesting import truncate_normalize
from matryoshka_st.retrieval import AdaptiveRetriever, Tuning, tune
from matryoshka_st.retrieval.metrics import ndcg
from matryoshka_st.rotation import fit_rotation

K = 10
SHARD = 2048
LENGTHS = [10, 15, 20, 30, 40, 50, 75, 100, 150, 200, 300, 400, 600, 800, 1200, 1600]
SINGLE = 200
AS_IS, ROTATED = "as is", "rotated"

Vectors = NDArray[np.float32]
Judged = list[dict[int, float]]


class Texts(NamedTuple):
    """Documents, and two sets of queries with the positions and gains of their documents."""

    documents: list[str]
    tuning: tuple[list[str], Judged]
    reporting: tuple[list[str], Judged]


class Case(NamedTuple):
    """The same as vectors."""

    name: str
    documents: Vectors
    tuning: tuple[Vectors, Judged]
    reporting: tuple[Vectors, Judged]


@dataclass(frozen=True)
class Way:
    """A kind of shortlist."""

    index: str
    precision: str
    dims: list[int] | None = None


def pairs_texts(path: Path, queries: int, seed: int = 13) -> Texts:
    """Titles ask for abstracts: all documents in a random order, queries for the first ones, halved."""
    rows = load_pairs(str(path)).shuffle(seed=seed)
    documents = list(dict.fromkeys(rows["positive"]))
    position = {text: i for i, text in enumerate(documents)}
    answers: dict[str, dict[int, float]] = {}
    for title, abstract in zip(rows["anchor"], rows["positive"], strict=True):
        answers.setdefault(title, {})[position[abstract]] = 1.0
    chosen = sorted(answers, key=lambda title: max(answers[title]))[:queries]  # all their documents come early
    halves = chosen[::2], chosen[1::2]
    tuning, reporting = ((half, [answers[title] for title in half]) for half in halves)
    return Texts(documents, tuning, reporting)


def task_texts(name: str, mirror: Path | None) -> Texts:
    """A task of mteb: its dev split tunes if it has one, else every other query."""
    task = find_task(name, splits=[])
    splits = [split for split in ("dev", "test") if split in task.metadata.eval_splits]
    task = find_task(name, splits=splits)
    load_task(task, mirror)
    (subset,) = subsets_of(task).values()
    corpus = subset["test"]["corpus"]
    position = {str(key): i for i, key in enumerate(corpus["id"])}
    documents = [f"{row.get('title') or ''} {row['text']}".strip() for row in corpus]
    asked = {split: _queries(subset[split], position) for split in splits}
    if "dev" in asked:
        return Texts(documents, asked["dev"], asked["test"])
    queries, judged = asked["test"]
    return Texts(documents, (queries[::2], judged[::2]), (queries[1::2], judged[1::2]))


def _queries(split: Mapping[str, Any], position: Mapping[str, int]) -> tuple[list[str], Judged]:
    relevant = split["relevant_docs"]
    rows = [row for row in split["queries"] if row["id"] in relevant]
    judged = [{position[key]: float(gain) for key, gain in relevant[row["id"]].items()} for row in rows]
    return [row["text"] for row in rows], judged


class Encoder:
    """A model whose vectors are kept, shard by shard, by the hash of its weights and the texts."""

    def __init__(self, name: str, cache: Path, autocast: bool, batch_size: int) -> None:
        self._model, self._cache, self._autocast, self._batch_size = load_model(name), cache, autocast, batch_size
        self._hash = weights_hash(self._model) + ("-bf16" if autocast else "")
        self.width = self._model.get_embedding_dimension()

    def __call__(self, texts: Sequence[str]) -> Vectors:
        """Unit vectors, one row per text."""
        shards = [self._shard(texts[start : start + SHARD]) for start in range(0, len(texts), SHARD)]
        return np.concatenate(shards)

    def _shard(self, texts: Sequence[str]) -> Vectors:
        key = hashlib.sha256("\x00".join([self._hash, *texts]).encode()).hexdigest()[:24]
        path = self._cache / f"{key}.npy"
        if not path.exists():
            device = self._model.device.type
            with torch.autocast(device, dtype=torch.bfloat16) if self._autocast else nullcontext():
                vectors = self._model.encode(list(texts), batch_size=self._batch_size, convert_to_tensor=True)
            unit = truncate_normalize(vectors.float().cpu(), vectors.shape[1]).numpy()
            self._cache.mkdir(parents=True, exist_ok=True)
            partial = path.with_suffix(".partial.npy")
            np.save(partial, unit)
            partial.replace(path)
        return np.asarray(np.load(path))


def encoded(name: str, texts: Texts, encode: Encoder, size: int) -> Case:
    """Vectors of the first ``size`` documents and of all queries."""
    documents = encode(texts.documents[: -(-size // SHARD) * SHARD])[:size]  # whole shards, which other sizes share
    tuning, reporting = ((encode(queries), judged) for queries, judged in (texts.tuning, texts.reporting))
    return Case(name, documents, tuning, reporting)


def all_cases(
    pairs: Path | None, sizes: Sequence[int], queries: int, tasks: Sequence[str], mirror: Path | None, encode: Encoder
) -> Iterator[Case]:
    """The tasks, then the pairs from the smallest size to the largest."""
    for task in tasks:
        texts = task_texts(task, mirror)
        yield encoded(task, texts, encode, len(texts.documents))
    if pairs is not None:
        texts = pairs_texts(pairs, queries)
        for size in sorted({min(size, len(texts.documents)) for size in sizes or [len(texts.documents)]}):
            yield encoded(pairs.stem, texts, encode, size)


def rotated(case: Case, fit_on: int) -> Case:
    """The case in the basis of its own documents' singular vectors; full-width scores stay what they were."""
    rotation = fit_rotation(torch.from_numpy(case.documents[:fit_on].copy())).numpy()
    (tuning, first), (reporting, second) = case.tuning, case.reporting
    return Case(case.name, case.documents @ rotation, (tuning @ rotation, first), (reporting @ rotation, second))


def measure(case: Case, basis: str, way: Way, target: float, repeats: int) -> dict[str, Any]:
    """Tune one kind of shortlist, then report the best one of it."""
    tuning = tune(
        case.documents,
        case.tuning[0],
        qrels=case.tuning[1],
        target=target,
        dims=way.dims,
        lengths=LENGTHS,
        precisions=[way.precision],
        index=way.index,
    )
    result = {"basis": basis, "index": way.index, "precision": way.precision, "table": _trade_offs(tuning)}
    try:
        best = tuning.best
    except UserError as error:
        return {**result, "fails": str(error)}
    with tempfile.TemporaryDirectory() as folder:
        AdaptiveRetriever.build(case.documents, **tuning.options).save(folder)
        ours = AdaptiveRetriever.load(folder)
        report = report_on(case, ours, repeats)
    return {
        **result,
        "shortlist_dim": best.shortlist_dim,
        "shortlist": best.shortlist,
        "tuned_ndcg_share": best.ndcg_share,
        "operations": best.operations._asdict(),
        "operation_ratio": best.ratio,
        **report,
    }


def report_on(case: Case, ours: AdaptiveRetriever, repeats: int) -> dict[str, Any]:
    """Quality on the queries that were not tuned on, and seconds beside exact search."""
    queries, judged = case.reporting
    exact = faiss.IndexFlatIP(case.documents.shape[1])
    exact.add(case.documents)
    singles = [queries[i : i + 1] for i in range(min(SINGLE, len(queries)))]
    seconds = race(
        {
            "exact_batch": lambda: exact.search(queries, K),
            "ours_batch": lambda: ours.search(queries, K),
            "exact_single": lambda: [exact.search(query, K) for query in singles],
            "ours_single": lambda: [ours.search(query, K) for query in singles],
        },
        repeats,
    )
    per_query = {name: spent / len(singles if "single" in name else queries) for name, spent in seconds.items()}
    scores = {
        "exact": float(ndcg(exact.search(queries, K)[1], judged).mean()),
        "ours": float(ndcg(ours.search(queries, K).ids, judged).mean()),
    }
    return {
        "ndcg_at_10": scores,
        "ndcg_share": scores["ours"] / scores["exact"],
        "seconds_per_query_median": per_query,
        "clock_ratio_batch": per_query["exact_batch"] / per_query["ours_batch"],
        "clock_ratio_single": per_query["exact_single"] / per_query["ours_single"],
        "ram_bytes_per_million": ours.ram_bytes_per_million,
        "exact_ram_bytes_per_million": case.documents.shape[1] * 4e6,
    }


def race(runs: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Median wall seconds of each, run in turn after a warm-up."""
    spent: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats + 1):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            spent[name].append(time.perf_counter() - start)
    return {name: statistics.median(times[1:]) for name, times in spent.items()}


def _trade_offs(tuning: Tuning) -> list[dict[str, Any]]:
    kept = ("shortlist_dim", "shortlist", "recall", "ndcg_share", "ratio")
    return [{name: getattr(trade_off, name) for name in kept} for trade_off in tuning.trade_offs]


def show(cases: list[dict[str, Any]]) -> Table:
    """One row per case and kind of shortlist."""
    table = Table(title="smallest shortlist within the target, against faiss exact search at full width")
    columns = ["vectors", "shortlist", "dims", "length", "nDCG@10", "share", "fewer operations"]
    for column in [*columns, "faster, batch", "faster, single", "MB per million"]:
        table.add_column(column, justify="left" if column in ("vectors", "shortlist") else "right")
    for case in cases:
        for way in case["ways"]:
            label = (f"{case['name']}, {case['documents']:,}", f"{way['precision']} {way['index']}, {way['basis']}")
            if "fails" in way:
                table.add_row(*label, "none reaches the target")
                continue
            table.add_row(
                *label,
                str(way["shortlist_dim"]),
                str(way["shortlist"]),
                f"{100 * way['ndcg_at_10']['ours']:.2f}",
                f"{100 * way['ndcg_share']:.2f} %",
                *(f"{way[name]:.1f}x" for name in ("operation_ratio", "clock_ratio_batch", "clock_ratio_single")),
                f"{way['ram_bytes_per_million'] / 1e6:.0f}",
            )
        table.add_section()
    return table


def main(
    pairs: Annotated[Path | None, typer.Option(help="Pairs: anchors are queries, positives documents")] = None,
    sizes: Annotated[list[int] | None, typer.Option(help="Documents of the pairs; default: all of them")] = None,
    queries: Annotated[int, typer.Option(help="Queries of the pairs, for tuning and reporting together")] = 2000,
    tasks: Annotated[list[str] | None, typer.Option(help="Retrieval tasks of mteb")] = None,
    mirror: Annotated[Path | None, typer.Option(help="Local copy of mteb's data sets")] = None,
    model: Annotated[str, typer.Option()] = "bundled",
    cache: Annotated[Path, typer.Option(help="Where embeddings are kept")] = Path("output/embeddings"),
    autocast: Annotated[bool, typer.Option(help="Encode in bfloat16")] = False,
    batch_size: Annotated[int, typer.Option(min=1)] = 64,
    fit_on: Annotated[int, typer.Option(help="Documents that the rotation is fitted on; 0: no rotation")] = 20_000,
    precisions: Annotated[list[str] | None, typer.Option(help="Of flat shortlists")] = None,
    hnsw_dims: Annotated[list[int] | None, typer.Option(help="Dims to try in graphs; default: none")] = None,
    target: Annotated[float, typer.Option(help="Share of nDCG@10 to keep, on the tuning queries")] = 0.995,
    repeats: Annotated[int, typer.Option(min=1)] = 7,
    threads: Annotated[int | None, typer.Option(help="CPU threads; default: torch's own choice")] = None,
    output: Annotated[Path | None, typer.Option(help="Where to write the JSON")] = None,
) -> None:
    """Tune and measure every data set, size and kind of shortlist; print a table and write a JSON."""
    if threads is not None:
        torch.set_num_threads(threads)
        faiss.omp_set_num_threads(threads)
    encode = Encoder(model, cache, autocast, batch_size)
    console, load, cases = Console(width=170), os.getloadavg(), []
    ways = [Way("flat", precision) for precision in precisions or ["float32", "int8", "binary"]]
    ways += [Way("hnsw", "float32", hnsw_dims)] if hnsw_dims else []
    for case in all_cases(pairs, sizes or [], queries, tasks or [], mirror, encode):
        bases = {AS_IS: case, **({ROTATED: rotated(case, fit_on)} if fit_on else {})}
        measured = [measure(vectors, basis, way, target, repeats) for way in ways for basis, vectors in bases.items()]
        cases.append({"name": case.name, "documents": len(case.documents), "ways": measured})
        console.print(show(cases[-1:]))
    console.print(show(cases))
    if output is not None:
        result = {
            "schema_version": 1,
            **provenance(["torch", "sentence-transformers", "faiss-cpu", "numpy"]),
            "load_average": {"before": load, "after": os.getloadavg()},
            "model": {"name": model, "width": encode.width},
            "target": target,
            "cases": cases,
        }
        write_json(output, result)


if __name__ == "__main__":
    typer.run(main)
