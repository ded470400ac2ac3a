"""Length extrapolation: perplexity over a grid of models, window lengths and protocols. Resumable row by row."""

from collections.abc import Callable
from dataclasses import field
from functools import partial
from typing import Annotated, Any

import numpy as np
from transformers import PreTrainedModel

from modeling_alibi_gpt.checkpoints.load import checkpoint_fingerprint, load_model_config, load_model_tokenizer
from modeling_alibi_gpt.evaluation.grid import (
    GridConfig,
    ModelRows,
    blank_row,
    default_lengths,
    run_grid,
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
from modeling_alibi_gpt.runtime.config import Distinct, UserPath, config_dataclass
from modeling_alibi_gpt.runtime.distributed import process_state
from modeling_alibi_gpt.runtime.records import Record


_FIGURES = (
    *("nats_per_token", "perplexity", "bits_per_byte", "num_tokens", "num_bytes"),
    *("nats_by_position", "nats_per_token_by_block"),
)
_KEY_FIELDS = ("name", "protocol", "length_tokens", "stride_tokens")


@config_dataclass
class ExtrapolationConfig(MeasurementConfig, GridConfig):
    """Settings of ``alibi-gpt extrapolate``, which measures every model at every length under every protocol."""

    lengths_tokens: Annotated[list[int], Distinct] | None = None
    """Window lengths; null is 1, 2, 4, 8 and 16 times the shortest training length of the models."""
    protocols: Annotated[list[str], Distinct] = field(default_factory=lambda: list(PROTOCOLS))
    """``nonoverlapping``, ``sliding`` or both."""
    output: UserPath = "runs/extrapolation.jsonl"
    """JSON Lines file to which each finished row is appended. Rows in it are not computed again, not even failed ones;
    delete their lines to retry them.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.stride_tokens is not None and "sliding" not in self.protocols:
            resolve_stride(1, self.protocols[0], self.stride_tokens)  # refuses the stride
        for protocol in self.protocols:
            for length in self.lengths_tokens or [self.stride_tokens or 1]:
                _stride(self, protocol, length)


def run_extrapolation(
    config: ExtrapolationConfig, on_row: Callable[[Record], None] = lambda row: None
) -> list[Record]:
    """Measure the grid and return its ``extrapolation`` records, ordered by model, protocol and length.

    Args:
        config: The grid.
        on_row: Called in the main process with each record, new or already in the file, as soon as it is available.

    Raises:
        ValueError: A model, the text or a setting cannot be used. If a model fails at a length, its record gives the
            reason in ``error`` instead.
    """
    configs = [load_model_config(model_dir, config.overrides) for model_dir in config.models]
    lengths = sorted(set(config.lengths_tokens or default_lengths(configs)))
    windows = [
        {"protocol": protocol, "length_tokens": length, "stride_tokens": _stride(config, protocol, length)}
        for protocol in config.protocols
        for length in lengths
    ]
    grid = []
    for (name, model_dir), model_config in zip(config.named_models, configs, strict=True):
        text = load_text(config, load_model_tokenizer(model_dir), model_dir)
        for length in lengths:
            text.check_length(length)
        where = measurement_provenance(config, text, checkpoint_fingerprint(model_dir))
        blank = blank_row("extrapolation", config, name, model_dir, model_config, _FIGURES, where)
        measured = ModelRows(
            model_dir=model_dir,
            model_config=model_config,
            blanks=[blank | window for window in windows],
            measure=partial(_measure, text, config.batch_tokens),
        )
        grid.append(measured)
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


def _stride(config: ExtrapolationConfig, protocol: str, length_tokens: int) -> int | None:
    return resolve_stride(length_tokens, protocol, config.stride_tokens if protocol == "sliding" else None)


def _measure(text: EvaluationText, batch_tokens: int, model: PreTrainedModel, row: Record) -> Record:
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
