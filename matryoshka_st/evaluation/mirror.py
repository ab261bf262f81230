"""Point mteb tasks at a local copy of their datasets, laid out as on the hub: ``<mirror>/mteb/<name>``.

``datasets`` takes a folder before it asks the hub, so a task with a local path makes no request. The revision stays
the official one and is filed with the results.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from matryoshka_st.errors import UserError

if TYPE_CHECKING:
    from mteb.abstasks.abstask import AbsTask


def mirror_folder(task: AbsTask, mirror: Path) -> Path:
    """The folder of the mirror where a task's dataset belongs.

    Args:
        task: Its dataset's hub id is ``<organisation>/<name>``.
        mirror: Root of the mirror.
    """
    return mirror / "mteb" / Path(task.metadata.dataset["path"]).name


def point_at_mirror(task: AbsTask, mirror: Path) -> None:
    """Make this instance load from the mirror; the task's class, shared by others, stays as it is.

    Raises:
        UserError: If the mirror has no folder for the dataset.
    """
    folder = mirror_folder(task, mirror)
    if not folder.is_dir():
        raise UserError(
            f"Task {task.metadata.name!r} needs the folder {str(folder)!r}, which does not exist; "
            f"put a copy of the dataset {task.metadata.dataset['path']!r} there or leave out --dataset-mirror."
        )
    local = {**task.metadata.dataset, "path": str(folder.resolve())}
    task.metadata = task.metadata.model_copy(update={"dataset": local})
