"""Configuration files: YAML (or JSON) to frozen dataclasses and back, where an unknown key is an error."""

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from modeling_alibi_gpt.reporting.parsing import MAX_DEPTH, parse_yaml, read_mapping
from modeling_alibi_gpt.training.remote_code import refuse_hub_kernel


if typing.TYPE_CHECKING:
    from _typeshed import DataclassInstance

Config = TypeVar("Config", bound="DataclassInstance")

_MAX_INT = 2**63 - 1


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
    """

    name: str
    model: ModelSection
    data: DataSection
    global_batch_size: int | None = None
    position_learning_rate: float = 1.0
    precision: str = "float32"
    milestones: MilestoneSection | None = None
    training: dict[str, Any]

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


def load_config(config_class: type[Config], path: str | None, overrides: Sequence[str] = (), **named: Any) -> Config:
    """Read a YAML or JSON file into ``config_class``, with named values and ``a.b=value`` overrides laid over it.

    Args:
        config_class: A keyword-only dataclass, possibly of other dataclasses.
        path: The file; None starts from the defaults.
        overrides: Assignments whose value is read as YAML, e.g. ``training.max_steps=100``.
        **named: Values of top-level keys, such as those that a script has an option for; None leaves the file's.

    Raises:
        ValueError: The file is missing or not a mapping, a key is unknown, or a value has the wrong type.
    """
    values = {} if path is None else read_mapping(path)
    values |= {key: value for key, value in named.items() if value is not None}
    for assignment in overrides:
        _assign(values, assignment)
    return build_config(config_class, values)


def build_config(config_class: type[Config], values: Mapping[str, Any], where: str = "") -> Config:
    """Build a (nested) dataclass from plain values.

    Raises:
        ValueError: A key is unknown or missing, or a value has the wrong type.
    """
    fields = {field.name: field for field in dataclasses.fields(config_class)}
    hints = typing.get_type_hints(config_class)
    arguments = {}
    for key, value in values.items():
        refuse_unknown_key(key, fields, where)
        arguments[key] = convert_value(value, hints[key], f"{where}{key}")
    for name, field in fields.items():
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and name not in arguments:
            raise ValueError(f"key '{where}{name}' is missing")
    return config_class(**arguments)


def convert_value(value: Any, hint: Any, where: str) -> Any:
    """A plain value as the type that a dataclass field is annotated with: a nested dataclass is built from a mapping.

    Raises:
        ValueError: The value has another type; says which was expected at ``where``.
    """
    if value is not None and typing.get_origin(hint) is types.UnionType:
        sections = [kind for kind in typing.get_args(hint) if dataclasses.is_dataclass(kind)]
        hint = sections[0] if sections else hint
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        if not isinstance(value, dict):
            raise ValueError(f"'{where}' must be a mapping, got {value!r}")
        return build_config(hint, value, f"{where}.")
    if not _matches(value, hint):
        expected = hint.__name__ if isinstance(hint, type) else str(hint).replace("typing.", "")
        raise ValueError(f"'{where}' must be {expected}, got {value!r}")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"'{where}' must be a finite number, got {value}")
    if isinstance(value, int) and abs(value) > _MAX_INT:
        raise ValueError(f"'{where}' must be a whole number of at most 64 bits, got one of {value.bit_length()}")
    return float(value) if hint is float else value


def refuse_unknown_key(key: str, known: typing.Iterable[str], where: str = "") -> None:
    """Raise a ValueError that suggests the nearest known key, unless ``key`` is one of them."""
    known = list(known)
    if key in known:
        return
    close = difflib.get_close_matches(str(key), known, n=1)
    hint = f"did you mean '{where}{close[0]}'?" if close else f"expected one of: {', '.join(sorted(known))}"
    raise ValueError(f"unknown key '{where}{key}'; {hint}")


def _assign(values: dict[str, Any], assignment: str) -> None:
    name, separator, text = assignment.partition("=")
    if not separator:
        raise ValueError(f"--set takes KEY=VALUE, got {assignment!r}")
    *parents, leaf = name.split(".")
    if len(parents) > MAX_DEPTH:
        raise ValueError(f"--set {name[:40]}... goes {len(parents)} deep, expected at most {MAX_DEPTH}")
    for parent in parents:
        values = values.setdefault(parent, {})
        if not isinstance(values, dict):
            raise ValueError(f"--set {assignment}: '{parent}' holds a value, not a mapping")
    try:
        values[leaf] = parse_yaml(text)
    except ValueError as error:
        shown = assignment if len(assignment) <= 80 else f"{assignment[:80]}..."
        raise ValueError(f"--set {shown}: the value is not valid YAML, quote it: {error}") from error


def _matches(value: Any, hint: Any) -> bool:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return True
    if origin in (types.UnionType, typing.Union):
        return any(_matches(value, argument) for argument in arguments)
    if origin is typing.Literal:
        return value in arguments
    if origin is list:
        return isinstance(value, list) and all(_matches(item, arguments[0]) for item in value)
    if origin is dict:
        return isinstance(value, dict)
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, hint)
