"""Length extrapolation: perplexity over a grid of models, window lengths and protocols. Resumable row by row."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from transformers import PreTrainedConfig, PreTrainedModel

from modeling_alibi_gpt.checkpoints.load import (
    checkpoint_fingerprint,
    load_model_config,
    load_model_tokenizer,
    position_method,
    train_context_length,
)
from modeling_alibi_gpt.evaluation.grid import GridConfig, ModelRows, check_each_once, default_lengths, run_grid
from modeling_alibi_gpt.evaluation.measurement import (
    EvaluationText,
    MeasurementConfig,
    block_nats,
    load_text,
    measurement_provenance,
    perplexity_figures,
)
from modeling_alibi_gpt.evaluation.scoring import WindowScores, score_stream
from modeling_alibi_gpt.evaluation.windows import PROTOCOLS, resolve_stride
from modeling_alibi_gpt.report.tables import extrapolation_table, table_text
from modeling_alibi_gpt.runtime.config import UserPath, config_dataclass
from modeling_alibi_gpt.runtime.distributed import process_state


_FIGURES = ("nats_per_token", "perplexity", "bits_per_byte", "num_tokens", "num_bytes")
_KEY_FIELDS = ("name", "protocol", "length_tokens", "stride_tokens")


@config_dataclass
class ExtrapolationConfig(MeasurementConfig, GridConfig):
    """Settings of ``alibi-gpt extrapolate``, which measures every model at every length under every protocol."""

    lengths_tokens: list[int] | None = None
    """Window lengths; null is 1, 2, 4, 8 and 16 times the shortest training length of the models."""
    protocols: list[str] = field(default_factory=lambda: list(PROTOCOLS))
    """``nonoverlapping``, ``sliding`` or both."""
    output: UserPath = "runs/extrapolation.jsonl"
    """JSON Lines file to which each finished row is appended. Rows in it are not computed again, not even failed ones;
    delete their lines to retry them.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        check_each_once("protocols", self.protocols)
        if self.stride_tokens is not None and "sliding" not in self.protocols:
            resolve_stride(1, self.protocols[0], self.stride_tokens)  # refuses the stride
        for protocol in self.protocols:
            for length in self.lengths_tokens or [self.stride_tokens or 1]:
                resolve_stride(length, protocol, self.stride_tokens if protocol == "sliding" else None)


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A model of the grid before its weights are loaded."""

    name: str
    model_dir: str
    model_config: PreTrainedConfig
    text: EvaluationText
    provenance: dict[str, Any]


def run_extrapolation(
    config: ExtrapolationConfig, on_row: Callable[[dict[str, Any]], None] = lambda row: None
) -> list[dict[str, Any]]:
    """Measure the grid and return its ``extrapolation`` records, ordered by model, protocol and length.

    Args:
        config: The grid.
        on_row: Called in the main process with each record, new or already in the file, as soon as it is available.

    Raises:
        ValueError: A model, the text or a setting cannot be used. If a model fails at a length, its record gives the
            reason in ``error`` instead.
    """
    subjects = _load_subjects(config)
    lengths = _grid_lengths(config, subjects)
    grid = [
        ModelRows(
            model_dir=subject.model_dir,
            model_config=subject.model_config,
            blanks=_blank_rows(config, subject, lengths),
            measure=partial(_measure, subject.text, config.batch_tokens),
        )
        for subject in subjects
    ]
    return run_grid(config, grid, key_fields=_KEY_FIELDS, on_row=on_row)


def position_bins(scores: WindowScores) -> dict[str, list[Any]]:
    """Return the mean loss by position in the window, in bins with edges 0, 1, 2, 4, 8 ... L tokens.

    Bin b covers positions from edge b up to but excluding edge b + 1. Position p predicts from p + 1 tokens.
    """
    length = scores.length_tokens
    edges = [0, *(2**power for power in range(length.bit_length()) if 2**power < length), length]
    nats = np.add.reduceat(scores.position_nats, edges[:-1])
    num_tokens = np.add.reduceat(scores.position_num_tokens, edges[:-1])
    return {
        "edges_tokens": edges,
        "nats_per_token": [float(n / count) if count else None for n, count in zip(nats, num_tokens, strict=True)],
        "num_tokens": num_tokens.tolist(),
    }


def format_grid(rows: Sequence[dict[str, Any]]) -> str:
    """Format records as a text table: one row per model and protocol, one column per length, and the errors."""
    return table_text(extrapolation_table(rows))


def _load_subjects(config: ExtrapolationConfig) -> list[Subject]:
    subjects = []
    for name, model_dir in config.named_models:
        model_config = load_model_config(model_dir, config.overrides)  # fail before any text is read
        text = load_text(config, load_model_tokenizer(model_dir), model_dir)
        provenance = measurement_provenance(config, text, checkpoint_fingerprint(model_dir))
        subjects.append(
            Subject(
                name=name,
                model_dir=model_dir,
                model_config=model_config,
                text=text,
                provenance=provenance,
            )
        )
    return subjects


def _grid_lengths(config: ExtrapolationConfig, subjects: Sequence[Subject]) -> list[int]:
    """The lengths, validated against strides and texts before anything is measured."""
    lengths = config.lengths_tokens or default_lengths([subject.model_config for subject in subjects])
    for length in lengths:
        for protocol in config.protocols:
            resolve_stride(length, protocol, config.stride_tokens if protocol == "sliding" else None)
        for subject in subjects:
            subject.text.check_length(length)
    return sorted(set(lengths))


def _blank_rows(config: ExtrapolationConfig, subject: Subject, lengths: Sequence[int]) -> list[dict[str, Any]]:
    """The rows of a model without the measured fields."""
    return [
        {
            "kind": "extrapolation",
            "name": subject.name,
            "model": subject.model_dir,
            "position_method": position_method(subject.model_config),
            "overrides": config.overrides,
            "protocol": protocol,
            "length_tokens": length,
            "stride_tokens": resolve_stride(length, protocol, config.stride_tokens if protocol == "sliding" else None),
            **dict.fromkeys(_FIGURES),
            "train_context_length": train_context_length(subject.model_config),
            "error": None,
            "nats_by_position": None,
            "nats_per_token_by_block": None,
            "provenance": subject.provenance,
        }
        for protocol in config.protocols
        for length in lengths
    ]


def _measure(text: EvaluationText, batch_tokens: int, model: PreTrainedModel, row: dict[str, Any]) -> dict[str, Any]:
    scores = score_stream(
        model,
        text.stream.input_ids,
        length_tokens=row["length_tokens"],
        protocol=row["protocol"],
        stride_tokens=row["stride_tokens"],
        batch_tokens=batch_tokens,
        device=process_state().device,
    )
    return {
        **perplexity_figures(scores, text.stream.num_bytes),
        "nats_by_position": position_bins(scores),
        "nats_per_token_by_block": block_nats(scores),
    }
