"""How far models extrapolate: perplexity over a grid of models, window lengths and protocols, resumable row by row."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from accelerate.utils import broadcast_object_list
from tqdm.auto import tqdm
from transformers import PreTrainedConfig, PreTrainedModel

from modeling_alibi_gpt.checkpoints.load import (
    checkpoint_fingerprint,
    load_causal_lm,
    load_model_config,
    load_model_tokenizer,
    position_method,
    train_context_length,
)
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
from modeling_alibi_gpt.report.tables import extrapolation_table
from modeling_alibi_gpt.runtime.config import config_dataclass
from modeling_alibi_gpt.runtime.distributed import hides_progress, process_state
from modeling_alibi_gpt.runtime.records import append_record, read_records


# The grid of lengths, in training lengths, when none is given.
DEFAULT_MULTIPLES = (1, 2, 4, 8, 16)
_FIGURES = ("nats_per_token", "perplexity", "bits_per_byte", "num_tokens", "num_bytes")
_KEY_FIELDS = ("name", "protocol", "length_tokens", "stride_tokens")
_KEY_PROVENANCE = ("model_fingerprint", "stream_fingerprint", "dtype", "attn_implementation")


@config_dataclass
class ExtrapolationConfig(MeasurementConfig):
    """What ``scripts/extrapolate.py`` measures: every model at every length under every protocol."""

    models: list[str]
    """Checkpoint folders; each is read with its own tokenizer."""
    names: list[str] | None = None
    """Their names in the records; null takes as much of each path as tells them apart."""
    lengths_tokens: list[int] | None = None
    """Window lengths; null is 1, 2, 4, 8 and 16 times the shortest training length of the models."""
    protocols: list[str] = field(default_factory=lambda: list(PROTOCOLS))
    """``nonoverlapping``, ``sliding`` or both."""
    overrides: dict[str, Any] = field(default_factory=dict)
    """Fields laid over the config of every model, such as an ``alibi_scaling``."""
    output: str = "runs/extrapolation.jsonl"
    """JSON Lines file that each finished row is appended to. Rows that it holds are not computed again, nor are those
    that failed: delete their lines to try once more.
    """
    plugins: list[str] | None = None
    """Modules to import first, such as one that registers a position method."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("models", "protocols"):
            values = getattr(self, name)
            if not values or len(set(values)) < len(values):
                raise ValueError(f"{name} must be one or more, each once, got {values}")
        for protocol in self.protocols:
            for length in self.lengths_tokens or [self.stride_tokens or 1]:
                resolve_stride(length, protocol, self.stride_tokens if protocol == "sliding" else None)
        if self.names is not None and len(set(self.names)) != len(self.models):
            raise ValueError(
                f"names must be one of its own for each of the {len(self.models)} models, got {self.names}"
            )


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
    """Measure the grid and return its ``extrapolation`` records, models first, then protocols, then lengths.

    Args:
        config: The grid.
        on_row: Called by the main process with each record as soon as it is there, measured or found.

    Raises:
        ValueError: A model, the text or a setting cannot be used. A model that fails at a length is no such case: its
            record says why in ``error``.
    """
    subjects = _load_subjects(config)
    lengths = _grid_lengths(config, subjects)
    finished = _finished_rows(config.output)
    is_main = process_state().is_main_process
    num_rows = len(subjects) * len(config.protocols) * len(lengths)
    rows = []
    with tqdm(total=num_rows, desc="extrapolation", disable=hides_progress()) as progress:
        for subject in subjects:
            model = None
            for blank in _blank_rows(config, subject, lengths):
                row = finished.get(_row_key(blank))
                if row is None:
                    if model is None:
                        model = load_causal_lm(
                            subject.model_dir,
                            subject.model_config,
                            dtype=config.dtype,
                            attn_implementation=config.attn_implementation,
                        )
                    row = blank | _measure(model, subject.text, blank, config.batch_tokens)
                    if is_main:
                        append_record(config.output, row)
                if is_main:
                    on_row(row)
                rows.append(row)
                progress.update()
    return rows


def position_bins(scores: WindowScores) -> dict[str, list[Any]]:
    """Mean loss by position in the window, in bins whose edges are 0, 1, 2, 4, 8 ... L tokens.

    Bin b holds the positions from edge b to before edge b + 1; position p predicts from the p + 1 tokens before.
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
    """Records as a table of text: a row each model and protocol, a column each length, and why some have no figure."""
    table = extrapolation_table(rows)
    lines = [table.header, *table.rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    aligned = [
        "  ".join(
            cell.ljust(width) if column < table.num_text_columns else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]
    return "\n".join([*aligned, *(f"({number}) {note}" for number, note in enumerate(table.footnotes, start=1))])


def distinct_names(model_dirs: Sequence[str]) -> list[str]:
    """The last parts of each path, as many as tell the folders apart."""
    parts = [Path(model_dir).resolve().parts for model_dir in model_dirs]
    for depth in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-depth:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    raise ValueError(f"models must be different folders, got {', '.join(model_dirs)}")


def _load_subjects(config: ExtrapolationConfig) -> list[Subject]:
    subjects = []
    for name, model_dir in zip(config.names or distinct_names(config.models), config.models, strict=True):
        model_config = load_model_config(model_dir, config.overrides)  # refused before any text is read
        text = load_text(config, load_model_tokenizer(model_dir))
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
    """The lengths, checked against strides and texts before anything is measured."""
    lengths = config.lengths_tokens
    if lengths is None:
        known = [length for subject in subjects if (length := train_context_length(subject.model_config))]
        if not known:
            raise ValueError("no model says its training length, set lengths_tokens")
        lengths = [multiple * min(known) for multiple in DEFAULT_MULTIPLES]
    for length in lengths:
        for protocol in config.protocols:
            resolve_stride(length, protocol, config.stride_tokens if protocol == "sliding" else None)
        for subject in subjects:
            subject.text.check_length(length)
    return sorted(set(lengths))


def _blank_rows(config: ExtrapolationConfig, subject: Subject, lengths: Sequence[int]) -> list[dict[str, Any]]:
    """The rows of a model with everything but what is measured."""
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


def _measure(model: PreTrainedModel, text: EvaluationText, row: dict[str, Any], batch_tokens: int) -> dict[str, Any]:
    """The measured fields of a row: the figures, or the error that says why there are none."""
    try:
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
    except ValueError as error:
        return {"error": str(error)}


def _finished_rows(output: str) -> dict[tuple[Any, ...], dict[str, Any]]:
    """The extrapolation rows that a file holds by their key, as the main process sees it."""
    finished = [None]
    if process_state().is_main_process and Path(output).exists():
        finished = [read_records(output)]
    broadcast_object_list(finished)
    return {_row_key(row): row for row in finished[0] or [] if row.get("kind") == "extrapolation"}


def _row_key(row: dict[str, Any]) -> tuple[Any, ...]:
    overrides = json.dumps(row.get("overrides", {}), sort_keys=True)
    fields = *(row[name] for name in _KEY_FIELDS), *(row["provenance"].get(name) for name in _KEY_PROVENANCE)
    return *fields, overrides
