"""Classifiers saved beside the model whose prefixes they read: ``matryoshka_head/`` in the model's folder.

Plain sentence-transformers loads such a folder as ever; the head is read by :meth:`LabelHead.load`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from matryoshka_st.errors import UserError
from matryoshka_st.files import whole_folder, write_json
from matryoshka_st.losses.classification import MatryoshkaLinear

FOLDER = "matryoshka_head"
WEIGHTS = "model.safetensors"
CONFIG = "config.json"
SCHEMA_VERSION = 1

Embeddings = Float[Tensor, "n width"] | Float[np.ndarray, "n width"]


@dataclass(frozen=True, eq=False)
class LabelHead:
    """Classifiers on every prefix, and the names of their classes.

    Args:
        linear: The classifiers.
        labels: The name of each class.

    Example:
        ::

            head = LabelHead.load("output/banking/model")
            head.predict(model.encode(["I lost my card."]), dim=64)

    Raises:
        UserError: If there is not one name for each class.
    """

    linear: MatryoshkaLinear
    labels: tuple[str, ...]

    def __post_init__(self) -> None:
        classes = self.linear.num_classes
        if len(self.labels) != classes or len(set(self.labels)) != classes:
            raise UserError(
                f"The head has {classes} classes and {len(set(self.labels))} different labels; give each class one."
            )

    @property
    def dims(self) -> tuple[int, ...]:
        """The prefixes that it can read, ascending."""
        return self.linear.dims

    @torch.no_grad()
    def probabilities(self, embeddings: Embeddings, dim: int | None = None) -> Float[Tensor, "n classes"]:
        """The probability of each class.

        Args:
            embeddings: Vectors of ``dim`` coordinates or more, at any length.
            dim: The prefix to read. Default: all coordinates of the vectors.

        Raises:
            UserError: If the head cannot read that prefix, or a vector is not finite.
        """
        weight = next(self.linear.parameters())
        x = torch.as_tensor(embeddings).to(device=weight.device, dtype=weight.dtype)
        if not x.isfinite().all():
            raise UserError("The embeddings hold values that are not finite; repair the model or drop those texts.")
        return self.linear.logits(x, x.shape[-1] if dim is None else dim).softmax(dim=-1)

    def predict(self, embeddings: Embeddings, dim: int | None = None) -> list[str]:
        """The most probable label of each vector; see :meth:`probabilities`."""
        return [self.labels[i] for i in self.probabilities(embeddings, dim).argmax(dim=-1).tolist()]

    def save(self, model_folder: str | Path) -> None:
        """Write ``matryoshka_head/`` into the folder of a model, whole or not at all.

        Raises:
            UserError: If there is no such folder.
        """
        if not Path(model_folder).is_dir():
            raise UserError(f"Model folder {str(model_folder)!r} does not exist; save the model first.")
        with whole_folder(Path(model_folder).resolve() / FOLDER) as partial:
            weights = {name: tensor.contiguous() for name, tensor in self.linear.state_dict().items()}
            save_file(weights, partial / WEIGHTS)
            config = {**self.linear.get_config_dict(), "labels": list(self.labels)}
            write_json(partial / CONFIG, {"schema_version": SCHEMA_VERSION, **config})

    @classmethod
    def load(cls, model_folder: str | Path, device: str = "cpu") -> LabelHead:
        """Read the head of a saved model.

        Raises:
            UserError: If there is none, or a file of it is missing, cut short or foreign.
        """
        folder = Path(model_folder) / FOLDER
        if not folder.is_dir():
            raise UserError(f"{model_folder} holds no {FOLDER}; train one with train_scripts/finetune_classifier.py.")
        linear, labels = _built(folder)
        try:
            linear.load_state_dict(load_file(folder / WEIGHTS))
        except (OSError, SafetensorError, RuntimeError) as error:
            reason = str(error).strip().partition("\n")[0].rstrip(":")
            raise UserError(f"{folder / WEIGHTS} cannot be read ({reason}); train or copy the model again.") from error
        return cls(linear.eval().to(device), labels)


def _built(folder: Path) -> tuple[MatryoshkaLinear, tuple[str, ...]]:
    path = folder / CONFIG
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        version, labels = config["schema_version"], _strings(config["labels"])
        linear = MatryoshkaLinear(
            config["matryoshka_dims"], config["num_classes"], config["efficient"], scale=config["scale"]
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} does not describe a head ({type(error).__name__}: {error}); train or copy the model again."
        ) from error
    if version != SCHEMA_VERSION:
        raise UserError(
            f"{path} has schema_version {version!r} and this release reads {SCHEMA_VERSION}; "
            "install the release that wrote it."
        )
    return linear, labels


def _strings(labels: Sequence[str]) -> tuple[str, ...]:
    if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
        raise TypeError("labels is no list of strings")
    return tuple(labels)
