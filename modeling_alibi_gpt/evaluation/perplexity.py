"""Measures the perplexity of one checkpoint on one text."""

from pathlib import Path
from typing import Any, Literal

from modeling_alibi_gpt.checkpoints.load import (
    checkpoint_fingerprint,
    load_causal_lm,
    load_model_config,
    load_model_tokenizer,
    position_method,
    train_context_length,
)
from modeling_alibi_gpt.evaluation.measurement import (
    MeasurementConfig,
    load_text,
    measurement_provenance,
    perplexity_figures,
)
from modeling_alibi_gpt.evaluation.scoring import score_stream
from modeling_alibi_gpt.evaluation.windows import PROTOCOLS, resolve_stride
from modeling_alibi_gpt.runtime.config import Count, UserPath, config_dataclass
from modeling_alibi_gpt.runtime.distributed import process_state
from modeling_alibi_gpt.runtime.records import append_record, check_appendable


@config_dataclass
class PerplexityConfig(MeasurementConfig):
    """Settings of ``alibi-gpt evaluate``."""

    model: UserPath
    """Checkpoint folder; its own tokenizer is used."""
    name: str | None = None
    """Name in the record; null is the name of the folder."""
    length_tokens: Count | None = None
    """Window length; null is the model's training length."""
    protocol: Literal[*PROTOCOLS] = "nonoverlapping"
    """``nonoverlapping`` or ``sliding``."""
    output: UserPath | None = None
    """JSON Lines file to which the record is appended."""
    plugins: list[str] | None = None
    """Modules to import first, such as one that registers a position method."""

    def __post_init__(self) -> None:
        super().__post_init__()
        length_tokens = self.stride_tokens or 1 if self.length_tokens is None else self.length_tokens
        resolve_stride(length_tokens, self.protocol, self.stride_tokens)


def evaluate_perplexity(config: PerplexityConfig) -> dict[str, Any]:
    """Measure one checkpoint and return its ``perplexity`` record; the main process appends it to ``config.output``.

    Raises:
        ValueError: The model, the text or a setting cannot be used, or the loss is not a number.
    """
    state = process_state()
    if config.output is not None:
        check_appendable(config.output)
    model_config = load_model_config(config.model)
    length_tokens = train_context_length(model_config) if config.length_tokens is None else config.length_tokens
    if length_tokens is None:
        raise ValueError(f"{config.model}: its config contains no training length: set length_tokens")
    stride_tokens = resolve_stride(length_tokens, config.protocol, config.stride_tokens)
    text = load_text(config, load_model_tokenizer(config.model), config.model)
    text.check_length(length_tokens)
    scores = score_stream(
        load_causal_lm(config.model, dtype=config.dtype, attn_implementation=config.attn_implementation),
        text.stream.input_ids,
        length_tokens=length_tokens,
        protocol=config.protocol,
        stride_tokens=stride_tokens,
        batch_tokens=config.batch_tokens,
        device=state.device,
    )
    record = {
        "kind": "perplexity",
        "name": config.name or Path(config.model).resolve().name,
        "model": config.model,
        "position_method": position_method(model_config),
        "protocol": config.protocol,
        "length_tokens": length_tokens,
        "stride_tokens": stride_tokens,
        **perplexity_figures(scores, text.stream.num_bytes),
        "provenance": measurement_provenance(config, text, checkpoint_fingerprint(config.model)),
    }
    if config.output is not None and state.is_main_process:
        append_record(config.output, record)
    return record
