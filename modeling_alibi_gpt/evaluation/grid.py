"""Measures several checkpoints over a grid. Each row is saved when it is done and never computed again."""

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from accelerate.utils import broadcast_object_list
from tqdm.auto import tqdm
from transformers import PreTrainedConfig, PreTrainedModel

from modeling_alibi_gpt.checkpoints.load import load_causal_lm, position_method, train_context_length
from modeling_alibi_gpt.evaluation.measurement import ReadingConfig
from modeling_alibi_gpt.runtime.config import Distinct, UserPath, config_dataclass
from modeling_alibi_gpt.runtime.distributed import hides_progress, process_state, sync_errors
from modeling_alibi_gpt.runtime.records import Record, append_record, check_appendable, read_checked_records


# Default lengths, as multiples of the training length.
DEFAULT_MULTIPLES = (1, 2, 4, 8, 16)
_KEY_PROVENANCE = ("model_fingerprint", "stream_fingerprint", "dtype", "attn_implementation")


@config_dataclass
class GridConfig(ReadingConfig):
    """The checkpoints to measure and the file for the results."""

    models: Annotated[list[UserPath], Distinct]
    """Checkpoint folders; each model uses its own tokenizer."""
    names: list[str] | None = None
    """Names of the models in the records; null takes the last parts of each path, as many as make the names unique."""
    overrides: dict[str, Any] = field(default_factory=dict)
    """Fields that override the config of every model, such as ``alibi_scaling``."""
    output: UserPath
    """JSON Lines file to which each finished row is appended. Rows in it are not computed again, not even failed ones;
    delete their lines to retry them.
    """
    plugins: list[str] | None = None
    """Modules to import first, such as one that registers a position method."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.names is not None and not len(set(self.names)) == len(self.names) == len(self.models):
            raise ValueError(f"names must be unique, one for each of the {len(self.models)} models, got {self.names}")

    @property
    def named_models(self) -> list[tuple[str, str]]:
        """The name and the folder of each model."""
        return list(zip(self.names or shortest_names(self.models), self.models, strict=True))


@dataclass(frozen=True, kw_only=True)
class ModelRows:
    """The rows of one model before its weights are loaded.

    Attributes:
        model_dir: Folder of the model.
        model_config: Its config, with the overrides applied.
        blanks: The rows without the measured fields.
        measure: Maps the model and one of these rows to the measured fields. A ``ValueError`` becomes its ``error``.
    """

    model_dir: str
    model_config: PreTrainedConfig
    blanks: Sequence[Record]
    measure: Callable[[PreTrainedModel, Record], Record]


def blank_row(
    kind: str,
    config: GridConfig,
    name: str,
    model_dir: str,
    model_config: PreTrainedConfig,
    figures: Sequence[str],
    provenance: Record,
) -> Record:
    """What the rows of a model have in common, with the measured fields ``figures`` empty."""
    return {
        "kind": kind,
        "name": name,
        "model": model_dir,
        "position_method": position_method(model_config),
        "overrides": config.overrides,
        "train_context_length": train_context_length(model_config),
        **dict.fromkeys(figures),
        "error": None,
        "provenance": provenance,
    }


def run_grid(
    config: GridConfig,
    grid: Sequence[ModelRows],
    *,
    key_fields: Sequence[str],
    on_row: Callable[[Record], None] = lambda row: None,
) -> list[Record]:
    """Measure the rows that are missing from the output file, and return all rows in order.

    Args:
        config: The output file, and how models are loaded.
        grid: The rows to measure.
        key_fields: Fields that identify a row of this kind, in addition to its provenance and overrides.
        on_row: Called in the main process with each record, new or already in the file, as soon as it is available.

    Raises:
        ValueError: A line of the output file is not a valid record. The message names the file and the line.
    """
    finished = _finished_rows(config.output, grid[0].blanks[0]["kind"], key_fields)
    is_main = process_state().is_main_process
    rows = []
    num_rows = sum(len(of_model.blanks) for of_model in grid)
    with tqdm(total=num_rows, desc=grid[0].blanks[0]["kind"], disable=hides_progress()) as progress:
        for of_model in grid:
            model = None
            for blank in of_model.blanks:
                row = finished.get(_row_key(blank, key_fields))
                if row is None:
                    model = model or _load(config, of_model)
                    row = blank | _measured(of_model, model, blank)
                    if is_main:
                        append_record(config.output, row)
                if is_main:
                    on_row(row)
                rows.append(row)
                progress.update()
    return rows


def default_lengths(configs: Iterable[PreTrainedConfig]) -> list[int]:
    """Return ``DEFAULT_MULTIPLES`` of the shortest training length of the models.

    Raises:
        ValueError: No config contains a training length.
    """
    known = [length for config in configs if (length := train_context_length(config))]
    if not known:
        raise ValueError("no model config contains a training length: set lengths_tokens")
    return [multiple * min(known) for multiple in DEFAULT_MULTIPLES]


def shortest_names(model_dirs: Sequence[str]) -> list[str]:
    """Shortest path suffixes, all of the same depth, that distinguish the folders."""
    parts = [Path(model_dir).resolve().parts for model_dir in model_dirs]
    for depth in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-depth:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    raise ValueError(f"models must be different folders, got {', '.join(model_dirs)}")


def _load(config: GridConfig, of_model: ModelRows) -> PreTrainedModel:
    return load_causal_lm(
        of_model.model_dir,
        of_model.model_config,
        dtype=config.dtype,
        attn_implementation=config.attn_implementation,
    )


def _measured(of_model: ModelRows, model: PreTrainedModel, blank: Record) -> Record:
    try:
        return of_model.measure(model, blank)
    except ValueError as error:
        return {"error": str(error)}


def _finished_rows(output: str, kind: str, key_fields: Sequence[str]) -> dict[tuple[Any, ...], Record]:
    """Rows of a kind in the output file by key, as the main process reads it."""
    finished = [None]
    with sync_errors():
        check_appendable(output)
        if process_state().is_main_process and Path(output).exists():
            finished = [read_checked_records(output)]
    broadcast_object_list(finished)
    return {_row_key(row, key_fields): row for row in finished[0] or [] if row["kind"] == kind}


def _row_key(row: Record, key_fields: Sequence[str]) -> tuple[Any, ...]:
    overrides = json.dumps(row.get("overrides", {}), sort_keys=True)
    fields = *(row[name] for name in key_fields), *(row["provenance"].get(name) for name in _KEY_PROVENANCE)
    return *fields, overrides
