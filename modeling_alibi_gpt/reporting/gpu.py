"""Tables of ``make gpu``: attention beside plain attention by length, and whole models beside GPT-2 and Llama."""

from collections.abc import Sequence

from modeling_alibi_gpt.reporting.records import Record
from modeling_alibi_gpt.reporting.tables import NOTHING, Table, format_count


WAYS = {
    "flex": "flex_attention",
    "banded": "alibi_banded",
    "augmented": "augmented keys (sdpa)",
    "dense": "a dense mask",
}


def gpu_attention_table(records: Sequence[Record]) -> Table:
    """Times of plain causal attention: a row for each way, head size and direction, a column for each length.

    Args:
        records: ``attention_speed`` records of one device.
    """
    lengths = sorted({record["length_tokens"] for record in records})
    times = {(r["name"], r["head_dim"], r["mode"], r["length_tokens"]): f"{r['times_reference']:.2f}" for r in records}
    settings = sorted({(record["head_dim"], record["mode"]) for record in records})
    rows = []
    for name, label in WAYS.items():
        for head_dim, mode in settings:
            cells = [times.get((name, head_dim, mode, length), NOTHING) for length in lengths]
            rows.append([label, str(head_dim), mode.replace("_", " and "), *cells])
    return Table(["way", "head size", "", *map(format_count, lengths)], rows, num_text_columns=1)


def gpu_model_table(records: Sequence[Record]) -> Table:
    """Throughput of optimizer steps, in the order of the records.

    Args:
        records: ``model_speed`` records of one device.
    """
    rows = [
        [
            record["name"],
            f"{record['num_parameters'] / 1e6:,.0f} M",
            format_count(record["length_tokens"]),
            format_count(round(record["tokens_per_second"])),
            f"{record['model_flops_utilization']:.0%}",
            f"{1 / record['times_reference']:.2f}",
        ]
        for record in records
    ]
    header = ["model", "parameters", "tokens a row", "tokens per second", "MFU", "GPT-2's speed"]
    return Table(header, rows, num_text_columns=1)
