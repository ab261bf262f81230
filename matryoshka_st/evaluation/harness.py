"""Score every dim of a model on mteb tasks: one encode, standard mteb results, finished work never redone or lost."""

from __future__ import annotations

import contextlib
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, cast

import datasets
from rich.console import Console
from tqdm.auto import tqdm  # type: ignore[import-untyped]

from matryoshka_st.errors import UserError
from matryoshka_st.evaluation.grid import Grid
from matryoshka_st.evaluation.scores import DimScore, per_query_ndcg, score_table
from matryoshka_st.evaluation.tasks import TaskLike, find_task, fresh_task, load_task, require_mteb
from matryoshka_st.export import declared_dims
from matryoshka_st.models import BUNDLED, BUNDLED_NAME, check_device, embedding_width, load_model, weights_hash
from matryoshka_st.nesting import MatryoshkaDims, default_dims

if TYPE_CHECKING:
    from mteb.abstasks import AbsTaskRetrieval
    from mteb.abstasks.abstask import AbsTask
    from mteb.types import EncodeKwargs
    from sentence_transformers import SentenceTransformer

    from matryoshka_st.evaluation.bank import Bank
    from matryoshka_st.evaluation.prefix_view import Cut, PrefixView
    from matryoshka_st.evaluation.results import PerQuery, ResultStore, StoredResult


class UnfinishedError(UserError):
    """Some tasks could not be evaluated; the others were.

    Attributes:
        scores: Those of the tasks that were finished.
    """

    def __init__(self, problems: Sequence[UserError], scores: Sequence[DimScore]) -> None:
        super().__init__(" ".join(str(problem) for problem in problems))
        self.scores = list(scores)


def evaluate_dims(
    model: SentenceTransformer,
    tasks: Sequence[TaskLike],
    dims: Sequence[int],
    *,
    grid: Grid | None = None,
    name: str = "local/model",
    mirror: Path | None = None,
    output: Path | None = None,
    batch_size: int = 32,
    languages: Sequence[str] | None = None,
    splits: Sequence[str] | None = None,
    devices: Sequence[str] | None = None,
    progress: bool = True,
) -> list[DimScore]:
    """Score prefixes of a model's embeddings on mteb tasks.

    Each text goes through the model once for all cuts; the full width is cut, then scaled to unit length. Every
    (task, cut) gives one standard mteb result; those already in ``output`` for the same weights are not run again.
    Memory: the full-width vectors of one task's texts, but of at most 50,000 documents of a corpus at a time, and the
    best documents of each query for each cut.

    Args:
        model: The model at its full width.
        tasks: Names of mteb tasks, tasks not evaluated before, or classes of tasks.
        dims: Prefix lengths, in any order.
        grid: Precisions, baselines and other cuts beside them; default: float32 alone.
        name: ``organisation/name`` under which results are filed; the revision is a hash of the weights.
        mirror: Local copy of the datasets, ``<mirror>/mteb/<name>``; with it no request leaves.
        output: Folder of results, in the layout of mteb's ``ResultCache``; default: nothing is written.
        batch_size: Texts per forward pass.
        languages: Score only the subsets in these languages (``eng``); default: all.
        splits: Splits to score; default: ``test`` where a task has one, else all of its evaluation splits.
        devices: Encode in one process per device (``cuda:0``, ``cuda:1``); default: on the model's own device.
        progress: Show progress bars, if stderr is a terminal.

    Returns:
        One score per task and cut, in the order of ``tasks``, wide dims first.

    Raises:
        OptionalDependencyError: If mteb is not installed.
        UserError: If a dim, a task, a device or an option is not valid; nothing was evaluated.
        UnfinishedError: If the data of some task is missing; the others were evaluated and are in its ``scores``.
        WriteError: If a result cannot be written; nothing else is tried then.
    """
    require_mteb()
    from matryoshka_st.evaluation.bank import Bank
    from matryoshka_st.evaluation.results import ResultStore, WriteError
    from matryoshka_st.evaluation.views import make_views

    if batch_size < 1:
        raise UserError(f"batch_size is {batch_size}; give a whole number of 1 or more.")
    for device in devices or ():
        check_device(device)
    checked = MatryoshkaDims.of(dims, width=embedding_width(model)).dims
    found = [find_task(task, languages=languages, splits=splits) for task in tasks]
    scores: list[DimScore] = []
    problems: list[UserError] = []
    store = ResultStore(output) if output else None
    with Bank(model, devices=devices) as bank:
        views = make_views(
            bank,
            model,
            checked[::-1],
            grid or Grid(),
            name=name,
            revision=weights_hash(model),
            batch_size=batch_size,
        )
        with _progress(len(found) * len(views), progress) as (step, encode_bar):
            encode_kwargs = {"batch_size": batch_size, "show_progress_bar": encode_bar}
            for task in found:
                try:
                    scores += _evaluate_task(task, views, bank, store, mirror, encode_kwargs, step)
                except WriteError:
                    raise
                except UserError as error:
                    problems.append(error)
    if problems:
        raise UnfinishedError(problems, scores)
    return scores


def run_eval(
    model_name_or_path: str,
    tasks: Sequence[TaskLike],
    *,
    dims: Sequence[int] | None = None,
    full_width_only: bool = False,
    grid: Grid | None = None,
    name: str | None = None,
    mirror: Path | None = None,
    output: Path | None = None,
    batch_size: int = 32,
    languages: Sequence[str] | None = None,
    splits: Sequence[str] | None = None,
    device: str | None = None,
    devices: Sequence[str] | None = None,
    prompts: Mapping[str, str] | None = None,
    model_kwargs: Mapping[str, Any] | None = None,
    progress: bool = True,
    console: Console | None = None,
) -> list[DimScore]:
    """Load a model, score its dims, print the table: what ``matryoshka-st eval`` and ``eval/run_mteb.py`` do.

    Args:
        model_name_or_path: A hub id, a folder, or ``bundled``.
        tasks: See :func:`evaluate_dims`, as for the arguments not named here.
        dims: Default: those the model's config declares, else halvings of its width down to 32.
        full_width_only: Score the model's width alone, whatever it declares.
        grid: See :func:`evaluate_dims`.
        name: Default: the hub id, or ``local/<folder name>``.
        mirror: Local copy of the datasets.
        output: Folder of results.
        batch_size: Texts per forward pass.
        languages: Languages to score.
        splits: Splits to score.
        device: Torch device; default: the best one available.
        devices: One process for each.
        prompts: Put before texts, by mteb's names: a task, a type of task, ``query`` or ``document``.
        model_kwargs: Passed on to transformers (``dtype``, ``attn_implementation``, ...).
        progress: Show progress bars, if stderr is a terminal.
        console: Where the table goes; default: stdout.

    Raises:
        UserError: If the model or an argument is not valid.
        UnfinishedError: If some task could not be evaluated; the table of the others was printed.
    """
    model = load_model(model_name_or_path, device=device, model_kwargs=dict(model_kwargs or {}))
    model.prompts = {**model.prompts, **(prompts or {})}
    width = embedding_width(model)
    wanted = [width] if full_width_only else dims or declared_dims(model) or default_dims(width)
    filed_as = name or model_label(model_name_or_path)
    show = (console or Console()).print
    try:
        scores = evaluate_dims(
            model,
            tasks,
            wanted,
            grid=grid,
            name=filed_as,
            mirror=mirror,
            output=output,
            batch_size=batch_size,
            languages=languages,
            splits=splits,
            devices=devices,
            progress=progress,
        )
    except UnfinishedError as error:
        if error.scores:
            show(score_table(error.scores, title=filed_as))
        raise
    show(score_table(scores, title=filed_as))
    return scores


def model_label(name_or_path: str) -> str:
    """The ``organisation/name`` that results of a model are filed under.

    >>> model_label("bundled"), model_label("intfloat/e5-small-v2")
    ('local/all-MiniLM-L6-v2', 'intfloat/e5-small-v2')
    """
    if name_or_path == BUNDLED:
        return f"local/{Path(BUNDLED_NAME).name}"
    folder = Path(name_or_path).expanduser()
    if folder.is_dir():
        return f"local/{folder.resolve().name}"
    return name_or_path if "/" in name_or_path else f"sentence-transformers/{name_or_path}"


def _evaluate_task(
    task: AbsTask,
    views: Sequence[PrefixView],
    bank: Bank,
    store: ResultStore | None,
    mirror: Path | None,
    encode_kwargs: Mapping[str, Any],
    step: Callable[[], object],
) -> list[DimScore]:
    stored = {view: store.load(view.mteb_model_meta, task) if store else None for view in views}
    known = {view: result for view, result in stored.items() if result is not None}
    waiting = [view for view in views if view not in known or not known[view].covers(task)]
    if waiting:
        load_task(task, mirror)
    bank.begin(waiting)
    for view in views:
        if view in waiting:
            ran = _run(view, task, encode_kwargs)
            known[view] = known[view].extended(ran) if view in known else ran
            if store:
                store.save(view.mteb_model_meta, known[view], cut=_record(view, task), encode_kwargs=encode_kwargs)
        step()
    bank.begin([])
    return [_dim_score(view.cut, task, known[view]) for view in views]


def _run(view: PrefixView, task: AbsTask, encode_kwargs: Mapping[str, Any]) -> StoredResult:
    import mteb

    from matryoshka_st.evaluation.results import StoredResult

    view.begin()
    with warnings.catch_warnings():  # labels that a narrow cut never predicts are its score, not news
        warnings.filterwarnings("ignore", module="sklearn")
        results = mteb.evaluate(
            view,
            fresh_task(task),
            cache=None,
            encode_kwargs=cast("EncodeKwargs", dict(encode_kwargs)),  # mteb writes into it
            co2_tracker=False,
            show_progress_bar=False,
        )
    per_query: PerQuery = {}
    for (split, subset), ranking in view.rankings.items():
        qrels = cast("AbsTaskRetrieval", task).dataset[subset][split]["relevant_docs"]
        per_query.setdefault(split, {})[subset] = per_query_ndcg(ranking, qrels)
    view.rankings.clear()
    return StoredResult(results.task_results[0], per_query)


def _record(view: PrefixView, task: AbsTask) -> dict[str, Any]:
    return {**view.record(), "task_type": task.metadata.type, "metric": task.metadata.main_score}


def _dim_score(cut: Cut, task: AbsTask, stored: StoredResult) -> DimScore:
    return DimScore(
        task=task.metadata.name,
        task_type=task.metadata.type,
        metric=task.metadata.main_score,
        dim=cut.dim,
        precision=cut.precision,
        variant=cut.before.name if cut.before else "",
        score=fmean(
            entry["main_score"]
            for split in task.eval_splits
            for entry in stored.result.scores[split]
            if entry["hf_subset"] in task.hf_subsets
        ),
        per_query={
            f"{split}/{subset}/{query}": value
            for split in task.eval_splits
            for subset, queries in stored.per_query.get(split, {}).items()
            if subset in task.hf_subsets
            for query, value in queries.items()
        },
    )


@contextlib.contextmanager
def _progress(total: int, wanted: bool) -> Iterator[tuple[Callable[[], object], bool]]:
    """A bar over (task, dim), and whether encoding may show its own; ``datasets`` shows none of its many."""
    visible = wanted and sys.stderr.isatty()
    silent_before = datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        with tqdm(total=total, desc="Evaluating", unit="score", disable=not visible) as bar:
            yield bar.update, visible
    finally:
        if not silent_before:
            datasets.enable_progress_bars()
