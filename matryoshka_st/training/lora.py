"""LoRA (Hu et al. 2021, arXiv 2106.09685) through peft: adapters while training, plain weights in the saved model."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from sentence_transformers import SentenceTransformer

from matryoshka_st.errors import OptionalDependencyError, UserError
from matryoshka_st.training.arguments import ModelArguments


def add_lora(model: SentenceTransformer, arguments: ModelArguments) -> None:
    """Freeze the transformer and add LoRA adapters to all its linear layers, in place.

    Raises:
        UserError: If rank or dropout are out of range.
        OptionalDependencyError: If peft is not installed.
    """
    if arguments.lora_r < 1:
        raise UserError(f"lora_r is {arguments.lora_r}; give a rank of 1 or more, 16 is usual.")
    if not 0 <= arguments.lora_dropout < 1:
        raise UserError(f"lora_dropout is {arguments.lora_dropout}; give a rate of 0 or more and below 1.")
    try:
        from peft import LoraConfig, TaskType
    except ImportError as error:
        raise OptionalDependencyError("peft", "peft") from error
    if arguments.model_revision is not None:
        _name_snapshot(model, arguments.model_revision)
    model.add_adapter(
        LoraConfig(
            task_type=TaskType.FEATURE_EXTRACTION,
            r=arguments.lora_r,
            lora_alpha=arguments.lora_alpha,
            lora_dropout=arguments.lora_dropout,
            target_modules="all-linear",
        )
    )


def merge_lora(model: SentenceTransformer) -> None:
    """Fold the adapters into the weights they adapt, in place, leaving a plain transformer."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    transformer: Any = model.transformers_model
    for name, layer in list(transformer.named_modules()):
        if isinstance(layer, BaseTunerLayer):
            layer.merge()
            transformer.set_submodule(name, layer.get_base_layer())
    # what from_pretrained noted about the adapter's files, which would make it save weights under an adapter's names
    transformer._hf_peft_config_loaded = False
    transformer._weight_conversions = None
    del transformer.peft_config


def _name_snapshot(model: SentenceTransformer, revision: str) -> None:
    """Have the adapter's files name the revision's folder as their base; a hub id there would mean its ``main``."""
    transformer: Any = model.transformers_model
    if not Path(transformer.name_or_path).is_dir():
        transformer.name_or_path = snapshot_download(
            transformer.name_or_path,
            revision=revision,
            cache_dir=os.getenv("SENTENCE_TRANSFORMERS_HOME"),
            local_files_only=True,
        )
