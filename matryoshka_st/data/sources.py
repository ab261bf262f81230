"""Where rows come from: a file, a folder, the hub, or the docstrings of installed packages."""

from __future__ import annotations

from pathlib import Path

from matryoshka_st.data.files import read_csv, read_jsonl
from matryoshka_st.data.rows import Rows
from matryoshka_st.errors import UserError, did_you_mean

DOCSTRINGS = "docstrings"
SUFFIXES = (".parquet", ".csv", ".tsv", ".jsonl", ".json")


def read_source(source: str, split: str) -> Rows:
    """Read rows, unchecked. Only a name that is neither a path nor ``docstrings`` may use the network.

    Args:
        source: A path, a hub id (``owner/name`` or ``owner/name:config``), or ``docstrings``.
        split: The split to read where the source has several.

    Raises:
        UserError: If there is no such source, it cannot be read, or it has no rows.
    """
    if source == DOCSTRINGS:
        from matryoshka_st.docstrings import load_docstrings

        return Rows.of_dataset(source, load_docstrings(split))
    path = Path(source).expanduser()
    if path.is_dir():
        rows = _read_folder(path, split)
    elif path.exists():
        rows = _read_file(path)
    elif _looks_like_path(source):
        raise UserError(
            f"Data file {source!r} does not exist; give an existing file or folder, a hub id or '{DOCSTRINGS}'."
        )
    else:
        rows = _read_hub(source, split)
    if not rows.numbers:
        raise _no_rows(source)
    return rows


def _looks_like_path(source: str) -> bool:
    path = Path(source)
    anchored = source.startswith((".", "/", "~")) or source.count("/") > 1
    return anchored or path.suffix in SUFFIXES or ("/" not in source and "." in source)


def _read_file(path: Path) -> Rows:
    try:
        return _read_format(path)
    except OSError as error:
        raise UserError(
            f"{path} cannot be read ({_first_line(error)}); check the file and its permissions."
        ) from error


def _read_format(path: Path) -> Rows:
    match path.suffix.lower():
        case ".parquet":
            return _read_parquet(path)
        case ".csv":
            return read_csv(path, ",")
        case ".tsv":
            return read_csv(path, "\t")
        case ".jsonl" | ".json":
            return read_jsonl(path)
        case suffix:
            raise UserError(f"{path} ends in {suffix!r}, which cannot be read; use one of {', '.join(SUFFIXES)}.")


def _read_parquet(path: Path) -> Rows:
    import pyarrow as pa
    import pyarrow.parquet as pq
    from datasets import Dataset
    from datasets.exceptions import DatasetsError

    try:
        if path.stat().st_size == 0 or pq.read_metadata(path).num_rows == 0:
            raise _no_rows(path)
        dataset = Dataset.from_parquet(str(path))
    except (pa.ArrowException, DatasetsError) as error:
        raise UserError(f"{path} is not a readable parquet file ({_first_line(error)}); write it again.") from error
    return Rows.of_dataset(str(path), dataset)


def _read_folder(path: Path, split: str) -> Rows:
    from datasets import DatasetDict, load_dataset, load_from_disk
    from datasets.exceptions import DatasetsError

    saved = (path / "state.json").exists() or (path / "dataset_dict.json").exists()
    try:
        dataset = load_from_disk(str(path)) if saved else load_dataset(str(path), split=split)
    except (OSError, ValueError, DatasetsError) as error:
        raise UserError(
            f"Folder {path} cannot be read as a dataset with a split {split!r} ({_first_line(error)}); "
            f"name one of its files ({', '.join(SUFFIXES)})."
        ) from error
    if isinstance(dataset, DatasetDict):
        if split not in dataset:
            raise UserError(f"Folder {path} has no split {split!r}; it has {', '.join(dataset)}.")
        dataset = dataset[split]
    return Rows.of_dataset(str(path), dataset)


def _read_hub(source: str, split: str) -> Rows:
    from datasets import load_dataset
    from datasets.exceptions import DatasetsError

    name, _, config = source.partition(":")
    try:
        dataset = load_dataset(name, config or None, split=split)
    except (OSError, ValueError, DatasetsError) as error:
        raise UserError(
            f"Hub dataset {source!r} with split {split!r} could not be loaded ({_first_line(error)}); "
            f"check the id, the split and the network, or give a local file{did_you_mean(source, [DOCSTRINGS])}."
        ) from error
    return Rows.of_dataset(source, dataset)


def _no_rows(source: str | Path) -> UserError:
    return UserError(f"{source} has no rows; give a dataset with at least one pair.")


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
