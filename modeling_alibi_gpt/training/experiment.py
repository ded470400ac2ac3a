"""What one training run is told: the model, the text, the batches and the arguments of transformers."""

import dataclasses
import math
from typing import Annotated, Any, Literal

from pydantic import Field

from modeling_alibi_gpt.runtime.config import Count, Positive, config_dataclass
from modeling_alibi_gpt.runtime.remote_code import refuse_hub_kernel


@config_dataclass
class ModelSection:
    """Where the model comes from: either ``config``, for a new one, or ``checkpoint``, for fine-tuning."""

    config: str | dict[str, Any] | None = None
    """Path of a ``config.json``, or the mapping itself."""
    checkpoint: str | None = None
    """Folder or Hub name of a model to go on from."""
    overrides: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Fields of ``AlibiGPTConfig`` laid over the above, such as ``alibi_beta``."""
    attn_implementation: str | None = None
    """Attention back end used in training; null is the model's default."""

    def __post_init__(self) -> None:
        if (self.config is None) == (self.checkpoint is None):
            raise ValueError(
                "model: give either 'config' (a new model) or 'checkpoint' (fine-tuning), not both or none"
            )
        refuse_hub_kernel(self.attn_implementation)


@config_dataclass
class LengthStage:
    """A part of a training at another length than the rest."""

    length_tokens: Annotated[int, Field(ge=3)]
    """Length of a training sequence, in tokens; it divides ``train_length_tokens``."""
    num_steps: Count
    """Optimizer steps at this length."""


@config_dataclass
class MixturePart:
    """One of several sources that are mixed."""

    source: str
    """As ``data.source``."""
    weight: float
    """Its share of the training sequences, relative to the other weights."""
    train_split: str | None = None
    """As ``data.train_split``, which null takes."""
    text_column: str | None = None
    """As ``data.text_column``, which null takes."""

    def __post_init__(self) -> None:
        if not 0 < self.weight < math.inf:
            raise ValueError(f"data.source: a weight must be a finite number above 0, got {self.weight}")


@config_dataclass
class DataSection:
    """Which text is read and how it is cut into training sequences."""

    source: str | list[MixturePart] = "stdlib"
    """``stdlib``; ``text:GLOB`` (plain or .gz), ``jsonl:GLOB`` or ``parquet:GLOB``, commas between several globs; or
    ``hub:NAME[:CONFIG][@REVISION]``. Or a list of such sources with weights: training sequences are drawn from them by
    weight until one of them is used up. Or a task in place of a text: ``task:copy``, ``task:recall`` or
    ``task:passkey``, each with ``,KEY=NUMBER`` (see ``data/tasks.py``), whose loss is on the answers alone.
    """
    train_split: str = "train"
    """What is learnt of a source of rows (``jsonl:``, ``parquet:``, ``hub:``): a split or an expression such as
    ``train[:1%]``.
    """
    validation_source: str | None = None
    """Another source: files are read whole, others by their validation split. Without it the validation split of
    ``source`` is used or, where there is none, a share of what is learnt.
    """
    validation_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """How much of a source without validation split is held back."""
    validation_unit: Literal["tail", "document"] | None = None
    """What is held back: the ``tail`` of each document, or whole documents (``document``) by a hash of their texts,
    so that each stays where it is when others are added. Null is ``tail`` for ``text:`` and ``document`` for rows.
    """
    text_column: str = "text"
    """Column of a source of rows that holds the text."""
    tokenizer: str | None = None
    """Name or folder of a tokenizer; ``train`` trains a byte-level BPE of the model's vocabulary size on the training
    split; null takes the checkpoint's own (``train`` for a new model).
    """
    tokenizer_sample_bytes: Annotated[int, Field(ge=1)] | None = 100_000_000
    """How much of a larger text a tokenizer is trained on, evenly spread over all of it; null is all."""
    train_length_tokens: Annotated[int, Field(ge=3)]
    """Length of a training sequence, in tokens."""
    train_length_schedule: list[LengthStage] | None = None
    """Lengths that the training begins with, one after the other, before that of ``train_length_tokens``. A sequence
    is cut into equal parts, so that the tokens of a step and their order stay what they are.
    """
    isolate_documents: bool = False
    """Keep attention inside each document of a packed sequence."""
    max_train_tokens: int | None = None
    """Cut the training split to this many tokens. A source is then read and hashed only as far as needed (at least
    34 MB); expressions such as ``train[:1%]`` are read whole."""
    max_validation_tokens: int | None = None
    """Cut the validation split to this many tokens."""
    streaming: bool = False
    """Read ``source`` while it is trained on, in its own order and again and again until ``training.max_steps``, and
    keep nothing of it on disk. Needs a ``validation_source`` and a ``tokenizer`` that is there."""
    num_streams: Annotated[int, Field(ge=1)] = 1
    """Readers of a stream, each with its share of files or documents and of every global batch. The training is the
    same on any number of processes among which they divide."""
    num_shuffled_documents: Annotated[int, Field(ge=1)] = 1
    """Documents that a reader of a stream holds and shuffles at a time, alike for every seed; 1 keeps their order."""
    num_proc: Annotated[int, Field(ge=1)] = 1
    """Processes that cut text into tokens; their number changes no token."""
    cache_dir: str = "~/.cache/alibi_gpt"
    """Where trained tokenizers are kept. Tokenised text is cached by ``datasets``."""

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
            raise ValueError("data.num_shuffled_documents is of streams: expected data.streaming true, got false")
        refusals = {
            "one source of text:, jsonl:, parquet: or hub:": isinstance(self.source, str) and self.source != "stdlib",
            "a data.validation_source": self.validation_source is not None,
            "data.max_train_tokens null: training.max_steps says how much is read": self.max_train_tokens is None,
        }
        for wanted, is_met in refusals.items():
            if self.streaming and not is_met:
                raise ValueError(f"data.streaming needs {wanted}")

    @property
    def parts(self) -> list[tuple["DataSection", float]]:
        """Sections of one source each, and their shares of the training sequences; a source alone has all."""
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
    """When a training stops to read the validation text, at its own length and beyond."""

    steps: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]
    """After how many optimizer steps; 0 is before training."""
    lengths_tokens: Annotated[list[Count], Field(min_length=1)]
    """Lengths at which it is read, under both protocols."""

    def __post_init__(self) -> None:
        if len(set(self.steps)) < len(self.steps):
            raise ValueError(f"milestones.steps must be different numbers, got {self.steps}")


@config_dataclass
class BetaSchedule:
    """Beta of ALiBi as a function of the steps done: from ``start`` to ``end`` by a constant ratio a step."""

    start: float
    """Beta of the first step."""
    end: float
    """Beta of the finished model."""
    share: float = 1.0
    """Part of the training, above 0 and at most 1, in which it gets there; it stays there for the rest."""

    def __post_init__(self) -> None:
        for name in ("start", "end"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(
                    f"alibi_beta_schedule.{name} must be a finite number above 0, got {getattr(self, name)}"
                )
        if not 0 < self.share <= 1:
            raise ValueError(f"alibi_beta_schedule.share must be above 0 and at most 1, got {self.share}")

    def beta_at(self, step: int, num_steps: int) -> float:
        """Beta after ``step`` of ``num_steps`` optimizer steps."""
        progress = step / (self.share * num_steps)
        return self.end if progress >= 1 else self.start * (self.end / self.start) ** progress


@config_dataclass
class EarlyStoppingSection:
    """When a training ends before its last step; ``training.eval_strategy`` says when it is evaluated."""

    patience_evaluations: Count
    """Evaluations in a row without improvement after which it ends."""
    min_improvement_nats: Annotated[float, Field(ge=0)] = 0.0
    """What counts as an improvement of ``training.metric_for_best_model``, which is ``nats_per_token`` by default."""


@config_dataclass
class ExperimentConfig:
    """One training run: what ``scripts/train.py`` reads and what ``best.json`` of a sweep holds."""

    name: str
    """Name of the run in records and figures."""
    model: ModelSection
    """Where the model comes from."""
    data: DataSection
    """Which text it learns."""
    global_batch_size: int | None = None
    """Sequences per optimizer step over all processes and accumulation steps, so that the same file gives the same
    training (but for dropout masks) on one process or several. Null leaves ``per_device_train_batch_size`` as
    ``training`` says.
    """
    position_learning_rate: Positive = 1.0
    """Multiple of ``training.learning_rate`` at which what positions learn is trained: beta and slopes of ALiBi, the
    tables of T5 and shared offsets, the parameters of KERPLE and FIRE. Any but 1 trains them without weight decay, and
    is refused where a model has none of them.
    """
    alibi_beta_schedule: BetaSchedule | None = None
    """Beta of ALiBi along the training, in place of ``alibi_beta``, such as ``{start: 32, end: 1}``; null keeps it.
    The model ends with ``end``. Refused with another position method and where beta or slopes learn.
    """
    precision: Literal["float32", "bfloat16", "auto"] = "float32"
    """``float32``, ``bfloat16`` (autocast), or ``auto``, which times both on the first batch, takes the faster and
    keeps to it.
    """
    loss_chunk_tokens: Count | None = None
    """Tokens of a batch whose logits exist at once in training. The loss is then computed in parts, the logits of each
    twice, which saves the memory of the logits of all tokens several times over; 1024 is a good value for a large
    vocabulary. Null computes all at once.
    """
    early_stopping: EarlyStoppingSection | None = None
    """When the training ends early; null is never."""
    peak_flops: Positive | None = None
    """FLOPs per second that one device can reach in the precision of the training, of which the log says the share
    that was used (``mfu``). Null takes the peak of known GPUs in bfloat16 and logs no share elsewhere.
    """
    milestones: MilestoneSection | None = None
    """What is measured along the way; null is nothing. The records go to ``milestones.jsonl``."""
    training: dict[str, Any]
    """Fields of ``transformers.TrainingArguments``, verbatim:
    https://huggingface.co/docs/transformers/main_classes/trainer lists them all.
    """
    plugins: list[str] | None = None
    """Modules to import first, such as one that registers a position method."""

    def __post_init__(self) -> None:
        if self.data.streaming:
            self._check_streaming()
        if self.training.get("hub_token") is not None:
            raise ValueError(
                "training.hub_token is a secret, and an experiment is written to files that people publish: leave it "
                "out and set HF_TOKEN in the environment, or log in with 'hf auth login'"
            )
        if not self.training.get("output_dir"):
            raise ValueError("training.output_dir is missing: say where the run is written")

    def _check_streaming(self) -> None:
        refusals = {
            "training.max_steps: a stream has no end": (self.training.get("max_steps") or 0) > 0,
            "training.dataloader_num_workers 0: a checkpoint must know what was read": not self.training.get(
                "dataloader_num_workers"
            ),
            "precision float32 or bfloat16: auto is timed on the first batch": self.precision != "auto",
        }
        for wanted, is_met in refusals.items():
            if not is_met:
                raise ValueError(f"data.streaming needs {wanted}")


def check_position_learning_rate(position_learning_rate: float) -> None:
    """Raise a ValueError unless this is a multiple that a learning rate can be given."""
    if not 0 < position_learning_rate < math.inf:
        raise ValueError(f"position_learning_rate must be a finite number above 0, got {position_learning_rate}")
