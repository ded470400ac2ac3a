"""Schemas of benchmark records: speed, precision, and agreement with other programs."""

from typing import Literal

from pydantic import ConfigDict

from modeling_alibi_gpt.runtime.record_types import (
    ByLayer,
    Number,
    OptionalCount,
    PositiveCount,
    PositiveNumber,
    RecordType,
)


class Timed(RecordType):
    """Seconds of a computation, and their ratio to a reference timed alternately."""

    name: str
    dtype: str
    seconds: PositiveNumber
    reference: str
    times_reference: PositiveNumber
    times_reference_quartiles: list[float]
    num_rounds: int = 0
    num_threads: int = 0


class TimedModel(Timed):
    num_layers: int
    hidden_size: int
    num_heads: int = 0
    vocab_size: int = 0
    num_rows: int = 0
    num_parameters: int = 0
    tokens_per_second: Number = None


class AttentionSpeed(Timed):
    kind: Literal["attention_speed"]
    mode: str
    num_rows: int = 1
    length_tokens: int
    num_heads: int
    head_dim: int
    extra_bytes: OptionalCount
    max_error: float


class ModelSpeed(TimedModel):
    kind: Literal["model_speed"]
    mode: str
    length_tokens: int
    extra_bytes: OptionalCount
    model_flops_utilization: Number = None


class ConversionSpeed(TimedModel):
    kind: Literal["conversion_speed"]
    mode: str
    length_tokens: int
    num_new_tokens: OptionalCount
    extra_bytes: OptionalCount
    max_logit_difference: Number


class DecodeSpeed(TimedModel):
    kind: Literal["decode_speed"]
    context_tokens: PositiveCount
    cache_bytes: int
    max_difference: Number


class GpuTests(RecordType):
    kind: Literal["gpu_tests"]
    passed: int
    failed: int
    skipped: int
    seconds: PositiveNumber
    failures: list[str]
    unfinished: list[str] = []


class Conformance(RecordType):
    kind: Literal["conformance"]
    model: str
    suite: str
    transformers: str
    passed: int
    failed: int
    skipped: int
    seconds: PositiveNumber
    failed_tests: list[str] = []
    skipped_by_reason: dict[str, list[str]]


class Precision(RecordType):
    """Errors of attention in half precision. Each variant adds its own fields, such as ``banded_max_error``."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, float]

    kind: Literal["precision"]
    dtype: str
    num_heads: int
    length_tokens: PositiveCount
    head_dim: int
    num_queries: int
    bias_error_ulps: float
    bias_error_nats: float
    absolute_bias_error_nats: float
    plain_max_error: float
    plain_relative_rms_error: float
    absolute_max_error: float
    absolute_relative_rms_error: float


class LossMemory(RecordType):
    """Memory of the loss over ``num_tokens``, forward and backward; ``chunk_tokens`` null means unchunked."""

    kind: Literal["loss_memory"]
    num_tokens: PositiveCount
    vocab_size: PositiveCount
    hidden_size: PositiveCount
    dtype: str
    chunk_tokens: PositiveCount | None
    logits_bytes: PositiveCount
    extra_bytes: OptionalCount
    nats_per_token: PositiveNumber
    gradient_norm: PositiveNumber


class Margins(RecordType):
    kind: Literal["margins"]
    name: str
    length_tokens: PositiveCount
    tolerance: float
    slopes_by_layer: ByLayer
    margins_nats_by_layer: ByLayer
    windows_tokens_by_layer: list[list[int]]


class Gguf(RecordType):
    kind: Literal["gguf"]
    name: str
    num_heads: int
    length_tokens: PositiveCount
    num_new_tokens: OptionalCount
    precision: str
    llama_cpp: str
    max_log_prob_difference_nats: float
    max_rounding_error_nats: float
    torch_rounding_error_nats: float
    greedy_tokens_equal: int


class Engine(RecordType):
    """A model in an inference engine, with its predictions compared to those of PyTorch in float32."""

    kind: Literal["engine"]
    name: str
    engine: str
    weights: str
    version: str
    num_bytes: PositiveCount
    length_tokens: PositiveCount
    num_tokens: PositiveCount
    nats_per_token: float
    perplexity: PositiveNumber
    kl_nats_per_token: float
    max_log_prob_difference_nats: float
    likeliest_equal: float  # share of tokens whose most likely prediction agrees


class ConversionDifference(RecordType):
    kind: Literal["conversion_difference"]
    name: str
    model: str
    dtype: str
    reference: str
    reference_dtype: str
    length_tokens: PositiveCount
    num_heads: int
    num_layers: int
    hidden_size: int
    max_logit_difference: Number
    logit_std: float
    kl_nats_per_token: float


class DataSpeed(RecordType):
    kind: Literal["data_speed"]
    contestant: str
    step: str
    num_bytes: PositiveCount  # of the text that was read
    num_tokens: PositiveCount
    file_format: str | None = None
    file_bytes: OptionalCount = None
    max_train_tokens: OptionalCount = None
    cpu_seconds: list[float]  # of each round
    megabytes_per_cpu_second: Number = None
    wall_seconds: Number = None
    memory_before_bytes: OptionalCount = None
    peak_memory_bytes: OptionalCount = None
    peak_anonymous_bytes: OptionalCount = None  # without pages of memory-mapped files
    disk_bytes: OptionalCount = None


class ReportCost(RecordType):
    """What ``alibi-gpt report`` takes; the memory before is that of its imports."""

    kind: Literal["report_cost"]
    rows_of: str
    num_records: PositiveCount
    num_figures: PositiveCount
    cpu_seconds: PositiveNumber
    memory_before_bytes: PositiveCount
    peak_memory_bytes: PositiveCount
    html_bytes: PositiveCount


class Serving(RecordType):
    """A server with continuous batching: times and memory of each start."""

    kind: Literal["serving"]
    contestant: str
    options: list[str]
    num_parameters: PositiveCount
    num_new_tokens: PositiveCount
    ready_seconds: list[float]
    first_answer_seconds: list[float]
    second_answer_seconds: list[float]
    peak_memory_bytes: list[int]


class ClaimTime(RecordType):
    """Time that a worker of a shared study needs between two objectives, with ``num_finished`` finished trials."""

    kind: Literal["claim_time"]
    sampling: str
    num_workers: PositiveCount
    num_trials: PositiveCount
    num_finished: PositiveCount
    num_claims: PositiveCount
    seconds: PositiveNumber
    wall_seconds: PositiveNumber
    peak_memory_bytes: PositiveCount
