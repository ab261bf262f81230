"""Everything an MLM run can set, besides the arguments of transformers' trainer."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from transformers import TrainingArguments


@dataclass
class MlmModelArguments:
    """A BERT to go on from, or the shape of a new one."""

    _argument_group_name = "model"

    model_name_or_path: str | None = field(
        default=None,
        metadata={
            "help": "BERT to go on from: hub id, local folder, or 'bundled' (all-MiniLM-L6-v2 with a new MLM head). "
            "Default: a new BERT of the shape below."
        },
    )
    tokenizer: str = field(
        default="bundled",
        metadata={"help": "Tokenizer of a new BERT: hub id, local folder or 'bundled' (30,522 words)."},
    )
    hidden_size: int | None = field(default=None, metadata={"help": "Width of a new BERT; default 256."})
    num_hidden_layers: int | None = field(default=None, metadata={"help": "Layers of a new BERT; default 4."})
    num_attention_heads: int | None = field(
        default=None, metadata={"help": "Attention heads of a new BERT; default: one per 64 dims."}
    )
    intermediate_size: int | None = field(
        default=None,
        metadata={"help": "Width inside the feed-forward layers of a new BERT; default: 4 times its own."},
    )
    max_seq_length: int = field(
        default=128, metadata={"help": "Tokens per training example; longer texts become several examples."}
    )
    dropout: float | None = field(
        default=None,
        metadata={
            "help": "Dropout of hidden states and attention; default: the model's own, 0.1 for a new BERT. 0 suits a "
            "few passes over the text, and on CPUs saves the cost of drawing it."
        },
    )


@dataclass
class MlmDataArguments:
    """Which texts to train on and to hold out."""

    _argument_group_name = "data"

    train_data: list[str] = field(
        default_factory=lambda: ["docstrings"],
        metadata={
            "help": "Texts: .txt files (one text a line), .parquet (read from disk as needed), .csv or .jsonl files, "
            "a hub id, or 'docstrings' (harvested from installed packages)."
        },
    )
    text_columns: list[str] | None = field(
        default=None,
        metadata={
            "help": "Columns that hold text; several are joined by a space. Default: 'text', or the only column."
        },
    )
    eval_data: str | None = field(
        default=None,
        metadata={
            "help": "Texts that the dims are scored on. Default: held out of --train_data, or the docstrings' dev."
        },
    )
    train_split: str = field(default="train", metadata={"help": "Split of --train_data, where it has several."})
    eval_split: str = field(default="dev", metadata={"help": "Split of --eval_data, where it has several."})
    eval_size: int = field(default=1000, metadata={"help": "At most this many texts to evaluate on."})
    max_train_texts: int | None = field(default=None, metadata={"help": "Use only this many training texts."})
    bad_rows: Literal["error", "drop"] = field(
        default="error", metadata={"help": "Rows with empty or non-string text: stop, or drop them and say how many."}
    )
    mlm_probability: float = field(default=0.15, metadata={"help": "Share of the tokens to predict."})


@dataclass
class MlmMatryoshkaArguments:
    """The loss."""

    _argument_group_name = "matryoshka loss"

    matryoshka_dims: list[int] | None = field(
        default=None,
        metadata={
            "help": "Dims to train, e.g. 256 128 64 32. Default: the width and powers of two below. The width alone "
            "trains a plain BERT: the baseline that --eval_dims cuts."
        },
    )
    matryoshka_weights: list[float] | None = field(
        default=None, metadata={"help": "One loss weight per dim. Default: 1."}
    )
    eval_dims: list[int] | None = field(
        default=None, metadata={"help": "Dims to score besides the trained ones. Default: none."}
    )
    nest: Literal["encoder", "head"] = field(
        default="encoder",
        metadata={
            "help": "What is cut: the encoder's output, from which sentence embeddings are pooled, or the output of "
            "the MLM head, right before the decoder."
        },
    )


@dataclass
class MlmRunArguments:
    """How the run behaves."""

    _argument_group_name = "run"

    resume: str = field(
        default="auto",
        metadata={
            "help": "auto: go on from the newest complete checkpoint of the same run, if any; never: start over and "
            "set old checkpoints aside; or the path of a checkpoint."
        },
    )
    dry_run: bool = field(
        default=False,
        metadata={"help": "Check model, texts, dims and one step on two texts; train and write nothing."},
    )


@dataclass
class MlmTrainingArguments(TrainingArguments):
    """The trainer's own arguments, with defaults that suit MLM of a small BERT."""

    _argument_group_name = "trainer (transformers' training arguments)"

    output_dir: str = field(default="output", metadata={"help": "Run folder: model, checkpoints, metrics."})
    per_device_train_batch_size: int = field(default=64, metadata={"help": "Examples per step and device."})
    per_device_eval_batch_size: int = field(default=64, metadata={"help": "Examples per forward pass in evaluation."})
    num_train_epochs: float = field(default=1.0, metadata={"help": "Passes over the training texts."})
    learning_rate: float = field(default=5e-4, metadata={"help": "Peak learning rate; 5e-5 to go on from a BERT."})
    weight_decay: float = field(default=0.01, metadata={"help": "Weight decay of AdamW."})
    warmup_steps: float = field(default=0.1, metadata={"help": "Warm-up steps, or a share of all steps below 1."})
    eval_strategy: str = field(default="steps", metadata={"help": "When to score the dims during training."})
    eval_steps: float | None = field(default=0.25, metadata={"help": "Every so many steps, or share of all steps."})
    save_strategy: str = field(default="steps", metadata={"help": "When to write a checkpoint."})
    save_steps: float = field(default=0.25, metadata={"help": "Every so many steps, or share of all steps."})
    save_total_limit: int | None = field(default=2, metadata={"help": "Checkpoints kept."})
    logging_steps: float = field(default=0.05, metadata={"help": "Every so many steps, or share of all steps."})
    remove_unused_columns: bool = field(default=False, metadata={"help": "Keep it off: the masking needs them."})
    seed: int = field(default=13, metadata={"help": "Seed of weights, data order, masks, dropout and held-out texts."})


@dataclass(frozen=True)
class MlmRecipe:
    """A parsed run: all argument groups."""

    model: MlmModelArguments
    data: MlmDataArguments
    matryoshka: MlmMatryoshkaArguments
    run: MlmRunArguments
    trainer: MlmTrainingArguments

    @property
    def folder(self) -> Path:
        """The run folder."""
        return Path(str(self.trainer.output_dir)).parent
