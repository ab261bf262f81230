"""Stores: the same ranking as numpy, the same calls as FunnelRetriever, nothing overwritten."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from matryoshka_st.errors import OptionalDependencyError, UserError
from matryoshka_st.retrieval import FunnelRetriever, stores
from matryoshka_st.retrieval.stores import DuckDBStore, LanceDBStore, QdrantStore, UsearchStore

README = Path(stores.__file__).with_name("README.md")
COUNT, WIDTH, QUERIES = 5_000, 96, 12
ROUNDING = 2e-6
REASON = "{} is not installed (pip install 'matryoshka-st[stores]')"


class Kind(NamedTuple):
    """One kind of store: how to build it somewhere, and how to open it there again."""

    build: Callable[..., Any]
    load: Callable[..., Any]
    text_ids: bool = True


def _faiss(folder: Path) -> Kind:
    pytest.importorskip("faiss", reason=REASON.format("faiss-cpu"))

    def build(*args: Any, shortlists: Sequence[int] = (200,), **options: Any) -> FunnelRetriever:
        retriever = FunnelRetriever.build(*args, shortlists=shortlists, **options)
        retriever.save(folder / "index")
        return retriever

    return Kind(build, lambda **_: FunnelRetriever.load(folder / "index"))


def _usearch(folder: Path) -> Kind:
    pytest.importorskip("usearch", reason=REASON.format("usearch"))
    return Kind(
        lambda *args, **options: UsearchStore.build(folder / "docs", *args, exact=True, **options),
        lambda **options: UsearchStore.load(folder / "docs", exact=True, **options),
    )


def _qdrant(folder: Path) -> Kind:
    client = pytest.importorskip("qdrant_client", reason=REASON.format("qdrant-client")).QdrantClient(":memory:")
    return Kind(
        lambda *args, **options: QdrantStore.build(client, "docs", *args, exact=True, **options),
        lambda **options: QdrantStore.load(client, "docs", exact=True, **options),
        text_ids=False,
    )


def _duckdb(folder: Path) -> Kind:
    connection = pytest.importorskip("duckdb", reason=REASON.format("duckdb")).connect(folder / "docs.duckdb")
    return Kind(
        lambda *args, **options: DuckDBStore.build(connection, "docs", *args, **options),
        lambda **options: DuckDBStore.load(connection, "docs", **options),
    )


def _lancedb(folder: Path) -> Kind:
    database = pytest.importorskip("lancedb", reason=REASON.format("lancedb")).connect(folder / "lance")
    return Kind(
        lambda *args, **options: LanceDBStore.build(database, "docs", *args, exact=True, **options),
        lambda **options: LanceDBStore.load(database, "docs", exact=True, **options),
    )


STORES = {"usearch": _usearch, "qdrant": _qdrant, "duckdb": _duckdb, "lancedb": _lancedb}


@pytest.fixture(params=["faiss", *STORES])
def kind(request: pytest.FixtureRequest, tmp_path: Path) -> Kind:
    """Every store, and the retriever whose calls they share."""
    return {"faiss": _faiss, **STORES}[request.param](tmp_path)


@pytest.fixture(params=STORES)
def store_kind(request: pytest.FixtureRequest, tmp_path: Path) -> Kind:
    return STORES[request.param](tmp_path)


@pytest.fixture(scope="module")
def documents() -> np.ndarray:
    """Vectors whose first coordinates carry most, of any length."""
    return _falling(10, COUNT)


@pytest.fixture(scope="module")
def queries(documents: np.ndarray) -> np.ndarray:
    return documents[:QUERIES] + _falling(11, QUERIES)


def _falling(seed: int, count: int) -> np.ndarray:
    normal = np.random.default_rng(seed).normal(size=(count, WIDTH))
    return (normal / np.sqrt(np.arange(1, WIDTH + 1))).astype(np.float32)


def oracle(
    documents: np.ndarray, query: np.ndarray, dims: Sequence[int], keep: Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
    """The cascade in numpy and float64; the data must not leave its order to rounding."""
    chosen = np.arange(len(documents))
    for dim, kept in zip(dims, keep, strict=True):
        rows, wanted = documents[chosen, :dim].astype(float), query[:dim].astype(float)
        cosines = rows @ wanted / np.linalg.norm(rows, axis=1) / np.linalg.norm(wanted)
        order = np.argsort(-cosines)
        gaps = -np.diff(cosines[order[: kept + 1]])
        assert gaps[kept - 1 :].min(initial=1) > ROUNDING  # the cut
        chosen, scores = chosen[order[:kept]], cosines[order[:kept]]
    assert gaps.min() > ROUNDING
    return chosen, scores


@pytest.mark.parametrize(
    ("dims", "shortlists"),
    [([16, WIDTH], [200]), ([16, WIDTH], [10]), ([8, 24, WIDTH], [400, 50]), ([16, WIDTH], [COUNT])],
    ids=["two stages", "shortlist of k", "three stages", "whole corpus"],
)
def test_the_ranking_is_that_of_numpy(
    kind: Kind, documents: np.ndarray, queries: np.ndarray, dims: list[int], shortlists: list[int]
) -> None:
    store = kind.build(documents, dims=dims, shortlists=shortlists)
    hits = store.search(queries, 10)
    for query, ids, scores in zip(queries, hits.ids, hits.scores, strict=True):
        expected, cosines = oracle(documents, query, dims, [*shortlists, 10])
        np.testing.assert_array_equal(ids, expected)
        np.testing.assert_allclose(scores, cosines, atol=1e-6)
    assert len(store) == COUNT
    assert hits.ids.dtype == np.int64 and hits.scores.dtype == np.float32


def test_a_loaded_store_finds_the_same(kind: Kind, documents: np.ndarray, queries: np.ndarray) -> None:
    ids = np.random.default_rng(7).permutation(np.arange(1000, 2000))
    built = kind.build(documents[:1000], ids, dims=[16, WIDTH], shortlists=[50])
    loaded = kind.load(shortlists=[50])
    assert loaded.settings.dims == (16, WIDTH)
    np.testing.assert_array_equal(built.search(queries, 5).ids, loaded.search(queries, 5).ids)
    np.testing.assert_array_equal(loaded.search(documents[:8], 1).ids[:, 0], ids[:8])


def test_other_lengths_than_those_it_was_built_with(kind: Kind, documents: np.ndarray, queries: np.ndarray) -> None:
    store = kind.build(documents[:500], dims=[8, WIDTH], shortlists=[20])
    hits = store.search(queries, 10, shortlists=[500])
    for query, ids in zip(queries, hits.ids, strict=True):
        np.testing.assert_array_equal(ids, oracle(documents[:500], query, [WIDTH], [10])[0])


def test_a_vector_of_zeros_is_no_near_one(kind: Kind, documents: np.ndarray, queries: np.ndarray) -> None:
    rows = documents[:300].copy()
    rows[7] = 0
    rows[8, :16] = 0
    store = kind.build(rows, dims=[16, WIDTH], shortlists=[100])
    hits = store.search(queries, 20)
    assert np.isfinite(hits.scores).all()
    assert not np.isin(hits.ids, [7]).any()


def test_ids_may_be_texts(kind: Kind, documents: np.ndarray) -> None:
    ids = [f"doc {number}" for number in range(100)]
    if not kind.text_ids:
        with pytest.raises(UserError, match="Qdrant's ids are whole numbers of 0 or more; give such,"):
            kind.build(documents[:100], ids, dims=[16, WIDTH])
        return
    kind.build(documents[:100], ids, dims=[16, WIDTH])
    assert kind.load(shortlists=[200]).search(documents[3:5], 1).ids.tolist() == [["doc 3"], ["doc 4"]]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"k": 301}, "k is 301, but the index holds 300 vectors; use 1 to 300."),
        ({"k": 0}, "k is 0, but the index holds 300 vectors; use 1 to 300."),
        ({"k": 20, "shortlists": [10]}, "k is 20, but the last shortlist keeps only 10;"),
        ({"k": 1, "shortlists": [9, 8]}, "There are 2 shortlists for 2 dims;"),
        ({"queries": np.full((1, WIDTH), np.nan)}, "Query vector 0 of 1 holds NaN,"),
        ({"queries": np.ones((1, 4))}, f"Query vectors have 4 dims, but the index has {WIDTH}."),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_search_that_cannot_be(kind: Kind, documents: np.ndarray, options: dict[str, Any], sentence: str) -> None:
    store = kind.build(documents[:300], dims=[16, WIDTH], shortlists=[100])
    with pytest.raises(UserError, match=sentence):
        store.search(**{"queries": documents[:1], "k": 1, **options})
    assert store.search(documents[:0], 3).ids.shape == (0, 3)


@pytest.mark.parametrize(
    ("rows", "options", "sentence"),
    [
        (3, {"dims": [16, 200]}, f"The vectors have {WIDTH} dims, so 200 is no prefix of them;"),
        (3, {"dims": [16, 48]}, f"The vectors have {WIDTH} dims and dims ends at 48;"),
        (3, {"dims": [16, WIDTH], "ids": [1, 2, 1]}, "Id 1 is given more than once;"),
        (3, {"dims": [16, WIDTH], "ids": [1]}, "There are 1 ids for 3 vectors;"),
        (0, {"dims": [16, WIDTH]}, "There are no vectors to store;"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_build_that_cannot_be(
    store_kind: Kind, documents: np.ndarray, rows: int, options: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(UserError, match=sentence):
        store_kind.build(documents[:rows], **options)
    with pytest.raises(UserError, match=r"has no|There is no"):
        store_kind.load()


def test_qdrant_overwrites_nothing(documents: np.ndarray, tmp_path: Path) -> None:
    kind = _qdrant(tmp_path)
    kind.build(documents[:50], dims=[16, WIDTH])
    with pytest.raises(UserError, match="Qdrant holds a collection 'docs' already; give another name,"):
        kind.build(documents[:10], dims=[16, WIDTH])
    assert len(kind.load()) == 50


def test_duckdb_overwrites_nothing(documents: np.ndarray, tmp_path: Path) -> None:
    kind = _duckdb(tmp_path)
    kind.build(documents[:50], dims=[16, WIDTH])
    with pytest.raises(UserError, match="DuckDB holds a table 'docs' already; give another name,"):
        kind.build(documents[:10], dims=[16, WIDTH])
    assert len(kind.load()) == 50


def test_lancedb_overwrites_nothing(documents: np.ndarray, tmp_path: Path) -> None:
    kind = _lancedb(tmp_path)
    kind.build(documents[:50], dims=[16, WIDTH])
    with pytest.raises(UserError, match="LanceDB holds a table 'docs' already; give another name,"):
        kind.build(documents[:10], dims=[16, WIDTH])
    assert len(kind.load()) == 50


def test_usearch_keeps_the_old_store_when_a_build_fails(documents: np.ndarray, tmp_path: Path) -> None:
    kind = _usearch(tmp_path)
    kind.build(documents[:50], dims=[16, WIDTH])
    with pytest.raises(UserError, match="is no prefix of them"):
        kind.build(documents[:10], dims=[16, 200])
    assert len(kind.load()) == 50
    kind.build(documents[:10], dims=[8, WIDTH])
    assert len(kind.load()) == 10
    assert len(list((tmp_path / "docs").iterdir())) == 2  # the manifest and the newest build


def test_a_usearch_folder_that_is_not_whole(documents: np.ndarray, tmp_path: Path) -> None:
    kind = _usearch(tmp_path)
    kind.build(documents[:50], dims=[16, WIDTH])
    for name in ("vectors.npy", "ids.npy", "prefixes.usearch"):
        path = next((tmp_path / "docs").glob(f"build-*/{name}"))
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2])
        with pytest.raises(UserError, match="build the store anew"):
            kind.load()
        path.write_bytes(content)
    assert len(kind.load()) == 50


def test_the_graph_of_usearch_finds_nearly_all(documents: np.ndarray, queries: np.ndarray, tmp_path: Path) -> None:
    kind = _usearch(tmp_path)
    exact = kind.build(documents, dims=[16, WIDTH]).search(queries, 10).ids
    found = UsearchStore.load(tmp_path / "docs").search(queries, 10).ids
    assert np.mean([np.isin(row, best).mean() for row, best in zip(found, exact, strict=True)]) > 0.9


def test_foreign_tables(documents: np.ndarray, tmp_path: Path) -> None:
    duckdb = pytest.importorskip("duckdb", reason=REASON.format("duckdb"))
    connection = duckdb.connect()
    connection.execute("CREATE TABLE people (id BIGINT, photo FLOAT[4])")
    with pytest.raises(UserError, match=r"has no table 'docs' \(it has 'people'\); make it with build."):
        DuckDBStore.load(connection, "docs")
    with pytest.raises(UserError, match="Table 'people' holds 'photo', where a cascade needs two or more"):
        DuckDBStore.load(connection, "people")


def test_duckdb_stays_in_the_schema_in_use(documents: np.ndarray) -> None:
    duckdb = pytest.importorskip("duckdb", reason=REASON.format("duckdb"))
    connection = duckdb.connect()
    connection.execute("CREATE SCHEMA archive; USE archive")
    DuckDBStore.build(connection, 'the "docs"', documents[:50], dims=[16, WIDTH])
    assert DuckDBStore.load(connection, 'the "docs"').search(documents[3:4], 1).ids.tolist() == [[3]]
    connection.execute("USE main")
    with pytest.raises(UserError, match="DuckDB has no table"):
        DuckDBStore.load(connection, 'the "docs"')


def test_duckdb_sees_what_others_write(documents: np.ndarray, tmp_path: Path) -> None:
    kind = _duckdb(tmp_path)
    store = kind.build(documents[:50], dims=[16, WIDTH])
    assert store.search(documents[3:4], 1).ids.tolist() == [[3]]
    store.connection.execute("DELETE FROM docs WHERE id = 3")
    assert store.search(documents[3:4], 1).ids.tolist() != [[3]]
    assert len(store) == 49


def test_lancedb_takes_dims_in_between(documents: np.ndarray, queries: np.ndarray, tmp_path: Path) -> None:
    kind = _lancedb(tmp_path)
    kind.build(documents, dims=[8, WIDTH])
    hits = kind.load(dims=[8, 24, WIDTH], shortlists=[400, 50]).search(queries, 10)
    for query, ids in zip(queries, hits.ids, strict=True):
        np.testing.assert_array_equal(ids, oracle(documents, query, [8, 24, WIDTH], [400, 50, 10])[0])
    with pytest.raises(UserError, match=r"dims is \[16, 96\], but table 'docs' holds \[8, 96\]; start and end there."):
        kind.load(dims=[16, WIDTH])


def without_whole_vector(store: DuckDBStore | LanceDBStore, row: np.ndarray) -> None:
    """Add a row with the first dim alone."""
    first = (row[:16] / np.linalg.norm(row[:16])).tolist()
    if isinstance(store, DuckDBStore):
        store.connection.execute("INSERT INTO docs (id, dim_16) VALUES (999, ?::FLOAT[16])", [first])
    else:
        store.table.add([{"id": 999, "dim_16": first, f"dim_{WIDTH}": None}])


@pytest.mark.parametrize("make", [_duckdb, _lancedb], ids=["duckdb", "lancedb"])
def test_a_row_without_the_whole_vector_is_not_found(
    make: Callable[[Path], Kind], documents: np.ndarray, queries: np.ndarray, tmp_path: Path
) -> None:
    store = make(tmp_path).build(documents[:50], dims=[16, WIDTH], shortlists=[51])
    before = store.search(queries, 50)
    without_whole_vector(store, queries[0])
    after = store.search(queries, 50)
    np.testing.assert_array_equal(after.ids, before.ids)
    np.testing.assert_allclose(after.scores, before.scores, atol=1e-6)
    with pytest.raises(UserError, match="The store found 50 of 51 vectors; rows that lack a vector are counted but"):
        store.search(queries, 51)


def test_a_missing_package_is_named(documents: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("usearch", "usearch.index", "qdrant_client"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(OptionalDependencyError, match=r"pip install 'matryoshka-st\[stores\]'"):
        UsearchStore.build(tmp_path / "docs", documents, dims=[16, WIDTH])
    with pytest.raises(OptionalDependencyError, match=r"pip install 'matryoshka-st\[stores\]'"):
        QdrantStore.load(None, "docs")  # type: ignore[arg-type]


def test_the_python_of_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for package in STORES:
        pytest.importorskip({"qdrant": "qdrant_client"}.get(package, package), reason=REASON.format(package))
    monkeypatch.chdir(tmp_path)
    (block,) = re.findall(r"^```python\n(.*?)^```$", README.read_text(), re.DOTALL | re.MULTILINE)
    exec(compile(block, str(README), "exec"), {})  # noqa: S102
