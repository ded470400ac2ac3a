"""What one training run is told: the model, the text, the batches and the arguments of transformers."""

import dataclasses
import math
from typing import Any

from modeling_alibi_gpt.runtime.remote_code import refuse_hub_kernel


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelSection:
    """Where the model comes from: a new one from ``config``, or fine-tuning from ``checkpoint``; exactly one of them.

    Attributes:
        config: Path of a ``config.json``, or the mapping itself.
        checkpoint: Folder or Hub name of a model to go on from.
        overrides: Fields of ``AlibiGPTConfig`` laid over the above, such as ``alibi_beta``.
        attn_implementation: Attention back end used in training; null is the model's default.
    """

    config: str | dict[str, Any] | None = None
    checkpoint: str | None = None
    overrides: dict[str, Any] = dataclasses.field(default_factory=dict)
    attn_implementation: str | None = None

    def __post_init__(self) -> None:
        if (self.config is None) == (self.checkpoint is None):
            raise ValueError(
                "model: give either 'config' (a new model) or 'checkpoint' (fine-tuning), not both or none"
            )
        refuse_hub_kernel(self.attn_implementation)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataSection:
    """Which text is read and how it is cut into training sequences.

    Attributes:
        source: ``stdlib``, ``text:GLOB`` or ``hub:NAME[:CONFIG]``.
        validation_source: Another source, read whole (``text:``) or by its validation split. Without it the
            validation split of ``source`` is used.
        validation_fraction: What a ``text:`` source without ``validation_source`` holds back of each document, and a
            ``hub:`` source without a validation split of the documents of its train split, by a hash of their texts.
        text_column: Column of a ``hub:`` source that holds the text.
        tokenizer: Name or folder of a tokenizer; ``train`` trains a byte-level BPE of the model's vocabulary size
            on the training split; null takes the checkpoint's own (``train`` for a new model).
        train_length_tokens: Length of a training sequence.
        isolate_documents: Keep attention inside each document of a packed sequence.
        max_train_tokens: Cut the training split to this many tokens.
        max_validation_tokens: Cut the validation split to this many tokens.
        cache_dir: Where trained tokenizers are kept. Tokenised text is cached by ``datasets``.
    """

    source: str = "stdlib"
    validation_source: str | None = None
    validation_fraction: float = 0.1
    text_column: str = "text"
    tokenizer: str | None = None
    train_length_tokens: int
    isolate_documents: bool = False
    max_train_tokens: int | None = None
    max_validation_tokens: int | None = None
    cache_dir: str = "~/.cache/alibi_gpt"

    def __post_init__(self) -> None:
        if self.train_length_tokens < 3:
            raise ValueError(f"data.train_length_tokens must be at least 3, got {self.train_length_tokens}")
        for name in ("max_train_tokens", "max_validation_tokens"):
            if (limit := getattr(self, name)) is not None and limit < self.train_length_tokens:
                raise ValueError(
                    f"data.{name} must be at least data.train_length_tokens ({self.train_length_tokens}), got {limit}"
                )
        if not 0 < self.validation_fraction < 1:
            raise ValueError(f"data.validation_fraction must lie between 0 and 1, got {self.validation_fraction}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class MilestoneSection:
    """When a training stops to read the validation text, at its own length and beyond.

    Attributes:
        steps: After how many optimizer steps; 0 is before training.
        lengths_tokens: Lengths at which it is read, under both protocols.
    """

    steps: list[int]
    lengths_tokens: list[int]

    def __post_init__(self) -> None:
        if min(self.steps, default=-1) < 0 or len(set(self.steps)) < len(self.steps):
            raise ValueError(f"milestones.steps must be different numbers of at least 0, got {self.steps}")
        if min(self.lengths_tokens, default=0) < 1:
            raise ValueError(f"milestones.lengths_tokens must be at least 1, got {self.lengths_tokens}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExperimentConfig:
    """One training run: what ``scripts/train.py`` reads and what ``best.json`` of a sweep holds.

    Attributes:
        name: Name of the run in records and figures.
        model: Where the model comes from.
        data: Which text it learns.
        global_batch_size: Sequences per optimizer step over all processes and accumulation steps, so that the same
            file gives the same training (but for dropout masks) on one process or several. Null leaves
            ``per_device_train_batch_size`` as ``training`` says.
        position_learning_rate: Multiple of ``training.learning_rate`` at which what positions learn is trained: beta
            and slopes of ALiBi, the tables of T5 and shared offsets, the parameters of KERPLE and FIRE. Any but 1
            trains them without weight decay, and is refused where a model has none of them.
        precision: ``float32``, ``bfloat16`` (autocast), or ``auto``, which times both on the first batch, takes the
            faster and keeps to it.
        milestones: What is measured along the way; null is nothing. The records go to ``milestones.jsonl``.
        training: Fields of ``transformers.TrainingArguments``, verbatim.
        plugins: Modules to import first, such as one that registers a position method.
    """

    name: str
    model: ModelSection
    data: DataSection
    global_batch_size: int | None = None
    position_learning_rate: float = 1.0
    precision: str = "float32"
    milestones: MilestoneSection | None = None
    training: dict[str, Any]
    plugins: list[str] | None = None

    def __post_init__(self) -> None:
        if self.precision not in ("float32", "bfloat16", "auto"):
            raise ValueError(f"precision must be float32, bfloat16 or auto, got {self.precision!r}")
        check_position_learning_rate(self.position_learning_rate)
        if self.training.get("hub_token") is not None:
            raise ValueError(
                "training.hub_token is a secret, and an experiment is written to files that people publish: leave it "
                "out and set HF_TOKEN in the environment, or log in with 'hf auth login'"
            )
        if not self.training.get("output_dir"):
            raise ValueError("training.output_dir is missing: say where the run is written")


def check_position_learning_rate(position_learning_rate: float) -> None:
    """Raise a ValueError unless this is a multiple that a learning rate can be given."""
    if not 0 < position_learning_rate < math.inf:
        raise ValueError(f"position_learning_rate must be a finite number above 0, got {position_learning_rate}")
