"""What a classifier's run can set, besides model, run and the trainer's own arguments; and reading it from flags."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from sentence_transformers.sentence_transformer.training_args import BatchSamplers

from matryoshka_st.errors import UserError
from matryoshka_st.training.arguments import MatryoshkaTrainingArguments, ModelArguments, RunArguments
from matryoshka_st.training.parsing import check_batches, groups_as_yaml, keep_checkpoints_apart, parse_groups

EPILOG = """examples:
  a head for each prefix (MRL), on a file with the columns text and label:
    finetune_classifier.py --train_data intents.csv --matryoshka_dims 384 128 64 32 --output_dir output/intents
  one head for all prefixes (MRL-E), or the twin of fixed size that a prefix is compared with (FF):
    finetune_classifier.py --train_data intents.csv --efficient --output_dir output/intents-e
    finetune_classifier.py --train_data intents.csv --fixed 64 --output_dir output/intents-64
"""


@dataclass
class LabelledDataArguments:
    """Which labelled texts to train on and to hold out."""

    _argument_group_name = "data"

    train_data: str = field(
        metadata={"help": "Labelled texts: a hub id, a .parquet, .csv, .tsv or .jsonl file, or a folder."}
    )
    eval_data: str | None = field(
        default=None,
        metadata={
            "help": "What accuracy is measured on. Default: texts held out of --train_data, of every class of two or "
            "more as far as --eval_size goes."
        },
    )
    train_split: str = field(default="train", metadata={"help": "Split of --train_data, where it has several."})
    eval_split: str = field(default="validation", metadata={"help": "Split of --eval_data, where it has several."})
    eval_size: int = field(
        default=1000,
        metadata={
            "help": "At most this many texts to evaluate on, drawn at random, and a tenth of those to train on."
        },
    )
    text_column: str | None = field(default=None, metadata={"help": "Default: text, sentence or utterance."})
    label_column: str | None = field(default=None, metadata={"help": "Default: label_text, label or intent."})
    bad_rows: Literal["error", "drop"] = field(
        default="error", metadata={"help": "Rows without text or label: stop, or drop them and say how many."}
    )


@dataclass
class HeadArguments:
    """The heads and their loss."""

    _argument_group_name = "matryoshka heads"

    matryoshka_dims: list[int] | None = field(
        default=None,
        metadata={"help": "Dims to train, e.g. 384 128 64 32. Default: the width and powers of two below."},
    )
    matryoshka_weights: list[float] | None = field(
        default=None, metadata={"help": "One loss weight per dim. Default: 1."}
    )
    efficient: bool = field(
        default=False, metadata={"help": "One head whose weights all prefixes share (MRL-E), instead of one each."}
    )
    scale: float = field(default=20.0, metadata={"help": "1 / temperature, on prefixes of unit length."})
    length_groups: int = field(
        default=1,
        metadata={"help": "Forward passes per batch, texts of like length together, so that less is padded."},
    )
    fixed: int | None = field(
        default=None,
        metadata={
            "help": "Train the fixed-size twin (FF) instead: this dim alone, whatever --matryoshka_dims says; the "
            "saved model is this wide."
        },
    )


@dataclass
class ClassifierTrainingArguments(MatryoshkaTrainingArguments):
    """The trainer's own arguments, with defaults that suit classification."""

    _argument_group_name = "trainer (sentence-transformers' training arguments)"

    per_device_train_batch_size: int = field(default=64, metadata={"help": "Texts per step and device."})
    num_train_epochs: float = field(default=3.0, metadata={"help": "Passes over the training data."})
    learning_rate: float = field(default=5e-5, metadata={"help": "Peak learning rate."})
    batch_sampler: BatchSamplers = field(
        default=BatchSamplers.BATCH_SAMPLER, metadata={"help": "How batches are drawn; plainly at random by default."}
    )


GROUPS: tuple[Any, ...] = (
    ModelArguments,
    LabelledDataArguments,
    HeadArguments,
    RunArguments,
    ClassifierTrainingArguments,
)


@dataclass(frozen=True)
class ClassifierRecipe:
    """A parsed run: all argument groups."""

    model: ModelArguments
    data: LabelledDataArguments
    head: HeadArguments
    run: RunArguments
    trainer: ClassifierTrainingArguments

    @property
    def folder(self) -> Path:
        """The run folder."""
        return Path(str(self.trainer.output_dir)).parent


def parse_classifier(argv: Sequence[str], prog: str = "finetune_classifier.py") -> ClassifierRecipe:
    """Parse flags, and the YAML file that ``--config`` names, into a classifier's recipe.

    Args:
        argv: Flags, without the program's name.
        prog: Name shown by ``--help``.

    Raises:
        UserError: For an unknown key or flag (naming the nearest), a value of the wrong type, or an unreadable file.
        SystemExit: After ``--help``.
    """
    description = "Fine-tune embeddings on labelled texts, with a classifier on every prefix."
    recipe = ClassifierRecipe(*parse_groups(argv, GROUPS, prog=prog, description=description, epilog=EPILOG))
    keep_checkpoints_apart(recipe.trainer, "SentenceTransformer('{model}').push_to_hub('owner/name')")
    check_batches(recipe.trainer)
    if recipe.data.eval_size < 2:
        raise UserError(f"eval_size is {recipe.data.eval_size}; the accuracy needs 2 held-out texts or more.")
    if recipe.model.start_share:
        raise UserError(
            f"start_share is {recipe.model.start_share}, but the heads fit the trained weights alone; leave it out."
        )
    if recipe.head.fixed is not None:
        recipe.head.matryoshka_dims, recipe.head.matryoshka_weights = [recipe.head.fixed], None
    return recipe


def as_yaml(recipe: ClassifierRecipe) -> dict[str, Any]:
    """All of our values and those of the trainer's that differ from its defaults; ``--config`` reads it back."""
    return groups_as_yaml((recipe.model, recipe.data, recipe.head, recipe.run), recipe.trainer)
