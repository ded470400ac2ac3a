"""Measures the score margins of each head of a trained model on a text, and the resulting attention windows."""

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import torch
from transformers import PreTrainedConfig

from modeling_alibi_gpt.alibi import alibi_windows
from modeling_alibi_gpt.cache_alibi_gpt import measured_margins, slopes_of_layers
from modeling_alibi_gpt.checkpoints.load import (
    checkpoint_fingerprint,
    load_causal_lm,
    load_model_config,
    load_model_tokenizer,
)
from modeling_alibi_gpt.evaluation.measurement import MeasurementConfig, load_text, measurement_provenance
from modeling_alibi_gpt.position_base import PositionMethod
from modeling_alibi_gpt.position_methods import POSITION_METHODS
from modeling_alibi_gpt.runtime.config import Count, UserPath, config_dataclass
from modeling_alibi_gpt.runtime.distributed import process_state
from modeling_alibi_gpt.runtime.records import Record, append_record, check_appendable, check_record


@config_dataclass
class MarginsConfig(MeasurementConfig):
    """Settings of ``alibi-gpt margins``."""

    UNUSED: ClassVar[Mapping[str, str]] = dict.fromkeys(("batch_tokens", "stride_tokens"), "margins read one window")

    model: UserPath
    """Checkpoint folder; its own tokenizer is used."""
    length_tokens: Count = 4096
    """Number of tokens to read as one window."""
    output: UserPath | None = None
    """JSON Lines file to which the record is appended."""
    plugins: list[str] | None = None
    """Modules to import first, such as one that registers a position method."""


def measure_margins(config: MarginsConfig) -> Record:
    """Measure one checkpoint and return its ``margins`` record, appended to ``config.output``.

    Raises:
        ValueError: The model does not use ALiBi with one slope per head, or the text is too short.
    """
    if config.output is not None:
        check_appendable(config.output)
    model_config = load_model_config(config.model)
    _check_slopes(model_config)
    text = load_text(config, load_model_tokenizer(config.model))
    text.check_length(config.length_tokens)
    state = process_state()
    model = load_causal_lm(
        config.model, model_config, dtype=config.dtype, attn_implementation=config.attn_implementation
    ).to(state.device)
    input_ids = torch.as_tensor(text.stream.input_ids[: config.length_tokens])[None].long().to(state.device)
    margins = measured_margins(model, input_ids).cpu()
    slopes = torch.stack(slopes_of_layers(model)).cpu()
    tolerance = model.config.alibi_tolerance
    windows = [alibi_windows(*layer, tolerance) for layer in zip(slopes, margins, strict=True)]
    record = {
        "kind": "margins",
        "name": Path(config.model).resolve().name,
        "length_tokens": config.length_tokens,
        "tolerance": tolerance,
        "slopes_by_layer": slopes.tolist(),
        "margins_nats_by_layer": margins.tolist(),
        "windows_tokens_by_layer": [layer.tolist() for layer in windows],
        "provenance": measurement_provenance(config, text, checkpoint_fingerprint(config.model)),
    }
    check_record(record)
    if config.output is not None and state.is_main_process:
        append_record(config.output, record)
    return record


def _check_slopes(model: PreTrainedConfig) -> None:
    """Raise a ValueError unless a model of this config uses ALiBi with one slope per head."""
    if model.model_type != "alibi_gpt":
        raise ValueError(
            f"margins need an AlibiGPT with ALiBi, got a model of type {model.model_type}: if that has ALiBi, convert "
            "it with 'alibi-gpt convert'"
        )
    needs, scaling = "margins need ALiBi with one slope per head", model.alibi_scaling
    if POSITION_METHODS[model.position_method].query_slopes is PositionMethod.query_slopes:
        raise ValueError(f"{needs}, got position_method {model.position_method}")
    if scaling is not None and scaling["type"].startswith("dynamic"):
        raise ValueError(f"{needs}, got alibi_scaling {scaling}, whose slopes differ by query")
