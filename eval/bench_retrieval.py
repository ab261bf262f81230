r"""How small a shortlist may be: nDCG@10, operations, wall time and RAM beside faiss exact search at full width.

    python eval/bench_retrieval.py --pairs paper_title_abstract.parquet --tasks SciFact --tasks MLQuestions \
        --mirror MIRROR --cache CACHE --output eval/results/bench_retrieval_cpu.json

Every text is encoded once and kept in the cache, so that a stopped run goes on. Shortlists are tuned on one half of
the queries (MLQuestions: on its dev split) and reported on the other. Exact search and ours are timed in turn, in one
process; ours is an index that was saved and loaded, so that its full-width vectors are memory-mapped. An operation is
one product of two coordinates, or the comparison of 64 signs; in a graph those of the vectors that faiss visited
count. A rotation is fitted on the documents alone. "hnsw at full width" shows what a graph saves without a prefix.
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
from functools import partial
from itertools import product
from pathlib import Path
from typing import Annotated, Any, NamedTuple, Protocol

import faiss
import numpy as np
import torch
import typer
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from matryoshka_st.basis import fit_rotation
from matryoshka_st.cli import exit_with_one_sentence
from matryoshka_st.data import load_pairs
from matryoshka_st.errors import UserError, did_you_mean
from matryoshka_st.evaluation.provenance import provenance
from matryoshka_st.evaluation.tasks import find_task, load_task, subsets_of
from matryoshka_st.files import write_json
from matryoshka_st.models import load_model, weights_hash
from matryoshka_st.nesting import truncate_normalize
from matryoshka_st.retrieval import (
    AdaptiveRetriever,
    FunnelRetriever,
    Hits,
    Operations,
    Settings,
    TradeOff,
    Tuning,
    count_operations,
    tune,
)
from matryoshka_st.retrieval.metrics import ndcg
from matryoshka_st.retrieval.shortlist import Shortlist

K = 10
SHARD = 2048
LENGTHS = [10, 15, 20, 30, 40, 50, 75, 100, 150, 200, 300, 400, 600, 800, 1200, 1600]
SINGLE = 200
FUNNEL_DIMS = ([16, 24, 32], [64, 96])
FUNNEL_LENGTHS = ([200, 400, 800, 1200, 1600, 2400], [20, 30, 50, 75, 100])
AS_IS, ROTATED = "as is", "rotated"
FUNNEL, WHOLE = "funnel", "hnsw at full width"

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


class Searcher(Protocol):
    """What is measured."""

    @property
    def ram_bytes_per_million(self) -> float:
        """Bytes in RAM."""
        ...

    def search(self, queries: Vectors, k: int) -> Hits:
        """The best documents of each query."""
        ...


@dataclass(frozen=True)
class Way:
    """A kind of search: a two-stage one, a funnel, or a graph over the full width."""

    index: str
    precision: str
    basis: str
    dims: list[int] | None = None
    fastest: bool = False

    @property
    def name(self) -> str:
        """For the table."""
        return f"{self.precision} {self.index}{', fastest' if self.fastest else ''}"


WAYS = [
    Way("flat", "float32", AS_IS),
    Way("flat", "float32", ROTATED, [16, 24, 32, 48, 64, 96, 128]),
    Way("flat", "float32", ROTATED, [32, 48, 64, 96, 128, 192], fastest=True),
    Way("flat", "int8", ROTATED, [16, 24, 32, 48, 64, 96, 128]),
    Way("flat", "binary", AS_IS),
    Way("flat", "binary", ROTATED),
    Way(FUNNEL, "float32", ROTATED),
    Way("hnsw", "float32", ROTATED, [32, 48, 64, 96]),
    Way("hnsw", "binary", AS_IS, [128, 256, 384]),
    Way(WHOLE, "float32", AS_IS),
]
NAMES = list(dict.fromkeys(way.name for way in WAYS))


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

    def __init__(self, name: str, cache: Path, autocast: bool, batch_size: int, max_seq_length: int | None) -> None:
        self._model, self._cache, self._autocast, self._batch_size = load_model(name), cache, autocast, batch_size
        self._hash = weights_hash(self._model) + ("-bf16" if autocast else "")
        if max_seq_length is not None:
            self._model.max_seq_length = max_seq_length
            self._hash += f"-{max_seq_length}"
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


def adaptive(case: Case, way: Way, target: float) -> tuple[AdaptiveRetriever, dict[str, Any]]:
    """The shortlist of this kind that keeps the target with the fewest operations, or in the shortest time.

    Raises:
        UserError: If none does.
    """
    tuning = tune(
        case.documents,
        case.tuning[0],
        qrels=case.tuning[1],
        target=target,
        dims=[dim for dim in way.dims or [] if dim < case.documents.shape[1]] or None,
        lengths=LENGTHS,
        precisions=[way.precision],
        index=way.index,
    )
    kept = ("shortlist_dim", "shortlist", "recall", "ndcg_share", "ratio")
    best = soonest(case, tuning) if way.fastest else tuning.best
    ours = AdaptiveRetriever.build(case.documents, **tuning.options_of(best))
    exact_cost = case.documents.size
    return ours, {
        **_found(ours.settings.dims, ours.settings.shortlists, best.quality, best.operations, exact_cost),
        "tried": [{name: getattr(trade_off, name) for name in kept} for trade_off in tuning.trade_offs],
    }


def soonest(case: Case, tuning: Tuning) -> TradeOff:
    """Of the shortest good shortlist of each dim the one that answers the tuning queries soonest.

    Raises:
        UserError: If none is good.
    """
    longest_first = sorted(tuning.trade_offs, key=lambda trade_off: -trade_off.shortlist)
    shortest = {one.shortlist_dim: one for one in longest_first if one.quality >= tuning.target} or {0: tuning.best}
    queries = case.tuning[0]
    retrievers = {
        str(dim): AdaptiveRetriever.build(case.documents, **tuning.options_of(one)) for dim, one in shortest.items()
    }
    wall, _ = race({dim: (partial(one.search, queries, K), len(queries)) for dim, one in retrievers.items()}, 3)
    return shortest[int(min(wall, key=lambda dim: wall[dim]))]


def funnel(case: Case, target: float) -> tuple[FunnelRetriever, dict[str, Any]]:
    """The cascade of three dims that keeps the target with the fewest operations: the cheapest is tried first.

    Raises:
        UserError: If none does.
    """
    count, width = case.documents.shape
    queries, judged = case.tuning
    exact = exact_ndcg(case.documents, queries, judged)
    grid = [
        (count_operations(count, dims, lengths, "float32"), dims, lengths)
        for dims in product(*FUNNEL_DIMS, [width])
        for lengths in product(*FUNNEL_LENGTHS)
        if lengths[0] < count
    ]
    for cost, dims, lengths in sorted(grid):
        retriever = FunnelRetriever.build(case.documents, dims=dims, shortlists=lengths)
        share = float(ndcg(retriever.search(queries, K).ids, judged).mean()) / exact
        if share >= target:
            return retriever, _found(dims, lengths, share, cost, count * width)
    raise UserError(f"No funnel reaches {target:g}.")


class WholeGraph:
    """A graph over the full width, for comparison: what a graph saves without any prefix."""

    def __init__(self, vectors: Vectors) -> None:
        width = vectors.shape[1]
        self.graph = Shortlist.of(vectors, Settings(width, (width, width), (K,), index="hnsw"))
        self.reach = K

    @property
    def ram_bytes_per_million(self) -> float:
        """Of vectors and links."""
        return self.graph.ram_bytes / len(self.graph) * 1e6

    def search(self, queries: Vectors, k: int) -> Hits:
        """The first of those that a walk of this reach finds."""
        return Hits(self.graph.search(queries, self.reach)[:, :k], np.empty(0, dtype=np.float32))


def whole_graph(case: Case, target: float) -> tuple[WholeGraph, dict[str, Any]]:
    """The shortest walk through a full-width graph that keeps the target.

    Raises:
        UserError: If none does.
    """
    count, width = case.documents.shape
    queries, judged = case.tuning
    exact, whole = exact_ndcg(case.documents, queries, judged), WholeGraph(case.documents)
    for whole.reach in LENGTHS:
        found, visited = whole.graph.search_counted(queries, whole.reach)
        share = float(ndcg(found[:, :K], judged).mean()) / exact
        if share >= target:
            return whole, _found((width,), (whole.reach,), share, Operations(visited * width, 0), count * width)
    raise UserError(f"No graph reaches {target:g}.")


def exact_ndcg(documents: Vectors, queries: Vectors, judged: Judged) -> float:
    """Mean nDCG@10 of exact search at full width."""
    found = faiss.knn(queries, documents, K, metric=faiss.METRIC_INNER_PRODUCT)[1]
    return float(ndcg(found, judged).mean())


def _found(
    dims: Sequence[int], shortlists: Sequence[int], share: float, cost: Operations, exact_cost: int
) -> dict[str, Any]:
    return {
        "dims": list(dims),
        "shortlists": list(shortlists),
        "tuned_ndcg_share": share,
        "operations": cost._asdict(),
        "operation_ratio": exact_cost / cost.total,
    }


def measure(case: Case, way: Way, target: float, repeats: int) -> dict[str, Any]:
    """Tune one kind of search, then report the best one of it."""
    result: dict[str, Any] = {"way": way.name, "basis": way.basis}
    try:
        if way.index == WHOLE:
            graph, found = whole_graph(case, target)
            return {**result, **found, **report_on(case, graph, repeats)}
        ours, found = funnel(case, target) if way.index == FUNNEL else adaptive(case, way, target)
    except UserError as error:
        return {**result, "fails": str(error)}
    with tempfile.TemporaryDirectory() as folder:
        ours.save(folder)
        return {**result, **found, **report_on(case, type(ours).load(folder), repeats)}


def report_on(case: Case, ours: Searcher, repeats: int) -> dict[str, Any]:
    """Quality on the queries that were not tuned on, and seconds beside exact search."""
    queries, judged = case.reporting
    exact = faiss.IndexFlatIP(case.documents.shape[1])
    exact.add(case.documents)
    singles = [queries[i : i + 1] for i in range(min(SINGLE, len(queries)))]
    wall, cpu = race(
        {
            "exact_batch": (lambda: exact.search(queries, K), len(queries)),
            "ours_batch": (lambda: ours.search(queries, K), len(queries)),
            "exact_single": (lambda: [exact.search(query, K) for query in singles], len(singles)),
            "ours_single": (lambda: [ours.search(query, K) for query in singles], len(singles)),
        },
        repeats,
    )
    scores = {
        "exact": float(ndcg(exact.search(queries, K)[1], judged).mean()),
        "ours": float(ndcg(ours.search(queries, K).ids, judged).mean()),
    }
    return {
        "ndcg_at_10": scores,
        "ndcg_share": scores["ours"] / scores["exact"],
        "seconds_per_query_median": wall,
        "cpu_seconds_per_query_median": cpu,
        "clock_ratio_batch": wall["exact_batch"] / wall["ours_batch"],
        "clock_ratio_single": wall["exact_single"] / wall["ours_single"],
        "cpu_ratio_batch": cpu["exact_batch"] / cpu["ours_batch"],
        "cpu_ratio_single": cpu["exact_single"] / cpu["ours_single"],
        "ram_bytes_per_million": ours.ram_bytes_per_million,
        "exact_ram_bytes_per_million": case.documents.shape[1] * 4e6,
    }


def race(runs: Mapping[str, tuple[Callable[[], Any], int]], repeats: int) -> tuple[dict[str, float], dict[str, float]]:
    """Median wall and CPU seconds per query of each, run in turn after a warm-up."""
    wall: dict[str, list[float]] = {name: [] for name in runs}
    cpu: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats + 1):
        for name, (run, queries) in runs.items():
            start, cpu_start = time.perf_counter(), time.process_time()
            run()
            wall[name].append((time.perf_counter() - start) / queries)
            cpu[name].append((time.process_time() - cpu_start) / queries)
    medians = ({name: statistics.median(values[1:]) for name, values in spent.items()} for spent in (wall, cpu))
    return next(medians), next(medians)


def show(cases: list[dict[str, Any]]) -> Table:
    """One row per case and kind of shortlist."""
    table = Table(title="smallest shortlist within the target, against faiss exact search at full width")
    columns = ["vectors", "shortlist", "dims", "lengths", "nDCG@10", "share", "fewer operations"]
    for column in [*columns, "faster, batch", "faster, single", "MB per million"]:
        table.add_column(column, justify="left" if column in ("vectors", "shortlist") else "right")
    for case in cases:
        for way in case["ways"]:
            label = (f"{case['name']}, {case['documents']:,}", f"{way['way']}, {way['basis']}")
            if "fails" in way:
                table.add_row(*label, "none reaches the target")
                continue
            table.add_row(
                *label,
                " ".join(str(dim) for dim in way["dims"]),
                " ".join(str(length) for length in way["shortlists"]),
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
    max_seq_length: Annotated[int | None, typer.Option(help="Tokens kept of each text; default: all it takes")] = None,
    fit_on: Annotated[int, typer.Option(help="Documents that the rotation is fitted on", min=1)] = 20_000,
    ways: Annotated[list[str] | None, typer.Option(help=f"Of {'; '.join(NAMES)}")] = None,
    target: Annotated[float, typer.Option(help="Share of nDCG@10 to keep, on the tuning queries")] = 0.995,
    repeats: Annotated[int, typer.Option(min=1)] = 7,
    threads: Annotated[int | None, typer.Option(help="CPU threads; default: torch's own choice")] = None,
    output: Annotated[Path | None, typer.Option(help="Where to write the JSON")] = None,
) -> None:
    """Tune and measure every data set, size and kind of shortlist; print a table and write a JSON."""
    for name in ways or []:
        if name not in NAMES:
            raise UserError(f"There is no way {name!r}{did_you_mean(name, NAMES)}; use {'; '.join(NAMES)}.")
    if threads is not None:
        torch.set_num_threads(threads)
        faiss.omp_set_num_threads(threads)
    encode = Encoder(model, cache, autocast, batch_size, max_seq_length)
    console, load, cases = Console(width=170), os.getloadavg(), []
    for case in all_cases(pairs, sizes or [], queries, tasks or [], mirror, encode):
        bases = {AS_IS: case, ROTATED: rotated(case, fit_on)}
        measured = [measure(bases[way.basis], way, target, repeats) for way in WAYS if not ways or way.name in ways]
        cases.append({"name": case.name, "documents": len(case.documents), "ways": measured})
        console.print(show(cases[-1:]))
    console.print(show(cases))
    if output is not None:
        result = {
            "schema_version": 1,
            **provenance(["torch", "sentence-transformers", "faiss-cpu", "numpy"]),
            "load_average": {"before": load, "after": os.getloadavg()},
            "model": {"name": model, "width": encode.width, "max_seq_length": max_seq_length},
            "target": target,
            "cases": cases,
        }
        write_json(output, result)


if __name__ == "__main__":
    with exit_with_one_sentence():
        typer.run(main)
