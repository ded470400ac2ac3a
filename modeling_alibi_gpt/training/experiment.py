"""The configuration of one training run: model, text, batches and the arguments of transformers."""

import dataclasses
import os
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from modeling_alibi_gpt.runtime.config import Count, Positive, UserPath, config_dataclass
from modeling_alibi_gpt.runtime.remote_code import refuse_hub_kernel


@config_dataclass
class ModelSection:
    """The model to train: ``config`` for a new one, or ``checkpoint`` for fine-tuning."""

    config: UserPath | dict[str, Any] | None = None
    """Path of a ``config.json``, or its contents as a mapping."""
    checkpoint: UserPath | None = None
    """Folder or Hub name of a model to fine-tune."""
    overrides: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Config fields that override those of ``config`` or ``checkpoint``, such as ``alibi_beta``."""
    attn_implementation: str | None = None
    """Attention back end used in training; null uses the model's default."""

    def __post_init__(self) -> None:
        if (self.config is None) == (self.checkpoint is None):
            raise ValueError("model: set exactly one of 'config' (a new model) and 'checkpoint' (fine-tuning)")
        refuse_hub_kernel(self.attn_implementation)


@config_dataclass
class LengthStage:
    """A stage of training at a shorter length."""

    length_tokens: Annotated[int, Field(ge=3)]
    """Length of a training sequence, in tokens; must divide ``train_length_tokens``."""
    num_steps: Count
    """Optimizer steps at this length."""


@config_dataclass
class MixturePart:
    """One source of a mixture."""

    source: str
    """A source, as in ``data.source``."""
    weight: Positive
    """Share of the training sequences, relative to the other weights."""
    train_split: str | None = None
    """Training split of this source; null uses ``data.train_split``."""
    text_column: str | None = None
    """Text column of this source; null uses ``data.text_column``."""


@config_dataclass
class DataSection:
    """The text to train on, and how it is cut into training sequences."""

    source: str | list[MixturePart] = "stdlib"
    """``stdlib``; ``text:GLOB`` (plain or .gz), ``jsonl:GLOB`` or ``parquet:GLOB``, with commas between several globs;
    or ``hub:NAME[:CONFIG][@REVISION]``. A list of such sources with weights is a mixture: training sequences are drawn
    by weight until one source is exhausted. A synthetic task replaces the text: ``task:copy``, ``task:recall`` or
    ``task:passkey``, optionally with ``,KEY=NUMBER`` (see ``data/tasks.py``); its loss is on the answers only."""
    train_split: str = "train"
    """Training split of a row source (``jsonl:``, ``parquet:``, ``hub:``): a split, or an expression such as
    ``train[:1%]``."""
    validation_source: str | None = None
    """Separate source for validation: local files are read whole, other sources by their validation split. Null uses
    the validation split of ``source`` or, if it has none, holds out part of the training split."""
    validation_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Fraction held out of a source without a validation split."""
    validation_unit: Literal["tail", "document"] | None = None
    """What is held out: the ``tail`` of each document, or whole documents (``document``), chosen by a hash of their
    text so that adding documents does not move the others. Null is ``tail`` for ``text:`` and ``document`` for rows.
    """
    text_column: str = "text"
    """Column of a row source that holds the text."""
    tokenizer: UserPath | None = None
    """Name or folder of a tokenizer. ``train`` trains a byte-level BPE of the model's vocabulary size on the training
    split. Null uses the checkpoint's tokenizer, or ``train`` for a new model."""
    tokenizer_sample_bytes: Annotated[int, Field(ge=1)] | None = 100_000_000
    """Bytes of a larger text that a tokenizer is trained on, spread evenly over the text; null is all of it."""
    train_length_tokens: Annotated[int, Field(ge=3)]
    """Length of a training sequence, in tokens."""
    train_length_schedule: list[LengthStage] | None = None
    """Stages with shorter sequences at the start of training, one after the other, before ``train_length_tokens``. A
    stage cuts each sequence into equal parts, so the tokens of a step and their order do not change."""
    isolate_documents: bool = False
    """Restrict attention to each document of a packed sequence."""
    max_train_tokens: int | None = None
    """Cut the training split to this many tokens. A source is then read and hashed only as far as needed (at least
    34 MB); expressions such as ``train[:1%]`` are read whole."""
    max_validation_tokens: int | None = None
    """Cut the validation split to this many tokens."""
    streaming: bool = False
    """Read ``source`` during training, in its own order and repeatedly until ``training.max_steps``, without caching
    it on disk. Needs a ``validation_source`` and an existing ``tokenizer``."""
    num_streams: Annotated[int, Field(ge=1)] = 1
    """Number of readers of a stream. Each reads its share of the files or documents, and provides its share of every
    global batch. Training is the same on any number of processes that divides this number."""
    num_shuffled_documents: Annotated[int, Field(ge=1)] = 1
    """Number of documents that a reader buffers and shuffles at a time, alike for every seed. 1 keeps their order."""
    num_proc: Annotated[int, Field(ge=1)] = 1
    """Number of processes that tokenize text; does not change the tokens."""
    cache_dir: str = "~/.cache/alibi_gpt"
    """Folder of trained tokenizers. Tokenized text is cached by ``datasets``."""

    def __post_init__(self) -> None:
        for name in ("max_train_tokens", "max_validation_tokens"):
            if (limit := getattr(self, name)) is not None and limit < self.train_length_tokens:
                raise ValueError(
                    f"data.{name} must be at least data.train_length_tokens ({self.train_length_tokens}), got {limit}"
                )
        for stage in self.train_length_schedule or ():
            if self.train_length_tokens % stage.length_tokens:
                raise ValueError(
                    "data.train_length_schedule: length_tokens must divide data.train_length_tokens "
                    f"({self.train_length_tokens}), got {stage.length_tokens}"
                )
        self._check_streaming()
        if not self.source:
            raise ValueError("data.source must name a source or at least one part of a mixture, got none")

    def _check_streaming(self) -> None:
        if not self.streaming and self.num_shuffled_documents > 1:
            raise ValueError("data.num_shuffled_documents applies to streams: expected data.streaming true, got false")
        refusals = {
            "one source of text:, jsonl:, parquet: or hub:": isinstance(self.source, str) and self.source != "stdlib",
            "a data.validation_source": self.validation_source is not None,
            "data.max_train_tokens null: training.max_steps sets how much is read": self.max_train_tokens is None,
        }
        for wanted, is_met in refusals.items():
            if self.streaming and not is_met:
                raise ValueError(f"data.streaming needs {wanted}")

    @property
    def parts(self) -> list[tuple["DataSection", float]]:
        """One section per source, with its share of the training sequences; a single source has share 1."""
        if isinstance(self.source, str):
            return [(self, 1.0)]
        total = sum(part.weight for part in self.source)
        return [
            (
                dataclasses.replace(
                    self,
                    source=part.source,
                    train_split=part.train_split or self.train_split,
                    text_column=part.text_column or self.text_column,
                ),
                part.weight / total,
            )
            for part in self.source
        ]

    @property
    def source_name(self) -> str:
        """The source, or the sources of a mixture with their weights, in one line."""
        if isinstance(self.source, str):
            return self.source
        return " + ".join(f"{part.weight:g} {part.source}" for part in self.source)


@config_dataclass
class MilestoneSection:
    """When to measure perplexity on the validation text during training, at the training length and beyond."""

    steps: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]
    """Optimizer steps after which to measure; 0 is before training."""
    lengths_tokens: Annotated[list[Count], Field(min_length=1)]
    """Lengths to measure at, in tokens, under both protocols."""

    def __post_init__(self) -> None:
        for name in ("steps", "lengths_tokens"):
            if len(set(numbers := getattr(self, name))) < len(numbers):
                raise ValueError(f"milestones.{name} must be different numbers, got {numbers}")


@config_dataclass
class BetaSchedule:
    """ALiBi's beta as a function of the step: from ``start`` to ``end`` by a constant ratio per step."""

    start: Positive
    """Beta of the first step."""
    end: Positive
    """Beta of the finished model."""
    share: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Fraction of the training over which beta changes; it then stays at ``end``."""

    def beta_at(self, step: int, num_steps: int) -> float:
        """Beta after ``step`` of ``num_steps`` optimizer steps."""
        progress = step / (self.share * num_steps)
        return self.end if progress >= 1 else self.start * (self.end / self.start) ** progress


@config_dataclass
class EarlyStoppingSection:
    """When to stop training early; ``training.eval_strategy`` sets when it is evaluated."""

    patience_evaluations: Count
    """Number of consecutive evaluations without improvement after which training stops."""
    min_improvement_nats: Annotated[float, Field(ge=0)] = 0.0
    """Smallest decrease of ``training.metric_for_best_model`` (``nats_per_token`` by default) that is an improvement.
    """


def _with_user_path(training: dict[str, Any]) -> dict[str, Any]:
    """Expand the "~" of the folder, as ``TrainingArguments`` does."""
    folder = training.get("output_dir")
    return {**training, "output_dir": os.path.expanduser(folder)} if isinstance(folder, str) else training


@config_dataclass
class ExperimentConfig:
    """One training run: the settings of ``alibi-gpt train``, and the contents of ``best.json`` of a sweep."""

    name: str
    """Name of the run in records and figures."""
    model: ModelSection
    """The model to train."""
    data: DataSection
    """The text to train on."""
    global_batch_size: int | None = None
    """Sequences per optimizer step, over all processes and accumulation steps. The same file then gives the same
    training, except for dropout masks, on any number of processes that, times ``gradient_accumulation_steps``, divides
    it. Null uses ``per_device_train_batch_size`` of ``training``."""
    position_learning_rate: Positive = 1.0
    """Multiple of ``training.learning_rate`` for the parameters of positions: beta and slopes of ALiBi, the tables of
    T5 and shared offsets, the parameters of KERPLE and FIRE. A value other than 1 trains them without weight decay.
    It is refused if the model has no such parameters."""
    alibi_beta_schedule: BetaSchedule | None = None
    """Schedule of ALiBi's beta during training, such as ``{start: 32, end: 1}``; the finished model has ``end``.
    Refused for other position methods, and if beta or slopes are learned. Null keeps ``alibi_beta`` fixed."""
    precision: Literal["float32", "bfloat16", "auto"] = "float32"
    """``float32``, ``bfloat16`` (autocast), or ``auto``, which times both on the first batch and uses the faster one
    for the whole run. ``auto`` needs a single process, and is refused in sweeps and for streams."""
    loss_chunk_tokens: Count | None = None
    """Number of tokens whose logits are in memory at once during training. The loss is then computed in chunks, with
    the logits of each chunk computed twice, which saves several times the memory of all logits. 1024 is a good value
    for a large vocabulary. Null computes all logits at once."""
    early_stopping: EarlyStoppingSection | None = None
    """When to stop training early; null never does."""
    peak_flops: Positive | None = None
    """Peak FLOPs per second of one device in the precision of the training, from which the log gets ``mfu``, the
    fraction used. Null uses the peak of known GPUs in bfloat16, and logs no ``mfu`` elsewhere."""
    milestones: MilestoneSection | None = None
    """What to measure during training; null measures nothing. The records go to ``milestones.jsonl``."""
    training: Annotated[dict[str, Any], AfterValidator(_with_user_path)]
    """Fields of ``transformers.TrainingArguments``, listed at
    https://huggingface.co/docs/transformers/main_classes/trainer. Those that would break exact resume or the fixed
    batch are refused, such as ``bf16`` (set ``precision``). ``save_steps`` is a multiple of ``logging_steps``."""
    plugins: list[str] | None = None
    """Modules to import first, for example to register a position method."""

    def __post_init__(self) -> None:
        if self.data.streaming:
            self._check_streaming()
        if self.training.get("hub_token") is not None:
            raise ValueError(
                "training.hub_token is a secret, but experiments are written to files that may be published: leave it "
                "out and set HF_TOKEN in the environment, or log in with 'hf auth login'"
            )
        if not self.training.get("output_dir"):
            raise ValueError("training.output_dir is missing: set the folder of the run")

    def _check_streaming(self) -> None:
        refusals = {
            "training.max_steps: a stream has no end": (self.training.get("max_steps") or 0) > 0,
            "training.dataloader_num_workers 0: a checkpoint records what was read": not self.training.get(
                "dataloader_num_workers"
            ),
            "precision float32 or bfloat16: auto is timed on the first batch": self.precision != "auto",
        }
        for wanted, is_met in refusals.items():
            if not is_met:
                raise ValueError(f"data.streaming needs {wanted}")
