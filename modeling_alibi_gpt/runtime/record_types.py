"""Schemas of records, one per kind: fields, types and consistency rules.

The same schema validates a record when it is written and when it is read. Fields with a default are missing in older
records, or occur only in the records of a comparison.
"""

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


PositiveCount = Annotated[int, Field(gt=0)]
PositiveNumber = Annotated[float, Field(gt=0)]
Text = str | None
OptionalCount = int | None
Number = float | None
Ends = Annotated[list[PositiveNumber], Field(min_length=2, max_length=2)]
ByLayer = list[list[float]]
ByHead = list[list[list[float]]]  # layers, heads, distances
AS_TRAINED = "as trained"


class Part(BaseModel):
    """Base of all schemas: strict types, no extra fields, no NaN or infinity."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", allow_inf_nan=False)


class LossPoint(Part):
    step: int
    nats_per_token: float  # mean since the previous point


class NatsByPosition(Part):
    edges_tokens: list[int]  # one more than there are values
    nats_per_token: list[Number]
    num_tokens: list[int]


class Hardware(Part):
    cpu: Text = None
    num_cores: OptionalCount = None
    memory_bytes: OptionalCount = None
    gpus: list[str] = []


class Provenance(Part):
    """Where a number comes from. A measurement adds its own settings."""

    model_config = ConfigDict(extra="allow")

    git_commit: Text = None
    git_dirty: bool | None = None
    time_utc: Text = None
    versions: dict[str, Text] = {}
    hardware: Hardware | None = None
    seed: OptionalCount = None
    data_fingerprint: Text = None
    source: Text = None


class RecordType(Part):
    kind: str
    provenance: Provenance


class OfComparison(RecordType):
    """Fields that assign a record to a comparison."""

    comparison: str = ""
    variant: str = ""
    fields: dict[str, Any] = {}
    seed: int = 0
    series: Text = None  # comparisons that differ only in their budget
    budget_tokens: OptionalCount = None


class Training(OfComparison):
    kind: Literal["training"]
    name: str
    model_dir: str
    position_method: str
    seed: int
    num_parameters: int
    train_length_tokens: PositiveCount
    num_train_tokens: int
    num_steps: int = 0
    learning_rate: Number = None
    position_learning_rate: Number = None
    validation_nats_per_token: float
    validation_perplexity: PositiveNumber
    validation_bits_per_byte: Number = None
    num_validation_tokens: int
    train_seconds: float
    resumed_from: Text = None
    bf16: bool
    loss_history: list[LossPoint]
    num_threads: int = 0


class Windows(RecordType):
    """Perplexity of a text read in windows, or the ``error`` that prevented it."""

    name: str
    position_method: str
    protocol: str
    length_tokens: PositiveCount
    stride_tokens: PositiveCount | None
    perplexity: PositiveNumber | None
    error: Text = None

    @model_validator(mode="after")
    def _figures_or_an_error(self) -> Self:
        if self.error is not None and self.perplexity is not None:
            raise ValueError("'error' must be null if there is a perplexity")
        if self.error is None:
            require(self, "perplexity", "nats_per_token", *self._due)
        return self

    @property
    def _due(self) -> tuple[str, ...]:
        return ()


class Published(Windows):
    kind: Literal["published"]
    comparison: str
    error: Text
    train_context_length: PositiveCount


class Milestone(Windows):
    kind: Literal["milestone"]
    step: int
    num_train_tokens: int
    train_length_tokens: PositiveCount
    nats_per_token: Number
    bits_per_byte: Number = None
    num_tokens: PositiveCount | None = None
    num_bytes: PositiveCount | None = None
    error: Text


class Measured(Windows):
    model: str
    overrides: dict[str, Any] = {}
    nats_per_token: Number
    bits_per_byte: Number
    num_tokens: PositiveCount | None
    num_bytes: PositiveCount | None

    @property
    def _due(self) -> tuple[str, ...]:
        return ("num_tokens",)


class Perplexity(Measured):
    kind: Literal["perplexity"]


class Extrapolation(OfComparison, Measured):
    kind: Literal["extrapolation"]
    reading: str = AS_TRAINED
    train_context_length: PositiveCount | None
    error: Text
    nats_by_position: NatsByPosition | None
    nats_per_token_by_block: list[float] | None = None

    @model_validator(mode="after")
    def _bins_have_edges(self) -> Self:
        if (located := self.nats_by_position) is not None:
            for field in ("nats_per_token", "num_tokens"):
                require_length(f"nats_by_position.{field}", getattr(located, field), len(located.edges_tokens) - 1)
        return self


class Comparison(Windows):
    kind: Literal["comparison"]
    comparison: str
    corpus: Text = None
    series: Text = None
    budget_tokens: OptionalCount = None
    varies: Literal["nothing", "beta", "method"] | None = None
    variant: str
    reading: str
    fields: dict[str, Any]
    reading_fields: dict[str, Any]
    train_context_length: PositiveCount | None
    reference: str
    seeds: list[int]
    nats_per_token_by_seed: list[float]
    nats_per_token: Number
    nats_per_token_sd: Number
    nats_per_token_by_block: list[float] | None = None
    nats_per_token_by_seed_and_block: list[list[float]] | None = None
    difference_nats_by_seed: list[float]
    difference_nats: Number
    difference_nats_sd: Number
    error: Text

    @model_validator(mode="after")
    def _one_number_a_seed(self) -> Self:
        if self.error is None:
            require_length("nats_per_token_by_seed", self.nats_per_token_by_seed, len(self.seeds))
        if self.difference_nats is not None:  # null where the reference failed
            require_length("difference_nats_by_seed", self.difference_nats_by_seed, len(self.seeds))
        return self


class Prediction(RecordType):
    """Prediction for an unread budget from the smaller budgets of a series of comparisons."""

    kind: Literal["prediction"]
    comparison: str  # the series
    budget_tokens: PositiveCount
    from_budgets_tokens: list[int]
    beta: PositiveNumber
    beta_ends: Ends  # of its interval
    worth_nats: PositiveNumber  # of the best beta against 1
    worth_ends_nats: Ends


class Corpus(RecordType):
    kind: Literal["corpus"]
    comparison: str
    source: str
    num_documents: int
    num_bytes: PositiveCount
    fingerprint: str
    documents: list[str]


class BetaTrial(RecordType):
    kind: Literal["beta_trial"]
    mode: str
    study: str
    trial: int
    state: str
    beta: PositiveNumber
    seeds: list[int]
    nats_per_token: Number
    nats_per_token_by_seed: list[float]
    nats_per_token_by_block: list[float] | None = None
    perplexity: PositiveNumber | None

    @model_validator(mode="after")
    def _complete_has_figures(self) -> Self:
        if self.state == "COMPLETE":
            require(self, "perplexity", "nats_per_token")
        return self


class TrainedBeta(OfComparison):
    kind: Literal["trained_beta"]
    study: Text = None
    alibi_trainable: str
    seed: int
    slopes_by_layer: ByLayer
    beta_by_layer: list[float] | None
    nats_per_token: float
    perplexity: PositiveNumber

    @model_validator(mode="after")
    def _one_beta_a_layer(self) -> Self:
        if self.alibi_trainable == "beta":
            require(self, "beta_by_layer")
        if self.beta_by_layer is not None:
            require_length("beta_by_layer", self.beta_by_layer, len(self.slopes_by_layer))
        return self


def require(record: RecordType, *fields: str) -> None:
    """Raise ValueError if one of these fields is null."""
    for field in fields:
        if getattr(record, field, 0) is None:
            raise ValueError(f"'{field}' must not be null in a record without an error")


def require_length(field: str, values: list[Any], expected: int) -> None:
    """Raise ValueError unless a list has the expected number of values and at least one."""
    if len(values) != expected or not values:
        raise ValueError(f"'{field}' must have {max(expected, 1)} values, got {len(values)}")
