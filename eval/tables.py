"""The tables of README.md and eval/README.md that come from committed results: python eval/tables.py [--check].

Each stands between ``<!-- table: NAME -->`` and ``<!-- end of table -->`` and is written by this script alone.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from statistics import fmean, stdev
from typing import Annotated, Any

import typer

from matryoshka_st.evaluation.published import published_scores
from matryoshka_st.evaluation.runs import read_runs

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "eval" / "results"
PAGES = (ROOT / "README.md", ROOT / "eval" / "README.md")
ADA, LARGE = ("openai/text-embedding-ada-002", 1536), ("openai/text-embedding-3-large", 256)
STS7 = ("STS12", "STS13", "STS14", "STS15", "STS16", "STSBenchmark", "SICK-R")
IN_DOMAIN = {
    "Banking77": "Banking77Classification",
    "MassiveIntent": "MassiveIntentClassification",
    "MassiveScenario": "MassiveScenarioClassification",
    "TweetSentiment": "TweetSentimentExtractionClassification",
}

FEW_SHOT = "fewshot_massive_intent.json"
TASKS, PAPERS = "bench_retrieval_tasks_cpu.json", "bench_retrieval_papers_cpu.json"
OWN_TEXTS = {"Banking77Classification": "banking77", "MassiveIntentClassification": "amazon_massive_intent"}
ABLATION = {  # label and folders of each row
    "untrained": "minilm",
    "untrained, PCA": "ablation/pca",
    "the rotation alone": "ablation/start-*",
    "sentence-transformers": "ablation/host-*",
    "InfoNCE at 384, then cut": "ablation/plain-*",
    "InfoNCE at 384, then rotated": "ablation/after-*",
    "InfoNCE at 256 alone": "ablation/fixed-256-*",
    "InfoNCE at 64 alone": "ablation/fixed-64-*",
    "ours, no rotation": "ablation/unrotated-*",
    "ours, rotation by singular vectors": "ablation/singular-*",
    "ours, rotation without pairs": "ablation/neighbours-*",
    "ours, rotation with examples": "ablation/examples-*",
    "ours, rotation with service docs": "ablation/services-*",
    "ours, service docs and a rotation for retrieval": "ablation/routed-*",
    "ours, longer rotation": "ablation/longer-*",
    "ours, no teacher": "ablation/untaught-*",
    "ours, nothing kept of the start": "ablation/unshared-*",
    "ours, self-distillation": "ablation/distilled-*",
    "ours, spread-out": "ablation/spread-*",
    "ours": "ablation/ours-*",
}
WHOLE_TEXTS = {
    "untrained, 256 tokens": "minilm",
    "untrained, 512 tokens": "whole-texts/untrained",
    "ours, with service docs, 256 tokens": "ablation/services-*",
    "ours, with service docs, 512 tokens": "whole-texts/services-*",
}
ON_A_GPU = {
    "untrained": "minilm",
    "sentence-transformers": "h100/host-??",
    "sentence-transformers, as many texts": "h100/host-13-long",
    "ours": "h100/general-??",
    "ours, seed 13 again": "h100/general-13-again",
    "ours, neighbours first": "h100/neighbours-??",
    "ours, neighbours first, full width weighted": "h100/neighbours-13-wide",
    "for similarity, few dims": "h100/sts-*",
}
ELSEWHERE = (
    "BIOSSES",
    "MLQuestions",
    "MassiveIntentClassification",
    "MassiveScenarioClassification",
    "TweetSentimentExtractionClassification",
)
KEPT = 0.995  # share of nDCG@10

Scores = Mapping[tuple[str, int], float]
"""Main score x100 by task and dim."""


@cache
def measured(name: str) -> Scores:
    """Float32 scores of committed results; of a baseline's basis where the folder holds nothing else."""
    runs = [run for run in read_runs([RESULTS / name]) if run.precision == "float32"]
    plain = [run for run in runs if not run.variant] or runs
    scores = {(run.task, run.dim): 100 * run.score for run in plain}
    return {**scores, **_with_sts7(scores)}


def published(model: tuple[str, int]) -> dict[str, float]:
    """Scores behind the published averages, by task."""
    scores = {score.task: score.score for score in published_scores() if (score.model, score.dim) == model}
    return {**scores, "STS-7": fmean(scores[task] for task in STS7)}


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table; the first column is text, the others are figures."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def in_domain() -> str:
    """Four classification tasks at each dim, beside ada-002 at its full width; what beats it is bold."""
    ours, untrained, ada = measured("minilm-in-domain"), measured("minilm"), published(ADA)
    dims = sorted({dim for task, dim in ours if task in IN_DOMAIN.values()}, reverse=True)
    rows = [
        [f"fine-tuned, {dim} dims", *(_against(ours[task, dim], ada[task]) for task in IN_DOMAIN.values())]
        for dim in dims
    ]
    rows.append(["untrained, 384 dims", *(_against(untrained[task, 384], ada[task]) for task in IN_DOMAIN.values())])
    rows.append(["ada-002, 1536 dims", *(f"{ada[task]:.2f}" for task in IN_DOMAIN.values())])
    least = [min((dim for dim in dims if ours[task, dim] > ada[task]), default=None) for task in IN_DOMAIN.values()]
    rows.append(["fewest dims above ada-002", *("none" if dim is None else str(dim) for dim in least)])
    return markdown(["", *IN_DOMAIN], rows)


def zero_shot() -> str:
    """Mean of seven STS tasks per dim, beside two published models; what beats ada-002 is bold."""
    ada, large = published(ADA)["STS-7"], published(LARGE)["STS-7"]
    dims = [384, 256, 128, 64, 32]
    rows = [
        [label, *(_against(measured(name)["STS-7", dim], ada) for dim in dims)]
        for label, name in (
            ("untrained, cut", "minilm"),
            ("fine-tuned", "minilm-sts"),
            ("fine-tuned for few dims", "h100/sts-13"),
        )
    ]
    rows.append([f"ada-002 at 1536: {ada:.2f}", *[""] * len(dims)])
    rows.append([f"3-large at 256: {large:.2f}", *[""] * len(dims)])
    return markdown(["STS-7", *map(str, dims)], rows)


def elsewhere() -> str:
    """What fine-tuning for similarity did to each task."""
    return _gains("minilm-sts", "fine-tuned for similarity (beside untrained)")


def general() -> str:
    """What the general recipe did to each task."""
    return _gains("ablation/ours-13", "general recipe (beside untrained)")


def general_services() -> str:
    """What service docs in the rotation changed on each task."""
    return _gains("ablation/services-13", "with service docs (beside the recipe without)", beside="ablation/ours-13")


def general_routes() -> str:
    """What a rotation for queries and documents alone changed on each task."""
    return _gains("ablation/routed-13", "with both (beside service docs alone)", beside="ablation/services-13")


def unbeaten() -> str:
    """Zero-shot models at the full width, where published models have the task too; what beats ada-002 is bold."""
    ada, large = published(ADA), published(LARGE)
    ours = {"for similarity": "minilm-sts", "general": "ablation/services-13"}
    scores = [measured(name) for name in ours.values()]
    rows = [
        [
            task,
            *(_against(run[task, 384], ada[task]) if (task, 384) in run else "-" for run in scores),
            f"{ada[task]:.2f}",
            f"{large[task]:.2f}",
        ]
        for task in ("STS-7", "BIOSSES", "SciFact", *IN_DOMAIN.values())
    ]
    return markdown(["", *(f"{label}, 384" for label in ours), "ada-002, 1536", "3-large, 256"], rows)


def own_texts() -> str:
    """The untrained model, cut, and rotated on the unlabelled texts of each task's own train split."""
    dims = [384, 256, 128, 64, 32, 16]
    rows = []
    for task, name in OWN_TEXTS.items():
        for label, folder in {
            "cut": "minilm",
            "rotated, singular vectors": f"rotated/{name}-0",
            "rotated, learned": f"rotated/{name}-600",
        }.items():
            scores = measured(folder)
            cells = [f"{scores[task, dim]:.2f}" if (task, dim) in scores else "-" for dim in dims]
            rows.append([f"{task.removesuffix('Classification')}, {label}", *cells])
    return markdown(["untrained MiniLM", *map(str, dims)], rows)


def ablation() -> str:
    """Training at equal budget: mean over seeds and their standard deviation, per task and dim."""
    return _over_seeds(ABLATION, ("STS-7", "SciFact", "Banking77Classification"))


def ablation_elsewhere() -> str:
    """The five further tasks, for the rows that were scored on them."""
    return _over_seeds(ABLATION, ELSEWHERE)


def whole_texts() -> str:
    """Reading 512 tokens of each document instead of 256."""
    return _over_seeds(WHOLE_TEXTS, ("SciFact",))


def loss_on_a_gpu() -> str:
    """The loss beside sentence-transformers' looped one on a GPU, without and with a cache: time and memory."""
    rows = []
    for dtype in ("float32", "bfloat16"):
        for case in _cases(f"bench_loss_h100_{dtype}.json"):
            seconds, peak = case["seconds_median"], case["peak_extra_bytes"]
            cells = [f"{1e3 * seconds[name]:.1f}" for name in ("ours", "looped")]
            for suffix in ("", "_cached"):
                cells += [f"{found[f'looped{suffix}'] / found[f'ours{suffix}']:.1f}x" for found in (seconds, peak)]
            rows.append([f"{dtype}, {case['batch']}", str(len(case["dims"])), *cells])
    head = ["type, B", "K", "ours, ms", "looped, ms", "faster", "less memory"]
    return markdown([*head, "cached: faster", "cached: less memory"], rows)


def on_a_gpu() -> str:
    """The same of the larger runs."""
    return _over_seeds(ON_A_GPU, ("STS-7", "SciFact", "Banking77Classification"))


def general_on_a_gpu() -> str:
    """What the general recipe for a GPU did to each task."""
    return _gains("h100/general-13", "general recipe for a GPU (beside untrained)")


def neighbours_on_a_gpu() -> str:
    """What learning the neighbours first changed on each task."""
    return _gains("h100/neighbours-13", "neighbours first (beside the recipe without)", beside="h100/general-13")


def _over_seeds(patterns: Mapping[str, str], tasks: Sequence[str]) -> str:
    rows_of = {
        label: [measured(str(folder.relative_to(RESULTS))) for folder in sorted(RESULTS.glob(pattern))]
        for label, pattern in patterns.items()
    }
    dims = [384, 256, 128, 64, 32, 16]
    rows = []
    for task in tasks:
        for label, all_runs in rows_of.items():
            runs = [run for run in all_runs if any((task, dim) in run for dim in dims)]
            if not runs:
                continue
            whole = [dim for dim in dims if all((task, dim) in run for run in runs)]
            cells = [[run[task, dim] for run in runs] if dim in whole else [] for dim in dims]
            rows.append([f"{task}, {label}", str(len(runs)), *map(_mean_and_spread, cells)])
    return markdown(["", "seeds", *map(str, dims)], rows)


def _mean_and_spread(values: Sequence[float]) -> str:
    if not values:
        return "-"
    return f"{fmean(values):.2f}" + (f" ±{stdev(values):.2f}" if len(values) > 1 else "")


def retrieval() -> str:
    """For each set of documents the shortlists that keep 99.5 % of nDCG@10, beside exact search."""
    rows = []
    for case in _cases(TASKS) + _cases(PAPERS):
        for way in case["ways"]:
            if "fails" in way:
                continue
            scores = way["ndcg_at_10"]
            rows.append(
                [
                    f"{case['name']}, {case['documents']:,}: {way['way']}, {way['basis']}",
                    " ".join(map(str, way["dims"])),
                    " ".join(map(str, way["shortlists"])),
                    f"{100 * scores['ours']:.2f} of {100 * scores['exact']:.2f}",
                    *(f"{way[key]:.1f}x" for key in ("operation_ratio", "clock_ratio_batch", "clock_ratio_single")),
                    f"{way['ram_bytes_per_million'] / 1e6:,.0f}",
                ]
            )
    head = ["documents, shortlist", "dims", "lengths", "nDCG@10 of exact", "fewer operations", "faster, batch"]
    return markdown([*head, "faster, single", "MB per million"], rows)


def adaptive() -> str:
    """Adaptive classification: accuracy and the dims it takes, beside the full width and the oracle."""
    rows = []
    for name, case in _read("adaptive_classification.json")["cases"].items():
        rows.append(
            [f"{name}: all {max(case['dims'])} dims", str(max(case["dims"])), _percent(case["accuracy_per_dim"][-1])]
        )
        for label, found in case["cascades"].items():
            rows.append([f"{name}: {label}", f"{found['expected_dims']:.1f}", _percent(found["accuracy"])])
        oracle = case["oracle"]
        rows.append([f"{name}: oracle", f"{oracle['expected_dims']:.1f}", _percent(oracle["accuracy"])])
    return markdown(["test split", "expected dims", "accuracy x100"], rows)


def heads() -> str:
    """MRL and MRL-E heads beside models of one fixed size, each with the same budget."""
    found = _read("classification_heads_banking77.json")
    runs = {name: run[0] for name, run in found["runs"].items()}
    dims = sorted(map(int, runs["MRL"]["heads"]), reverse=True)
    rows = [
        [
            str(dim),
            *(_percent(runs[name]["heads"][str(dim)]) for name in (f"FF-{dim}", "MRL", "MRL-E")),
            *(_percent(runs[name]["nearest_neighbour"][str(dim)]) for name in (f"FF-{dim}", "MRL", "MRL-E")),
            _percent(found["untrained_linear_probe"][str(dim)]),
        ]
        for dim in dims
    ]
    names = [f"{name}, {kind}" for kind in ("head", "1-NN") for name in ("FF", "MRL", "MRL-E")]
    return markdown(["dims", *names, "untrained, linear probe"], rows)


def few_shot() -> str:
    """Nearest class mean with few examples, and on a long tail, of nested and of fixed models."""
    (runs,) = _read(FEW_SHOT)["cases"].values()
    rows = []
    for kind, label in (("nested", "MRL"), ("fixed", "FF")):
        for run in runs[kind]:
            for tail in run["long_tail"]:
                shots = {s["shots"]: s["accuracies"] for s in run["few_shot"] if s["dim"] == tail["dim"]}
                groups = [tail["accuracies"][name] for name in ("all", "head", "middle", "tail")]
                cells = [_percent(fmean(values)) for values in [*(shots[count] for count in sorted(shots)), *groups]]
                rows.append((-tail["dim"], [f"{tail['dim']}, {label}", *cells]))
    counts = sorted({score["shots"] for score in runs["nested"][0]["few_shot"]})
    head = ["dims", *(f"{count}-shot" for count in counts), "long tail: all", "head", "middle", "tail"]
    return markdown(head, [row for _, row in sorted(rows, key=lambda row: row[0])])


def mlm() -> str:
    """Masked tokens predicted by each prefix, and by always naming the most frequent one."""
    rows = []
    for label, name in (("MiniLM, new head", "mlm_minilm.json"), ("from scratch", "mlm_bert_small.json")):
        found = _read(name)
        for dim in sorted(map(int, found["accuracy"]), reverse=True):
            accuracy, loss = found["accuracy"][str(dim)], found["loss"][str(dim)]
            rows.append([label, str(dim), _percent(accuracy), f"{loss:.3f}", _percent(found["most_frequent"])])
    return markdown(["start", "dims", "accuracy x100", "loss, nats", "most frequent token"], rows)


def claims() -> str:
    """What the MRL paper shows on images, beside what was measured here on text."""
    rows = [
        _adaptive_claim("banking77"),
        _adaptive_claim("amazon_massive_intent"),
        *(
            _retrieval_claim("adaptive retrieval: 16 of 2048 dims, then all; 128x fewer operations, 14x faster", way)
            for way in ("float32 flat", "binary flat", "float32 hnsw")
        ),
        _retrieval_claim(
            "funnel retrieval: as good as one pass at full width, about 128x fewer operations", "float32 funnel"
        ),
        *_heads_claims(),
        _long_tail_claim(),
    ]
    return markdown(["the paper, on images", "here, on text"], rows)


def _adaptive_claim(name: str) -> list[str]:
    case = _read("adaptive_classification.json")["cases"][name]
    found, width = case["cascades"]["tolerance 0.005"], max(case["dims"])
    return [
        "adaptive classification: 76.30 at 37 expected dims, what a fixed model needs 512 for",
        f"{name}: {_percent(found['accuracy'])} at {found['expected_dims']:.0f} expected dims, "
        f"{_percent(case['accuracy_per_dim'][-1])} at {width} ({width / found['expected_dims']:.1f}x); "
        f"oracle {_percent(case['oracle']['accuracy'])}",
    ]


def _retrieval_claim(claim: str, kind: str) -> list[str]:
    """The kind of search on the most documents that it was measured on."""
    measured_on = [
        (case["documents"], way["operation_ratio"], case, way)
        for case in _cases(TASKS) + _cases(PAPERS)
        for way in case["ways"]
        if way["way"] == kind and way.get("ndcg_share", 0) >= KEPT
    ]
    *_, case, best = max(measured_on, key=lambda found: found[:2])
    stages = " ".join(map(str, best["dims"]))
    return [
        claim,
        f"{case['name']}, {case['documents']:,}: {best['way']}, {best['basis']}, dims {stages}: "
        f"{best['operation_ratio']:.0f}x fewer operations, {best['clock_ratio_batch']:.1f}x faster in batches, "
        f"{best['clock_ratio_single']:.1f}x one by one, at "
        f"{100 * best['ndcg_share']:.1f} % of exact nDCG@10",
    ]


def _heads_claims() -> list[list[str]]:
    runs = {name: run[0] for name, run in _read("classification_heads_banking77.json")["runs"].items()}
    dims = sorted(map(int, runs["MRL"]["heads"]))
    apart = {
        name: [100 * (runs[name]["heads"][str(dim)] - runs[f"FF-{dim}"]["heads"][str(dim)]) for dim in dims]
        for name in ("MRL", "MRL-E")
    }
    bytes_of = {name: runs[name]["head_bytes"] for name in apart}
    return [
        [
            "MRL is as accurate as a fixed model of each size, and more at few dims",
            f"Banking77, {dims[0]} to {dims[-1]} dims: {min(apart['MRL']):+.2f} to {max(apart['MRL']):+.2f} points "
            "against FF",
        ],
        [
            "MRL-E (one tied head): within 1 % of MRL from 16 dims up, less memory",
            f"{min(apart['MRL-E']):+.2f} to {max(apart['MRL-E']):+.2f} points against FF; heads of "
            f"{bytes_of['MRL-E']:,} bytes for {bytes_of['MRL']:,}",
        ],
    ]


def _long_tail_claim() -> list[str]:
    (runs,) = _read(FEW_SHOT)["cases"].values()
    tails = {
        kind: {s["dim"]: fmean(s["accuracies"]["tail"]) for run in runs[kind] for s in run["long_tail"]}
        for kind in ("nested", "fixed")
    }
    apart = ", ".join(
        f"{100 * (tails['nested'][dim] - score):+.2f} at {dim}" for dim, score in sorted(tails["fixed"].items())
    )
    return ["up to 2 % better than fixed models on the tail of few-shot classes", f"MassiveIntent, tail: {apart} dims"]


TABLES: dict[str, Callable[[], str]] = {
    "claims": claims,
    "in-domain": in_domain,
    "zero-shot": zero_shot,
    "sts-elsewhere": elsewhere,
    "general": general,
    "retrieval": retrieval,
    "adaptive": adaptive,
    "heads": heads,
    "ablation": ablation,
    "ablation-elsewhere": ablation_elsewhere,
    "general-services": general_services,
    "general-routes": general_routes,
    "unbeaten": unbeaten,
    "whole-texts": whole_texts,
    "loss-on-a-gpu": loss_on_a_gpu,
    "on-a-gpu": on_a_gpu,
    "general-on-a-gpu": general_on_a_gpu,
    "neighbours-on-a-gpu": neighbours_on_a_gpu,
    "own-texts": own_texts,
    "mlm": mlm,
    "few-shot": few_shot,
}


def rewritten(page: str) -> str:
    """The page with every table made anew."""

    def table(match: re.Match[str]) -> str:
        return f"{match[1]}\n\n{TABLES[match[2]]()}\n\n{match[3]}"

    return re.sub(r"(<!-- table: ([\w-]+) -->)\n.*?(<!-- end of table -->)", table, page, flags=re.DOTALL)


def main(
    check: Annotated[bool, typer.Option(help="Write nothing; fail if a page differs from the results")] = False,
) -> None:
    """Write the tables of both pages anew from the committed results."""
    for path in PAGES:
        old = path.read_text(encoding="utf-8")
        new = rewritten(old)
        if check and new != old:
            raise SystemExit(f"{path} does not hold the figures of {RESULTS}; run python eval/tables.py.")
        if not check:
            path.write_text(new, encoding="utf-8")


def _gains(name: str, title: str, beside: str = "minilm") -> str:
    """The score of a model at each dim and how far it is from that of another, by default the untrained one."""
    ours, other = measured(name), measured(beside)
    tasks = ["STS-7", *STS7, *sorted({task for task, _ in ours} - {"STS-7", *STS7})]
    dims = sorted({dim for _, dim in ours if all((task, dim) in ours for task in tasks)}, reverse=True)

    def cell(cut: tuple[str, int]) -> str:
        return f"{ours[cut]:.2f}" + (f" ({ours[cut] - other[cut]:+.2f})" if cut in other else "")

    return markdown([title, *map(str, dims)], [[task, *(cell((task, dim)) for dim in dims)] for task in tasks])


def _read(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((RESULTS / name).read_text(encoding="utf-8"))
    return found


def _cases(name: str) -> list[dict[str, Any]]:
    cases: list[dict[str, Any]] = _read(name)["cases"]
    return cases


def _percent(share: float) -> str:
    return f"{100 * share:.2f}"


def _with_sts7(scores: Scores) -> dict[tuple[str, int], float]:
    dims = {dim for task, dim in scores if all((one, dim) in scores for one in STS7)}
    return {("STS-7", dim): fmean(scores[task, dim] for task in STS7) for dim in dims}


def _against(score: float, other: float) -> str:
    return f"**{score:.2f}**" if score > other else f"{score:.2f}"


if __name__ == "__main__":
    typer.run(main)
