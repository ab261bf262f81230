"""Find mteb tasks, load their data once, and hand every view an instance of its own.

A task instance holds the state of its random generators (clustering samples with it), so one that is evaluated twice
gives the second model other documents than the first.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, Union

from matryoshka_st.errors import OptionalDependencyError, UserError, did_you_mean
from matryoshka_st.evaluation.mirror import point_at_mirror

if TYPE_CHECKING:
    from mteb.abstasks.abstask import AbsTask

TaskLike: TypeAlias = Union[str, "AbsTask", type["AbsTask"]]
"""A task's name in mteb, a task, or its class."""
_CODES = "give three-letter codes (ISO 639-3) such as eng"


def require_mteb() -> None:
    """Check that mteb can be imported.

    Raises:
        OptionalDependencyError: If it is not installed.
    """
    try:
        import mteb  # noqa: F401
    except ImportError as error:
        raise OptionalDependencyError("mteb", "eval") from error


def select_tasks(
    names: Sequence[str] = (),
    *,
    benchmark: str | None = None,
    types: Sequence[str] = (),
    languages: Sequence[str] | None = None,
) -> list[TaskLike]:
    """Tasks by name, those of a benchmark, and all text tasks of some types; each once.

    Args:
        names: As mteb knows them.
        benchmark: As mteb knows it (``MTEB(eng, v2)``); an average over other tasks counts as those tasks.
        types: ``STS``, ``Retrieval``, ...; without ``languages`` every task of the type.
        languages: Only tasks of a type that have one of them.

    Raises:
        UserError: If a benchmark, a type or a language is unknown, or nothing was named.
    """
    import mteb
    from mteb.abstasks.aggregated_task import AbsTaskAggregate

    found: dict[str, TaskLike] = {name: name for name in names}
    for task in benchmark_tasks(benchmark) if benchmark else ():
        for part in task.tasks if isinstance(task, AbsTaskAggregate) else [task]:
            found.setdefault(part.metadata.name, part)
    if types:
        _check_types(types)
        try:
            of_type = mteb.get_tasks(
                task_types=list(types),  # type: ignore[arg-type]
                languages=list(languages) if languages else None,
                modalities=["text"],
                exclusive_modality_filter=True,
                exclude_aggregate=True,
            )
        except ValueError as error:
            reason = str(error).partition(",")[0]
            raise UserError(f"The languages are {' '.join(languages or ())} ({reason}); {_CODES}.") from error
        for task in of_type:
            found.setdefault(task.metadata.name, task.metadata.name)
    if not found:
        raise UserError("No task was named; give --tasks, --benchmark or --task-types.")
    return list(found.values())


def benchmark_tasks(name: str) -> Sequence[AbsTask]:
    """The tasks of a benchmark.

    Args:
        name: As mteb knows it, for example ``MTEB(eng, v1)``.

    Raises:
        UserError: If mteb has no such benchmark.
    """
    import mteb

    try:
        return list(mteb.get_benchmark(name).tasks)
    except KeyError as error:
        known = [benchmark.name for benchmark in mteb.get_benchmarks()]
        raise UserError(
            f"mteb has no benchmark {name!r}{did_you_mean(name, known) or '; mteb.get_benchmarks() lists them all.'}"
        ) from error


def find_task(
    task: TaskLike, *, languages: Sequence[str] | None = None, splits: Sequence[str] | None = None
) -> AbsTask:
    """Turn a name or class into a task instance, restricted to the wanted languages and splits.

    Args:
        task: A name that mteb knows, a task that was not evaluated yet, or a class of such tasks.
        languages: Keep the subsets in these languages (``eng``, ``deu-Latn``); default: all.
        splits: Splits to score; default: ``test`` where the task has one, else all of its evaluation splits.

    Raises:
        UserError: If the name is unknown, the task is not a single text task, or no subset is in the languages.
    """
    found = _task_by_name(task) if isinstance(task, str) else _own_instance(task)
    name = found.metadata.name
    _check_kind(found)
    # The task was asked for, so mteb need not point to its successor, once per dim.
    found.metadata = found.metadata.model_copy(update={"superseded_by": None})
    if languages:
        try:
            found = found.filter_languages(languages)
        except ValueError as error:
            raise UserError(
                f"Task {name!r} has no subset in {' '.join(languages)}; it has {_some(found.metadata.languages)}; "
                f"{_CODES}."
            ) from error
    if splits is None and "test" in found.eval_splits:
        splits = ["test"]
    return found.filter_eval_splits(splits or found.eval_splits)


def load_task(task: AbsTask, mirror: Path | None = None) -> None:
    """Load a task's data, from the mirror if there is one.

    Raises:
        UserError: If the data, a subset or a split of it is missing.
    """
    from mteb.abstasks import AbsTaskRetrieval

    if not task.data_loaded:
        if mirror is not None:
            point_at_mirror(task, mirror)
        try:
            task.load_data()
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
            raise UserError(
                f"The dataset {task.metadata.dataset['path']!r} of task {task.metadata.name!r} could not be loaded "
                f"({reason}); check the connection, or give a local copy with --dataset-mirror."
            ) from error
    if isinstance(task, AbsTaskRetrieval):
        task.convert_v1_dataset_format_to_v2(num_proc=None)
    _check_parts(task)


def fresh_task(task: AbsTask) -> AbsTask:
    """A twin that shares the data of a task never evaluated, with random generators of its own."""
    twin = copy.copy(task)
    twin.rng_state, twin.np_rng = copy.deepcopy((task.rng_state, task.np_rng))
    return twin


def subsets_of(task: AbsTask) -> Mapping[str, Any]:
    """The loaded data by subset; mteb leaves the level of subsets out where there is only one."""
    data = task.dataset or {}
    single = "default" not in data and list(task.hf_subsets) == ["default"]
    return {"default": data} if single else data


def _task_by_name(name: str) -> AbsTask:
    import mteb
    from mteb.get_tasks import _TASKS_REGISTRY

    try:
        return mteb.get_task(name)
    except KeyError as error:
        hint = did_you_mean(name, _TASKS_REGISTRY)
        raise UserError(f"mteb has no task {name!r}{hint or '; mteb.get_tasks() lists them all.'}") from error


def _check_types(types: Sequence[str]) -> None:
    from mteb.get_tasks import _TASKS_REGISTRY

    known = sorted({task.metadata.type for task in _TASKS_REGISTRY.values() if task.metadata.modalities == ["text"]})
    for name in types:
        if name not in known:
            raise UserError(f"mteb has no text task of type {name!r}{did_you_mean(name, known)}; use {_some(known)}.")


def _own_instance(task: AbsTask | type[AbsTask]) -> AbsTask:
    return task() if isinstance(task, type) else fresh_task(task)


def _check_kind(task: AbsTask) -> None:
    from mteb.abstasks.aggregated_task import AbsTaskAggregate

    name = task.metadata.name
    if isinstance(task, AbsTaskAggregate):
        parts = _some([part.metadata.name for part in task.tasks])
        raise UserError(f"Task {name!r} is an average over other tasks; name those instead: {parts}.")
    if task.metadata.modalities != ["text"]:
        raise UserError(
            f"Task {name!r} works on {', '.join(task.metadata.modalities)}; only text tasks can be evaluated."
        )


def _check_parts(task: AbsTask) -> None:
    """A mirror may hold fewer subsets or splits than the hub; mteb would fail on them midway with a KeyError."""
    subsets = subsets_of(task)
    for wanted in task.hf_subsets:
        if wanted not in subsets:
            raise UserError(
                f"Task {task.metadata.name!r} has no data for its subset {wanted!r}, only for {_some(subsets)}; "
                "choose the languages to score, for example --languages eng."
            )
        for split in task.eval_splits:
            if split not in subsets[wanted]:
                raise UserError(
                    f"Task {task.metadata.name!r} has no split {split!r}; its data has {_some(subsets[wanted])}."
                )


def _some(names: object, most: int = 12) -> str:
    listed = [str(name) for name in names]  # type: ignore[attr-defined]
    return ", ".join(listed[:most]) + (f" and {len(listed) - most} more" if len(listed) > most else "")
