"""What a report says of speed: attention, whole models and decoding, each as a ratio to the reference beside it."""

from collections.abc import Sequence

from matplotlib.figure import Figure

from modeling_alibi_gpt.reporting.drawing import Line, as_png, draw_lines, log2_axis, name_lines, new_axes
from modeling_alibi_gpt.reporting.page import Picture, Section
from modeling_alibi_gpt.reporting.records import Record
from modeling_alibi_gpt.reporting.tables import NOTHING, Table, format_count, format_mebibytes, group_by


# As records name the ways of attention -> as a reader knows them.
WAY_NAMES = {
    "dense": "SDPA with a dense bias",
    "strips": "sdpa (from 512 tokens on)",
    "augmented": "augmented keys (sdpa on GPUs)",
    "banded": "alibi_banded",
    "flex": "flex_attention",
    "eager": "eager, as BLOOM and MPT",
}
# The lines of the figure, and whether they are drawn as ALiBi's.
_DRAWN = {"banded": "alibi", "strips": "sinusoidal", "dense": "none"}
_DRAWN_HEAD_DIM = 64


def attention_speed_table(records: Sequence[Record]) -> Table:
    """A row for each processor, shape, mode, dtype and way; a column for each length, in times the reference."""
    lengths = sorted({record["length_tokens"] for record in records})
    rows = []
    keys = group_by(
        [record for record in records if record["name"] != record["reference"]],
        lambda record: (
            *(record[field] for field in ("num_heads", "head_dim", "mode", "dtype", "name")),
            processor(record),
        ),
    )
    for (num_heads, head_dim, mode, dtype, name, cpu), group in keys.items():
        times = {record["length_tokens"]: f"{record['times_reference']:.2f}" for record in group}
        words = [WAY_NAMES[name], mode.replace("_", " and "), dtype, cpu, f"{num_heads} x {head_dim}"]
        rows.append([*words, *(times.get(length, NOTHING) for length in lengths)])
    header = ["times plain causal attention", "", "dtype", "processor", "heads x size", *map(format_count, lengths)]
    return Table(header, rows, num_text_columns=4)


def processor(record: Record) -> str:
    """What a record was timed on."""
    hardware = record["provenance"]["hardware"]
    return hardware["gpus"][0] if hardware["gpus"] else f"{hardware['cpu']}, {record['num_threads']} threads"


def model_speed_table(records: Sequence[Record]) -> Table:
    """A row for each model, mode and length."""
    rows = [
        [
            record["name"],
            record["mode"].replace("_", " "),
            format_count(record["length_tokens"]),
            f"{record['seconds']:.2f}",
            f"{record['times_reference']:.2f}",
            format_mebibytes(record["extra_bytes"]),
        ]
        for record in records
    ]
    reference = " and ".join(dict.fromkeys(record["reference"] for record in records))
    header = ["model", "", "tokens", "seconds", f"times {reference}", "extra MiB"]
    return Table(header, rows, num_text_columns=2)


def conversion_speed_table(records: Sequence[Record]) -> Table:
    """A row for each model and mode; times the original and MiB beyond its own weights at each length."""
    lengths = sorted({record["length_tokens"] for record in records})
    rows = []
    for group in group_by(records, lambda record: (record["name"], record["mode"], record["num_new_tokens"])).values():
        by_length = {record["length_tokens"]: record for record in group}
        found = [by_length.get(length) for length in lengths]
        times = [NOTHING if record is None else f"{record['times_reference']:.2f}" for record in found]
        memory = [format_mebibytes(None if record is None else record["extra_bytes"]) for record in found]
        mode = " ".join(str(part) for part in (group[0]["mode"], group[0]["num_new_tokens"]) if part is not None)
        worst = max(record["max_logit_difference"] for record in group)
        rows.append([group[0]["name"], mode, *times, *memory, f"{worst:.0e}"])
    times = [f"times original, {format_count(length)}" for length in lengths]
    extra = [f"extra MiB, {format_count(length)}" for length in lengths]
    return Table(["model", "", *times, *extra, "logits differ by"], rows, num_text_columns=2)


def decode_speed_table(records: Sequence[Record]) -> Table:
    """A row for each back end and length of context."""
    rows = [
        [
            record["name"],
            format_count(record["context_tokens"]),
            f"{1 / record['seconds']:.1f}",
            f"{1 / record['times_reference']:.2f}",
            format_count(record["cache_bytes"] / 2**20),
            f"{record['max_difference']:.1e}",
        ]
        for record in records
    ]
    header = ["back end", "context", "tokens per second", "times as fast", "cache, MiB", "logits differ by"]
    return Table(header, rows)


@as_png
def attention_speed_figure(records: Sequence[Record]) -> Figure:
    """Time of float32 prefill against length, in times plain causal attention: one line for each way drawn."""
    figure, axes = new_axes()
    drawn = ("forward", "float32", _DRAWN_HEAD_DIM)
    chosen = [record for record in records if (record["mode"], record["dtype"], record["head_dim"]) == drawn]
    lines = []
    for name, colour in _DRAWN.items():
        points = sorted(
            {record["length_tokens"]: record["times_reference"] for record in chosen if record["name"] == name}.items()
        )
        if points:
            xs, ys = zip(*points, strict=True)
            lines.append(Line(WAY_NAMES[name], colour, xs, ys))
    log2_axis(axes, [x for line in lines for x in line.xs], format_count)
    axes.axhline(1.0, color="black", linewidth=0.8, linestyle=":")
    axes.set(xlabel="tokens (log scale)", ylabel="time / plain causal attention")
    draw_lines(axes, lines)
    axes.set_ylim(0, 1.08 * max(y for line in lines for y in line.ys))
    name_lines(axes, lines)
    return figure


def speed_sections(by_kind: dict[str, list[Record]]) -> list[Section]:
    """Sections of a report for the kinds of records of ``scripts/benchmark.py``."""
    sections = []
    if attention := by_kind.get("attention_speed", []):
        sentence = "1 is causal attention that knows no positions at all, timed in turn with the others."
        names = {record["name"] for record in attention if record["mode"] == "forward"}
        alt = "Time of attention against length, relative to plain causal attention"
        drawable = names & _DRAWN.keys()
        pictures = [Picture("attention_speed.png", attention_speed_figure(attention), alt)] if drawable else []
        sections.append(Section("Speed of attention", sentence, pictures, [attention_speed_table(attention)]))
    if models := by_kind.get("model_speed", []):
        sentence = (
            "Models of one shape with random weights, timed in turn. Seconds are medians over rounds, and so are the "
            "ratios, each taken within a round: one is not the quotient of the other."
        )
        sections.append(Section("Speed of models", sentence, [], [model_speed_table(models)]))
    if converted := by_kind.get("conversion_speed", []):
        sentence = "Models of other families beside what they convert to, with the same random weights."
        sections.append(Section("Speed of converted models", sentence, [], [conversion_speed_table(converted)]))
    if decoding := by_kind.get("decode_speed", []):
        sentence = "One token after a long text, with the cache of each back end."
        sections.append(Section("Speed of decoding", sentence, [], [decode_speed_table(decoding)]))
    return sections
