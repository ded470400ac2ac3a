"""The tables of a report: one function each turns records into cells of text."""

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from modeling_alibi_gpt.report.comparison import AFTER_TRAINING, Comparison, Curve
from modeling_alibi_gpt.report.formats import (
    BETA,
    MISSING_CELL,
    describe_protocol,
    format_count,
    format_nats,
    format_perplexity,
    format_ratio,
    format_seconds,
    with_minus,
)
from modeling_alibi_gpt.report.frames import MILESTONE_PROTOCOL, Records, alibi_first, frame_of, pick, rows_of
from modeling_alibi_gpt.report.statistics import choose_trial
from modeling_alibi_gpt.runtime.records import Record


@dataclass(frozen=True)
class Table:
    """A table of unescaped text cells, of which the first ``num_text_columns`` columns are words."""

    header: list[str]
    rows: list[list[str]]
    num_text_columns: int = 1
    bold_rows: list[int] = field(default_factory=list)
    footnotes: list[str] = field(default_factory=list)


def table_text(table: Table) -> str:
    """Format a table for the terminal, with aligned columns and numbered footnotes."""
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


def by_length(frame: pd.DataFrame, keys: list[str], cells: Iterable[str]) -> pd.DataFrame:
    """Cells of text, with one row per value of ``keys`` in the order of the records, and one column per length.

    If several records share a cell, the last one counts. A cell without a record is a dash.
    """
    placed = frame[[*keys, "length_tokens"]].assign(cell=list(cells))
    placed = placed.drop_duplicates([*keys, "length_tokens"], keep="last")
    wide = placed.pivot(index=keys, columns="length_tokens", values="cell")
    order = frame[keys].drop_duplicates()
    return wide.reindex(pd.MultiIndex.from_frame(order) if len(keys) > 1 else order[keys[0]]).fillna(MISSING_CELL)


def extrapolation_table(records: Records) -> Table:
    """Perplexities, one row per model and protocol and one column per length; errors become footnotes."""
    frame = alibi_first(frame_of(records))
    cells, footnotes = _perplexities(frame)
    keys = ["name", "protocol"]
    wide, first = by_length(frame, keys, cells), frame.drop_duplicates(keys)
    rows = [
        [name, protocol, *texts, format_count(trained)]
        for (name, *_), protocol, texts, trained in zip(
            wide.index, _protocols(frame), wide.to_numpy(), first["train_context_length"], strict=True
        )
    ]
    header = ["model", "protocol", *map(format_count, wide.columns), "trained at"]
    return Table(header, rows, num_text_columns=2, footnotes=footnotes)


def bits_table(records: Records) -> Table:
    """Bits per byte, one row per model and protocol and one column per length."""
    frame = alibi_first(frame_of(records))
    wide = by_length(frame, ["name", "protocol"], frame["bits_per_byte"].map(format_nats))
    rows = [
        [name, protocol, *texts]
        for (name, _), protocol, texts in zip(wide.index, _protocols(frame), wide.to_numpy(), strict=True)
    ]
    return Table(["bits per byte", "protocol", *map(format_count, wide.columns)], rows, num_text_columns=2)


def differences_table(grid: Comparison, frame: pd.DataFrame) -> Table:
    """Nats above the reference as trained, one row per name and protocol and one column per length.

    A cell is the mean over seeds with half of its 95 % interval or, for two seeds, their standard deviation.
    """
    others = alibi_first(frame[frame["name"] != grid.reference])
    wide = by_length(others, ["name", "protocol"], [_difference(grid, row) for row in rows_of(others)])
    rows = [
        [name, protocol, *texts]
        for (name, _), protocol, texts in zip(wide.index, _protocols(others), wide.to_numpy(), strict=True)
    ]
    return Table(["nats above " + grid.reference, "protocol", *map(format_count, grid.lengths)], rows, 2)


def milestone_table(records: Records) -> Table:
    """Perplexities, one row per model and step and one column per length; errors become footnotes."""
    frame = pick(frame_of(records), protocol=MILESTONE_PROTOCOL)
    cells, footnotes = _perplexities(frame)
    wide = by_length(frame, ["name", "step", "num_train_tokens"], cells)
    rows = [
        [name, format_count(step), format_count(num_tokens), *texts]
        for (name, step, num_tokens), texts in zip(wide.index, wide.to_numpy(), strict=True)
    ]
    return Table(["model", "steps", "tokens", *map(format_count, wide.columns)], rows, footnotes=footnotes)


def perplexity_table(records: Records) -> Table:
    frame = alibi_first(frame_of(records))
    columns = {
        "model": frame["name"],
        "position method": frame["position_method"],
        "protocol": [describe_protocol(row["protocol"], [row["stride_tokens"]]) for row in rows_of(frame)],
        "length": frame["length_tokens"].map(format_count),
        "perplexity": frame["perplexity"].map(format_perplexity),
        "nats per token": frame["nats_per_token"].map(format_nats),
        "bits per byte": frame["bits_per_byte"].map(format_nats),
        "tokens": frame["num_tokens"].map(format_count),
        "bytes": frame["num_bytes"].map(format_count),
    }
    return of_columns(columns, num_text_columns=3)


def training_table(records: Records) -> Table:
    frame = alibi_first(frame_of(records))
    columns = {
        "model": frame["name"],
        "position method": frame["position_method"],
        "perplexity": frame["validation_perplexity"].map(format_perplexity),
        "nats per token": frame["validation_nats_per_token"].map(format_nats),
        "seed": frame["seed"].map(str),
        "parameters": frame["num_parameters"].map(format_count),
        "length": frame["train_length_tokens"].map(format_count),
        "training tokens": frame["num_train_tokens"].map(format_count),
        "validation tokens": frame["num_validation_tokens"].map(format_count),
        "time": frame["train_seconds"].map(format_seconds),
        "precision": frame["bf16"].map({True: "bf16", False: "fp32"}),
    }
    return of_columns(columns, num_text_columns=2)


def beta_table(records: Records) -> Table:
    """One row per trial, sorted by beta, with the nats per token of each seed; the chosen trial is bold."""
    trials = rows_of(frame_of(records).sort_values(["beta", "trial"], kind="stable"))
    seeds = sorted({seed for trial in trials for seed in trial["seeds"]})
    by_seed = [dict(zip(t["seeds"], t["nats_per_token_by_seed"], strict=False)) for t in trials]
    columns = {
        BETA: [format_ratio(trial["beta"]) for trial in trials],
        "perplexity": [format_perplexity(trial["perplexity"]) for trial in trials],
        "nats per token": [format_nats(trial["nats_per_token"]) for trial in trials],
        **{f"seed {seed}": [format_nats(nats.get(seed)) for nats in by_seed] for seed in seeds},
        "state": [trial["state"].lower() for trial in trials],
    }
    chosen = choose_trial(trials)
    return of_columns(columns, bold_rows=[trials.index(chosen[0])] if chosen else [])


def beta_comparison_table(curves: dict[tuple[str, int], Curve]) -> Table:
    """Perplexity by beta, kind of slopes and length, one row per beta; stars mark values level with the lowest."""
    texts = {
        f"{kind}, {format_count(length)}": {
            beta: format_perplexity(row["perplexity"]) + (" *" if beta in curve.choice.level else "")
            for beta, row in curve.items()
        }
        for (kind, length), curve in curves.items()
    }
    frame = pd.DataFrame(texts).sort_index().fillna(MISSING_CELL)
    return of_columns({BETA: frame.index.map(format_ratio), **frame})


def beta_curves(grid: Comparison, protocol: str) -> dict[tuple[str, int], Curve]:
    """Curves with more than one beta, by kind of slopes and length."""
    kinds = ("geometric", "uniform", AFTER_TRAINING)
    curves = {(kind, length): grid.curve(kind, length, protocol) for kind in kinds for length in grid.lengths}
    return {key: curve for key, curve in curves.items() if len(curve) > 1}


def trained_beta_tables(records: Records) -> list[Table]:
    """One row per run with its loss and the final beta of each layer, then the slopes if they were learned."""
    frame = frame_of(records).sort_values(["alibi_trainable", "seed"], kind="stable")
    layers = pd.DataFrame([dict(enumerate(betas or [])) for betas in frame["beta_by_layer"]], index=frame.index)
    columns = {
        "trained": frame["alibi_trainable"],
        "seed": frame["seed"].map(str),
        "perplexity": frame["perplexity"].map(format_perplexity),
        "nats per token": frame["nats_per_token"].map(format_nats),
        **{f"{BETA}, layer {layer + 1}": layers[layer].map(format_ratio) for layer in layers},
    }
    rows = [
        [str(row["seed"]), str(layer), *map(format_ratio, slopes)]
        for row in rows_of(pick(frame, alibi_trainable="slopes"))
        for layer, slopes in enumerate(row["slopes_by_layer"], start=1)
    ]
    heads = [f"head {head}" for head in range(1, max(map(len, rows), default=0) - 1)]
    slopes = [Table(["seed", "layer", *heads], rows, num_text_columns=0)] if rows else []
    return [of_columns(columns), *slopes]


def of_columns(columns: dict[str, Any], **options: Any) -> Table:
    """Make a table from columns of text."""
    rows = [list(row) for row in zip(*columns.values(), strict=True)]
    return Table([str(name) for name in columns], rows, **options)


def provenance_table(sources: Sequence[Record]) -> Table:
    """One column per combination of versions and hardware, with its commits, times, seeds and data."""
    groups: dict[str, list[Record]] = {}
    for source in sources:
        groups.setdefault(str([source.get(key) for key in ("versions", "hardware")]), []).append(source)
    described = pd.DataFrame([_describe_sources(group) for group in groups.values()]).fillna(MISSING_CELL).T
    header = ["", *(f"{len(group)} record{'s' if len(group) > 1 else ''}" for group in groups.values())]
    rows = [[str(label), *texts] for label, texts in zip(described.index, described.to_numpy(), strict=True)]
    return Table(header, rows, num_text_columns=len(header))


def _describe_sources(sources: Sequence[Record]) -> dict[str, str]:
    first, hardware = sources[0], sources[0].get("hardware") or {}
    times = sorted(_values(sources, "time_utc"))
    memory_bytes = hardware.get("memory_bytes")
    commits: dict[str, list[bool]] = {}
    for source in sources:
        commits.setdefault((source.get("git_commit") or MISSING_CELL)[:12], []).append(bool(source.get("git_dirty")))
    by_origin = {
        "published in": [source for source in sources if "git_commit" not in source],
        "text": [source for source in sources if "git_commit" in source],
    }
    return {
        **{label: _gather(group, "source") for label, group in by_origin.items() if _values(group, "source")},
        "commit": ", ".join(f"{commit}{_changes(dirty)}" for commit, dirty in commits.items()),
        "time (UTC)": " to ".join(dict.fromkeys((times[0], times[-1]))) if times else MISSING_CELL,
        "seeds": _gather(sources, "seed"),
        "data": _gather(sources, "data_fingerprint"),
        "processor": str(hardware.get("cpu") or MISSING_CELL),
        "cores": format_count(hardware.get("num_cores")),
        "memory": f"{memory_bytes / 2**30:.1f} GiB" if memory_bytes else MISSING_CELL,
        "GPUs": ", ".join(hardware.get("gpus") or ["none"]) if hardware else MISSING_CELL,
        **{name: version or MISSING_CELL for name, version in (first.get("versions") or {}).items()},
    }


def _changes(is_dirty: Sequence[bool]) -> str:
    """How many records of a commit were made with uncommitted changes."""
    if all(is_dirty):
        return " with changes"
    return f" ({sum(is_dirty)} of {len(is_dirty)} records with changes)" if any(is_dirty) else ""


def _gather(sources: Sequence[Record], key: str) -> str:
    return ", ".join(map(str, sorted(_values(sources, key)))) or MISSING_CELL


def _values(sources: Sequence[Record], key: str) -> set[Any]:
    return {source[key] for source in sources if source.get(key) is not None}


def _protocols(frame: pd.DataFrame) -> list[str]:
    """Display names of the protocols, with strides, for each name and protocol in order."""
    groups = frame.groupby(["name", "protocol"], sort=False)["stride_tokens"]
    return [describe_protocol(protocol, strides.tolist()) for (_, protocol), strides in groups]


def _perplexities(frame: pd.DataFrame) -> tuple[list[str], list[str]]:
    """A cell for each record, and the footnotes that failed cells refer to."""
    rows = rows_of(frame)
    notes = [row["error"] and f"{row['name']}: {row['error']}" for row in rows]
    footnotes = list(dict.fromkeys(note for note in notes if note))
    cells = [
        f"failed ({footnotes.index(note) + 1})" if note else format_perplexity(row["perplexity"])
        for row, note in zip(rows, notes, strict=True)
    ]
    return cells, footnotes


def _difference(grid: Comparison, row: Record) -> str:
    difference = grid.difference(row["variant"], row["protocol"], row["length_tokens"], row["reading"])
    if difference is None:
        return MISSING_CELL
    spread = difference.half_width
    if spread is None and len(difference.by_seed) > 1:
        spread = statistics.stdev(difference.by_seed)
    return with_minus(f"{difference.mean:+.3f}" + ("" if spread is None else f" \N{PLUS-MINUS SIGN} {spread:.3f}"))
