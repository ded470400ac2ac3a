"""The tables of a report, one function each, and how its numbers are written."""

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from modeling_alibi_gpt.reporting.grid import Grid, with_minus
from modeling_alibi_gpt.reporting.records import Record
from modeling_alibi_gpt.reporting.statistics import choose_trial


BETA = "\N{GREEK SMALL LETTER BETA}"
NOTHING = "\N{EN DASH}"


@dataclass(frozen=True)
class Table:
    """Cells are text, ready to be shown but not escaped; the first ``num_text_columns`` columns are words."""

    header: list[str]
    rows: list[list[str]]
    num_text_columns: int = 1
    bold_rows: list[int] = field(default_factory=list)
    footnotes: list[str] = field(default_factory=list)


def format_count(value: float | None) -> str:
    return NOTHING if value is None else f"{value:,.0f}"


def format_mebibytes(num_bytes: float | None) -> str:
    return NOTHING if num_bytes is None else format_count(num_bytes / 2**20)


def format_perplexity(value: float | None) -> str:
    if value is None:
        return NOTHING
    return f"{value:,.2f}" if value < 1e6 else f"{value:.2e}"


def format_nats(value: float | None) -> str:
    """Nats and bits alike: four decimals."""
    return NOTHING if value is None else f"{value:.4f}"


def format_ratio(value: float | None, num_digits: int = 4) -> str:
    """Values of beta and of slopes: powers of two below 1 as fractions, anything else to ``num_digits`` digits."""
    if value is None:
        return NOTHING
    if 0 < value < 1 and math.frexp(value)[0] == 0.5:
        return f"1/{round(1 / value):,}"
    return f"{value:.{num_digits}g}"


def format_range(values: Iterable[float]) -> str:
    """``1.02 to 2.05``, or one number where both ends are the same to two decimals."""
    ends = sorted(values)
    return " to ".join(dict.fromkeys((f"{ends[0]:.2f}", f"{ends[-1]:.2f}")))


def format_seconds(value: float) -> str:
    minutes, seconds = divmod(round(value), 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min {seconds} s"


def is_alibi(record: Record) -> bool:
    return bool(record["position_method"] == "alibi")


def alibi_first(records: Iterable[Record]) -> list[Record]:
    """Sorted for display: ALiBi, then the other position methods by name, each by model name and length."""

    def key(record: Record) -> tuple[bool, str, str, int]:
        return not is_alibi(record), record["position_method"], record["name"], record.get("length_tokens", 0)

    return sorted(records, key=key)


def group_by(records: Iterable[Record], key: Callable[[Record], Any]) -> dict[Any, list[Record]]:
    """Records with equal keys together, in the order of their first appearance."""
    groups: dict[Any, list[Record]] = {}
    for record in records:
        groups.setdefault(key(record), []).append(record)
    return groups


def distinct_names(records: Sequence[Record]) -> list[Record]:
    """The records, with the model's place added to a name that several models share."""
    models = {name: {record["model"] for record in group} for name, group in group_by(records, _name).items()}
    return [
        record | {"name": f"{record['name']} ({record['model']})"} if len(models[record["name"]]) > 1 else record
        for record in records
    ]


def extrapolation_table(records: Sequence[Record]) -> Table:
    """One row per model and protocol, one column per length, perplexities; errors become footnotes."""
    lengths = sorted({record["length_tokens"] for record in records})
    footnotes: list[str] = []
    rows = []
    for (name, _), group in group_by(alibi_first(records), _name_and_protocol).items():
        by_length = {record["length_tokens"]: record for record in group}
        cells = [_perplexity_or_footnote(by_length.get(length), footnotes) for length in lengths]
        rows.append([name, describe_protocol(group), *cells, format_count(group[0]["train_context_length"])])
    header = ["model", "protocol", *map(format_count, lengths), "trained at"]
    return Table(header, rows, num_text_columns=2, footnotes=footnotes)


def differences_table(grid: Grid, records: Sequence[Record]) -> Table:
    """Nats above the reference as trained, one row a name and protocol, one column a length.

    A cell holds the mean over seeds and the standard deviation of the seeds' differences.
    """
    rows = []
    others = [record for record in alibi_first(records) if record["name"] != grid.reference]
    for group in group_by(others, lambda record: (record["name"], record["protocol"])).values():
        by_length = {record["length_tokens"]: record for record in group}
        cells = [_difference(grid, by_length[length]) for length in grid.lengths]
        rows.append([group[0]["name"], describe_protocol(group), *cells])
    return Table(["nats above " + grid.reference, "protocol", *map(format_count, grid.lengths)], rows, 2)


def perplexity_table(records: Sequence[Record]) -> Table:
    header = ["model", "position method", "protocol", "length", "perplexity", "nats per token", "bits per byte"]
    rows = [
        [
            *(record["name"], record["position_method"], describe_protocol([record])),
            *(format_count(record["length_tokens"]), format_perplexity(record["perplexity"])),
            *(format_nats(record["nats_per_token"]), format_nats(record["bits_per_byte"])),
            *(format_count(record["num_tokens"]), format_count(record["num_bytes"])),
        ]
        for record in alibi_first(records)
    ]
    return Table([*header, "tokens", "bytes"], rows, num_text_columns=3)


def training_table(records: Sequence[Record]) -> Table:
    header = ["model", "position method", "perplexity", "nats per token", "seed", "parameters", "length"]
    rows = [
        [
            *(record["name"], record["position_method"], format_perplexity(record["validation_perplexity"])),
            *(format_nats(record["validation_nats_per_token"]), str(record["seed"])),
            *(format_count(record["num_parameters"]), format_count(record["train_length_tokens"])),
            *(format_count(record["num_train_tokens"]), format_count(record["num_validation_tokens"])),
            *(format_seconds(record["train_seconds"]), "bf16" if record["bf16"] else "fp32"),
        ]
        for record in alibi_first(records)
    ]
    header += ["training tokens", "validation tokens", "time", "precision"]
    return Table(header, rows, num_text_columns=2)


def beta_table(trials: Sequence[Record]) -> Table:
    """One row per trial, sorted by beta, the taken one in bold; a column of nats per token for each seed."""
    trials = sorted(trials, key=lambda trial: (trial["beta"], trial["trial"]))
    seeds = sorted({seed for trial in trials for seed in trial["seeds"]})
    rows = []
    for trial in trials:
        by_seed = dict(zip(trial["seeds"], trial["nats_per_token_by_seed"] or [], strict=False))
        numbers = [format_perplexity(trial["perplexity"]), format_nats(trial["nats_per_token"])]
        cells = [format_nats(by_seed.get(seed)) for seed in seeds]
        rows.append([format_ratio(trial["beta"]), *numbers, *cells, trial["state"].lower()])
    chosen = choose_trial(trials)
    bold_rows = [trials.index(chosen[0])] if chosen else []
    header = [BETA, "perplexity", "nats per token", *(f"seed {seed}" for seed in seeds), "state"]
    return Table(header, rows, bold_rows=bold_rows)


def trained_beta_table(records: Sequence[Record]) -> Table:
    """One row per run: its loss, and the beta that each layer ended with."""
    num_layers = max(len(record["beta_by_layer"] or []) for record in records)
    rows = []
    for record in sorted(records, key=lambda record: (record["alibi_trainable"], record["seed"])):
        betas = record["beta_by_layer"] or []
        cells = [format_ratio(beta) for beta in betas] + [NOTHING] * (num_layers - len(betas))
        numbers = [format_perplexity(record["perplexity"]), format_nats(record["nats_per_token"])]
        rows.append([record["alibi_trainable"], str(record["seed"]), *numbers, *cells])
    layers = [f"{BETA}, layer {layer}" for layer in range(1, num_layers + 1)]
    return Table(["trained", "seed", "perplexity", "nats per token", *layers], rows)


def trained_slopes_table(records: Sequence[Record]) -> Table | None:
    """One row per run and layer of the runs that train every slope; None without such runs."""
    records = [record for record in records if record["alibi_trainable"] == "slopes"]
    rows = [
        [str(record["seed"]), str(layer), *map(format_ratio, slopes)]
        for record in sorted(records, key=lambda record: record["seed"])
        for layer, slopes in enumerate(record["slopes_by_layer"], start=1)
    ]
    if not rows:
        return None
    heads = [f"head {head}" for head in range(1, max(map(len, rows)) - 1)]
    return Table(["seed", "layer", *heads], rows, num_text_columns=0)


def provenance_table(records: Sequence[Record]) -> Table:
    """One column per combination of versions and hardware; commits, times, seeds and data are gathered in it."""
    sources = [record["provenance"] for record in records]
    columns = list(
        group_by(sources, lambda source: str([source.get(key) for key in ("versions", "hardware")])).values()
    )
    described = [_describe_sources(column) for column in columns]
    labels = dict.fromkeys(label for column in described for label in column)
    rows = [[label, *(column.get(label, NOTHING) for column in described)] for label in labels]
    header = ["", *(f"{len(column)} record{'s' if len(column) > 1 else ''}" for column in columns)]
    return Table(header, rows, num_text_columns=len(header))


def _describe_sources(sources: Sequence[Record]) -> dict[str, str]:
    first, hardware = sources[0], sources[0].get("hardware") or {}
    times = sorted(source["time_utc"] for source in sources if source.get("time_utc"))
    memory_bytes = hardware.get("memory_bytes")
    commits = group_by(sources, lambda source: (source.get("git_commit") or NOTHING)[:12])
    published = {"published in": _gather(sources, "source")} if "source" in first else {}
    return published | {
        "commit": ", ".join(f"{commit}{_changes(group)}" for commit, group in commits.items()),
        "time (UTC)": " to ".join(dict.fromkeys((times[0], times[-1]))) if times else NOTHING,
        "seeds": _gather(sources, "seed"),
        "data": _gather(sources, "data_fingerprint"),
        "processor": str(hardware.get("cpu") or NOTHING),
        "cores": format_count(hardware.get("num_cores")),
        "memory": f"{memory_bytes / 2**30:.1f} GiB" if memory_bytes else NOTHING,
        "GPUs": ", ".join(hardware.get("gpus") or ["none"]) if hardware else NOTHING,
        **{name: version or NOTHING for name, version in (first.get("versions") or {}).items()},
    }


def _changes(sources: Sequence[Record]) -> str:
    """How many of a commit's records were made with files that differ from it."""
    num_changed = sum(bool(source.get("git_dirty")) for source in sources)
    if num_changed == len(sources):
        return " with changes"
    return f" ({num_changed} of {len(sources)} records with changes)" if num_changed else ""


def _gather(sources: Sequence[Record], key: str) -> str:
    values = {source[key] for source in sources if source.get(key) is not None}
    return ", ".join(map(str, sorted(values))) or NOTHING


def protocol_name(protocol: str) -> str:
    """A protocol for people, without its strides."""
    return "non-overlapping" if protocol == "nonoverlapping" else protocol


def describe_protocol(records: Sequence[Record]) -> str:
    """The protocol that ``records`` share, with their strides in tokens, for people."""
    if records[0]["protocol"] != "sliding":
        return protocol_name(records[0]["protocol"])
    strides = [record["stride_tokens"] for record in records]
    ends = dict.fromkeys((format_count(min(strides)), format_count(max(strides))))
    return f"sliding, stride {' to '.join(ends)}"


def _name(record: Record) -> str:
    return str(record["name"])


def _name_and_protocol(record: Record) -> tuple[str, str]:
    return record["name"], record["protocol"]


def _perplexity_or_footnote(record: Record | None, footnotes: list[str]) -> str:
    if record is None:
        return NOTHING
    if record["error"] is None:
        return format_perplexity(record["perplexity"])
    text = f"{record['name']}: {record['error']}"
    if text not in footnotes:
        footnotes.append(text)
    return f"failed ({footnotes.index(text) + 1})"


def _difference(grid: Grid, record: Record) -> str:
    difference = grid.difference(record["variant"], record["protocol"], record["length_tokens"], record["reading"])
    if difference is None:
        return NOTHING
    seeds = difference.by_seed
    spread = f" \N{PLUS-MINUS SIGN} {statistics.stdev(seeds):.3f}" if len(seeds) > 1 else ""
    return with_minus(f"{difference.mean:+.3f}{spread}")
