"""Everything a recipe can set, besides the arguments of sentence-transformers' trainer."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

from sentence_transformers import SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.training_args import BatchSamplers


@dataclass
class ModelArguments:
    """Which model to start from."""

    _argument_group_name = "model"

    model_name_or_path: str = field(
        default="bundled",
        metadata={"help": "Hub id, local folder, or 'bundled' (all-MiniLM-L6-v2). A plain BERT gets mean pooling."},
    )
    model_revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit of a hub model."})
    trust_remote_code: bool = field(default=False, metadata={"help": "Run model code that comes with a hub model."})
    max_seq_length: int | None = field(
        default=None,
        metadata={
            "help": "Tokens kept of each text in training and scoring; default: the model's own limit. The saved "
            "model keeps the larger of the two, or --saved_max_seq_length."
        },
    )
    saved_max_seq_length: int | None = field(
        default=None,
        metadata={
            "help": "Tokens that the saved model keeps of each text; at most the model's positions (BERT: 512). For "
            "documents whose end counts, where the model's own limit would cut it off; they take longer to embed."
        },
    )
    rotate: list[str] | None = field(
        default=None,
        metadata={
            "help": "Start from a rotation of the width fitted on these texts, so that the leading coordinates carry "
            "most from step 0: 'train' (the training texts), or any --train_data sources."
        },
    )
    rotate_texts: list[int] = field(
        default_factory=lambda: [5000],
        metadata={
            "help": "With --rotate: at most this many texts of each source to fit on, one number for all or one each."
        },
    )
    rotate_steps: int = field(
        default=0,
        metadata={
            "help": "With --rotate: learn the rotation for so many steps, a minute or two in all, so that each prefix "
            "has the neighbours of the full width; 600 is usual. 0: singular vectors alone."
        },
    )
    rotate_contrast: float = field(
        default=0.0,
        metadata={
            "help": "With --rotate_steps: weight of the contrastive loss of the pairs that --rotate names, "
            "beside the neighbours; 1 is usual and helps retrieval at few dims. 0: none, texts are enough."
        },
    )
    rotate_like: list[str] | None = field(
        default=None,
        metadata={
            "help": "With --rotate_steps: draw the texts near these examples of what will be embedded more "
            "often: a dozen sentences of your own per kind of text, where you have no texts of that kind to name."
        },
    )
    rotate_retrieval: list[str] | None = field(
        default=None,
        metadata={
            "help": "After training, give queries and documents (encode_query, encode_document) a rotation of their "
            "own, fitted on these texts as --rotate's: what few dims hold then suits what is retrieved, whatever "
            "other texts (encode) need. --rotate_steps and --rotate_contrast hold for it too. 'train', or any "
            "--train_data sources."
        },
    )
    rotate_retrieval_texts: list[int] = field(
        default_factory=lambda: [5000],
        metadata={
            "help": "With --rotate_retrieval: at most this many texts of each source, one number for all or one each."
        },
    )
    attn_implementation: str | None = field(
        default=None,
        metadata={
            "help": "Attention kernels while training: eager, sdpa, flash_attention_2; default: transformers' choice. "
            "On a CPU without dropout eager halves a step's time."
        },
    )
    dropout: float | None = field(
        default=None,
        metadata={
            "help": "Dropout while training; default: the model's own. 0 saves a third of a step's time on a CPU."
        },
    )
    start_share: float = field(
        default=0.0,
        metadata={
            "help": "Share of the weights that training started from in the saved model (WiSE-FT): gives up some of "
            "what was learned and keeps more of what the model knew. 0.3 is worth trying; 0: none."
        },
    )
    lora: bool = field(
        default=False, metadata={"help": "Train LoRA adapters (extra: peft), merged into the saved model."}
    )
    lora_r: int = field(default=16, metadata={"help": "LoRA rank."})
    lora_alpha: int = field(default=32, metadata={"help": "LoRA alpha."})
    lora_dropout: float = field(default=0.05, metadata={"help": "LoRA dropout."})


@dataclass
class DataArguments:
    """Which pairs to train on and to hold out."""

    _argument_group_name = "data"

    train_data: list[str] = field(
        default_factory=lambda: ["docstrings"],
        metadata={
            "help": "Pairs: a hub id, a .parquet, .csv or .jsonl file, or 'docstrings' (harvested from installed "
            "packages). Several are trained side by side, each its own batches."
        },
    )
    eval_data: str | None = field(
        default=None,
        metadata={
            "help": "What the scores per dim are measured on: pairs (retrieval), or sentence1, sentence2, score "
            "(STS). Default: pairs held out of --train_data; for docstrings their dev split."
        },
    )
    train_split: str = field(default="train", metadata={"help": "Split of --train_data, where it has several."})
    eval_split: str = field(default="dev", metadata={"help": "Split of --eval_data, where it has several."})
    eval_size: int = field(default=1000, metadata={"help": "At most this many pairs to evaluate on."})
    max_train_rows: list[int] | None = field(
        default=None,
        metadata={
            "help": "Use at most this many training pairs per source, drawn at random: one number for all, or one "
            "for each of --train_data, in the same order; together they set the mix."
        },
    )
    column_order: list[str] | None = field(
        default=None, metadata={"help": "Columns to use, in the order anchor, positive, negative_1, ..."}
    )
    bad_rows: Literal["error", "drop"] = field(
        default="error", metadata={"help": "Rows with empty or non-string text: stop, or drop them and say how many."}
    )


@dataclass
class MatryoshkaArguments:
    """The loss."""

    _argument_group_name = "matryoshka loss"

    objective: Literal["contrastive", "neighbours"] = field(
        default="contrastive",
        metadata={
            "help": "contrastive: each anchor finds its positive. neighbours: every prefix learns which texts of "
            "--train_data are near each other by the full width of the model as it came; no pair is used as a pair. "
            "For few dims, before contrastive training; batches of 1,000 texts, --max_steps 500 and --learning_rate "
            "2e-4 are usual."
        },
    )
    matryoshka_dims: list[int] | None = field(
        default=None,
        metadata={"help": "Dims to train, e.g. 384 256 128 64 32. Default: the width and powers of two below."},
    )
    matryoshka_weights: list[float] | None = field(
        default=None, metadata={"help": "One loss weight per dim. Default: 1."}
    )
    fixed: int | None = field(
        default=None,
        metadata={
            "help": "Train the fixed-size twin (FF) of this recipe: the loss at this dim alone, whatever the recipe "
            "says of several; the saved model is this wide."
        },
    )
    scale: float = field(default=20.0, metadata={"help": "1 / temperature of the softmax."})
    directions: list[str] = field(
        default_factory=lambda: ["query_to_doc"],
        metadata={
            "help": "Of query_to_doc, query_to_query, doc_to_query, doc_to_doc, as in MultipleNegativesRankingLoss."
        },
    )
    partition_mode: Literal["joint", "per_direction"] = field(
        default="joint", metadata={"help": "One softmax over all directions, or one each, averaged."}
    )
    matryoshka_weights_end: list[float] | None = field(
        default=None,
        metadata={
            "help": "Weights at the last step, reached linearly, of the contrastive loss alone: those of "
            "--spread_out_weight and --teacher_weight stay. Default: all stay."
        },
    )
    n_dims_per_step: int = field(
        default=-1,
        metadata={
            "help": "Train so many dims per step, drawn at random, the same everywhere; -1: all. --spread_out_weight "
            "and --teacher_weight take all dims anyway."
        },
    )
    mini_batch_size: int | None = field(
        default=None,
        metadata={
            "help": "Texts per forward pass: caches gradients, so that any --per_device_train_batch_size fits, at the "
            "price of embedding each text twice. Default: no cache."
        },
    )
    mini_batch_num_tokens: int | None = field(
        default=None, metadata={"help": "The same, with mini-batches of about so many tokens."}
    )
    length_groups: int = field(
        default=1,
        metadata={
            "help": "Forward passes per column of a batch, texts of like length together, so that less is padded: "
            "the same loss, dropout aside. 8 suits batches of some hundred texts."
        },
    )
    gather_across_devices: bool = field(
        default=False,
        metadata={"help": "Contrast with the documents of all processes. Needs --dataloader_drop_last."},
    )
    hardness_mode: Literal["in_batch_negatives", "hard_negatives", "all_negatives"] | None = field(
        default=None,
        metadata={"help": "Which negatives weigh more the harder they are, by --hardness_strength. Default: none."},
    )
    hardness_strength: float = field(
        default=0.0, metadata={"help": "With --hardness_mode: how much more; 5 or 9 is usual."}
    )
    exclude_duplicates: bool = field(
        default=False,
        metadata={"help": "Leave texts equal to a row's own out of its negatives, across processes too."},
    )
    margin: float | None = field(
        default=None,
        metadata={
            "help": "Leave out negatives that score within this margin of the positive, or above it. Default: none."
        },
    )
    margin_strategy: Literal["absolute", "relative"] = field(
        default="absolute", metadata={"help": "The margin as it is, or as a share of the positive's score."}
    )
    guide: str | None = field(
        default=None,
        metadata={"help": "Hub id or folder of the model whose scores --margin looks at. Default: its own."},
    )
    distill_weight: float = field(
        default=0.0, metadata={"help": "Weight of the prefixes' divergence from the full width's softmax."}
    )
    spread_out_weight: float = field(
        default=0.0, metadata={"help": "Weight of spread-out regularisation at every dim."}
    )
    teacher: str | None = field(
        default=None,
        metadata={
            "help": "Hub id or folder of the model whose similarities --teacher_weight keeps to. Default: the model "
            "as it is before training."
        },
    )
    teacher_weight: float = field(
        default=0.0,
        metadata={
            "help": "Weight of the divergence of every prefix's softmax over the batch from the teacher's, which "
            "keeps what the teacher knows; 1 is worth trying. Runs the teacher once per step."
        },
    )
    teacher_scale: float = field(
        default=40.0,
        metadata={
            "help": "With --objective neighbours: 1 / temperature of the softmax over the full width's neighbours. "
            "Above --scale, near texts move apart."
        },
    )
    group_size: int = field(
        default=32, metadata={"help": "With --objective neighbours: batches are made of groups of so many near texts."}
    )
    group_among: int = field(
        default=512,
        metadata={
            "help": "With --objective neighbours: a group is drawn from so many texts nearest to one drawn at random. "
            "As many as --group_size: paraphrases; some hundred: one topic."
        },
    )
    engine: Literal["auto", "tiled", "triton"] = field(
        default="auto", metadata={"help": "How the loss is computed; auto takes triton on CUDA where it can."}
    )


@dataclass
class RunArguments:
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
        metadata={"help": "Check model, data, dims and one step on three rows; write nothing."},
    )
    card_samples: bool = field(default=False, metadata={"help": "Let the model card show training rows."})


@dataclass
class MatryoshkaTrainingArguments(SentenceTransformerTrainingArguments):
    """The trainer's own arguments, with defaults that suit contrastive fine-tuning."""

    _argument_group_name = "trainer (sentence-transformers' training arguments)"

    output_dir: str = field(default="output", metadata={"help": "Run folder: model, checkpoints, metrics, plot."})
    per_device_train_batch_size: int = field(default=64, metadata={"help": "Pairs per step and device."})
    per_device_eval_batch_size: int = field(default=64, metadata={"help": "Texts per forward pass in evaluation."})
    num_train_epochs: float = field(default=1.0, metadata={"help": "Passes over the training data."})
    learning_rate: float = field(default=2e-5, metadata={"help": "Peak learning rate."})
    warmup_steps: float = field(default=0.1, metadata={"help": "Warm-up steps, or a share of all steps below 1."})
    batch_sampler: BatchSamplers = field(
        default=BatchSamplers.NO_DUPLICATES,
        metadata={"help": "no_duplicates keeps equal texts out of one batch, where they would be false negatives."},
    )
    eval_strategy: str = field(default="steps", metadata={"help": "When to score the dims during training."})
    eval_steps: float | None = field(default=0.25, metadata={"help": "Every so many steps, or share of all steps."})
    save_strategy: str = field(default="steps", metadata={"help": "When to write a checkpoint."})
    save_steps: float = field(default=0.25, metadata={"help": "Every so many steps, or share of all steps."})
    save_total_limit: int | None = field(default=2, metadata={"help": "Checkpoints kept."})
    logging_steps: float = field(default=0.05, metadata={"help": "Every so many steps, or share of all steps."})
    seed: int = field(default=13, metadata={"help": "Seed of data order, dropout and held-out split."})


class RunRecipe(Protocol):
    """What the recipes of all our fine-tuning runs have."""

    @property
    def model(self) -> ModelArguments:
        """The model to start from."""

    @property
    def run(self) -> RunArguments:
        """How the run behaves."""

    @property
    def trainer(self) -> MatryoshkaTrainingArguments:
        """The trainer's own arguments."""

    @property
    def folder(self) -> Path:
        """The run folder."""


@dataclass(frozen=True)
class Recipe:
    """A parsed run: all argument groups."""

    model: ModelArguments
    data: DataArguments
    matryoshka: MatryoshkaArguments
    run: RunArguments
    trainer: MatryoshkaTrainingArguments

    @property
    def folder(self) -> Path:
        """The run folder."""
        return Path(self.trainer.output_dir).parent

    @property
    def checkpoints(self) -> Path:
        """Where the trainer keeps its checkpoints."""
        return Path(self.trainer.output_dir)
