"""Runs made up for the tests of the report."""

from __future__ import annotations

from collections.abc import Iterator

from matryoshka_st.evaluation.runs import Run

BITS = {"float32": 32, "float16": 16, "int8": 8, "binary": 1}
TASKS = {"STS12": "STS", "STSBenchmark": "STS", "SciFact": "Retrieval", "NFCorpus": "Retrieval"}
METRICS = {"STS": "cosine_spearman", "Retrieval": "ndcg_at_10", "Classification": "accuracy"}
LOST = {"float32": 0.0, "float16": 0.0001, "int8": 0.004, "binary": 0.06}


def make_run(score: float = 0.5, **changes: object) -> Run:
    """A run of one view; its bytes follow from dim and precision."""
    values: dict[str, object] = {
        "model": "local/small",
        "revision": "abcdef0123456789",
        "dim": 384,
        "width": 384,
        "precision": "float32",
        "variant": "",
        "task": "STS12",
        "score": score,
        **changes,
    }
    task_type = TASKS.get(str(values["task"]), "Classification")
    values = {"task_type": task_type, "metric": METRICS[task_type], **values}
    bits = BITS[str(values["precision"])] * int(str(values["dim"]))
    return Run(bytes_per_vector=-(-bits // 8), **values)  # type: ignore[arg-type]


def many_runs() -> list[Run]:
    """Three series on four tasks, two of them at every precision; nothing is tied."""
    return list(_many_runs())


def _many_runs() -> Iterator[Run]:
    series = [("local/all-MiniLM-L6-v2", "", 0.8), ("local/all-MiniLM-L6-v2", "pca", 0.55), ("local/trained", "", 0.4)]
    for i, (model, variant, loss) in enumerate(series):
        for precision in BITS if not variant else ["float32"]:
            for dim in (384, 256, 128, 64, 32):
                for j, task in enumerate(TASKS):
                    score = (0.62 + 0.05 * j + 0.01 * i) * (1 - loss * (1 - dim / 384) ** 4) - LOST[precision]
                    yield make_run(score, model=model, variant=variant, dim=dim, precision=precision, task=task)
