"""LoRA (Hu et al. 2021, arXiv 2106.09685) through peft: adapters while training, plain weights in the saved model."""

from __future__ import annotations

from typing import Any

from sentence_transformers import SentenceTransformer

from matryoshka_st.errors import OptionalDependencyError
from matryoshka_st.training.arguments import ModelArguments


def add_lora(model: SentenceTransformer, arguments: ModelArguments) -> None:
    """Freeze the transformer and add LoRA adapters to all its linear layers, in place.

    Raises:
        OptionalDependencyError: If peft is not installed.
    """
    try:
        from peft import LoraConfig, TaskType
    except ImportError as error:
        raise OptionalDependencyError("peft", "peft") from error
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
