"""Tables of speed: attention, whole models and decoding, each relative to an interleaved reference."""

import pandas as pd

from modeling_alibi_gpt.report.formats import MISSING_CELL, format_count, format_mebibytes
from modeling_alibi_gpt.report.frames import Records, frame_of, rows_of
from modeling_alibi_gpt.report.tables import Table, by_length, of_columns
from modeling_alibi_gpt.runtime.records import Record


# Names of attention back ends in records -> display names.
WAY_NAMES = {
    "dense": "SDPA with a dense bias",
    "strips": "sdpa (from 512 tokens on)",
    "fused": "sdpa on GPUs",
    "augmented": "augmented keys",
    "banded": "alibi_banded",
    "flex": "flex_attention",
    "eager": "eager, as BLOOM and MPT",
}


def attention_speed_table(records: Records) -> Table:
    """Times relative to the reference, one row per processor, shape, mode, dtype and back end, a column per length."""
    every = frame_of(records)
    every = every.assign(processor=[processor(row) for row in rows_of(every)])
    frame = every[every["name"] != every["reference"]]
    keys = ["num_heads", "head_dim", "mode", "dtype", "name", "processor"]
    wide = by_length(frame, keys, frame["times_reference"].map("{:.2f}".format))
    wide = wide.reindex(columns=sorted(every["length_tokens"].unique()), fill_value=MISSING_CELL)
    rows = [
        [WAY_NAMES[name], mode.replace("_", " and "), dtype, cpu, f"{num_heads} x {head_dim}", *times]
        for (num_heads, head_dim, mode, dtype, name, cpu), times in zip(wide.index, wide.to_numpy(), strict=True)
    ]
    header = ["times plain causal attention", "", "dtype", "processor", "heads x size"]
    return Table([*header, *map(format_count, wide.columns)], rows, num_text_columns=4)


def processor(record: Record) -> str:
    """The processor that a record was timed on."""
    hardware = record["provenance"].get("hardware") or {}
    gpus = hardware.get("gpus")
    return gpus[0] if gpus else f"{hardware.get('cpu')}, {record['num_threads']} threads"


def model_speed_table(records: Records) -> Table:
    """One row per model, mode and length."""
    frame = frame_of(records)
    columns = {
        "model": frame["name"],
        "": frame["mode"].str.replace("_", " "),
        "tokens": frame["length_tokens"].map(format_count),
        "seconds": frame["seconds"].map("{:.2f}".format),
        f"times {' and '.join(frame['reference'].unique())}": frame["times_reference"].map("{:.2f}".format),
        "extra MiB": frame["extra_bytes"].map(format_mebibytes),
    }
    return of_columns(columns, num_text_columns=2)


def conversion_speed_table(records: Records) -> Table:
    """One row per model and mode: time relative to the original, and MiB beyond the weights, at each length."""
    frame = frame_of(records)
    counts = frame["num_new_tokens"].map(" {}".format, na_action="ignore").astype(object).fillna("")
    frame = frame.assign(mode=frame["mode"] + counts)
    keys = ["name", "mode"]
    times = by_length(frame, keys, frame["times_reference"].map("{:.2f}".format))
    memory = by_length(frame, keys, frame["extra_bytes"].map(format_mebibytes))
    worst = frame.groupby(keys, sort=False)["max_logit_difference"].max()
    rows = [[*key, *times.loc[key], *memory.loc[key], f"{difference:.0e}"] for key, difference in worst.items()]
    lengths = [format_count(length) for length in times.columns]
    header = [*(f"times original, {n}" for n in lengths), *(f"extra MiB, {n}" for n in lengths), "logits differ by"]
    return Table(["model", "", *header], rows, num_text_columns=2)


def decode_speed_table(records: Records) -> Table:
    """One row per back end and context length."""
    frame = frame_of(records)
    columns = {
        "back end": frame["name"],
        "context": frame["context_tokens"].map(format_count),
        "tokens per second": (1 / frame["seconds"]).map("{:.1f}".format),
        "times as fast": (1 / frame["times_reference"]).map("{:.2f}".format),
        "cache, MiB": frame["cache_bytes"].map(format_mebibytes),
        "logits differ by": [MISSING_CELL if pd.isna(value) else f"{value:.1e}" for value in frame["max_difference"]],
    }
    return of_columns(columns)
