"""The tables of README.md and eval/README.md that come from committed results: python eval/tables.py [--check].

Each stands between ``<!-- table: NAME -->`` and ``<!-- end of table -->`` and is written by this script alone.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Annotated

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

Scores = Mapping[tuple[str, int], float]
"""Main score x100 by task and dim."""


def measured(name: str) -> Scores:
    """Float32 scores of committed results."""
    runs = read_runs([RESULTS / name])
    scores = {(run.task, run.dim): 100 * run.score for run in runs if run.precision == "float32" and not run.variant}
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
        for label, name in (("untrained, cut", "minilm"), ("fine-tuned", "minilm-sts"))
    ]
    rows.append([f"ada-002 at 1536: {ada:.2f}", *[""] * len(dims)])
    rows.append([f"3-large at 256: {large:.2f}", *[""] * len(dims)])
    return markdown(["STS-7", *map(str, dims)], rows)


def elsewhere() -> str:
    """What fine-tuning for similarity did to each task: the score at each dim, and the gain over the untrained cut."""
    ours, untrained = measured("minilm-sts"), measured("minilm")
    others = sorted({task for task, _ in ours} - {"STS-7", *STS7})
    dims = sorted({dim for _, dim in ours}, reverse=True)
    rows = [
        [task, *(f"{ours[task, dim]:.2f} ({ours[task, dim] - untrained[task, dim]:+.2f})" for dim in dims)]
        for task in ["STS-7", *STS7, *others]
    ]
    return markdown(["fine-tuned for similarity (beside untrained)", *map(str, dims)], rows)


TABLES: dict[str, Callable[[], str]] = {"in-domain": in_domain, "zero-shot": zero_shot, "sts-elsewhere": elsewhere}


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


def _with_sts7(scores: Scores) -> dict[tuple[str, int], float]:
    dims = {dim for task, dim in scores if all((one, dim) in scores for one in STS7)}
    return {("STS-7", dim): fmean(scores[task, dim] for task in STS7) for dim in dims}


def _against(score: float, other: float) -> str:
    return f"**{score:.2f}**" if score > other else f"{score:.2f}"


if __name__ == "__main__":
    typer.run(main)
