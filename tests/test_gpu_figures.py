"""The figures from a GPU in the documentation, against the records."""

from collections.abc import Sequence

from modeling_alibi_gpt.report.formats import MISSING_CELL, format_count
from modeling_alibi_gpt.report.frames import frame_of
from modeling_alibi_gpt.report.page import markdown_table
from modeling_alibi_gpt.report.speed_tables import decode_speed_table
from modeling_alibi_gpt.report.tables import Table, by_length, of_columns
from modeling_alibi_gpt.runtime.records import Record, read_records
from tests.test_readme import DOCUMENTATION, ROOT, assert_links_to, assert_prose_has, group_by


BACK_ENDS = {
    "fused": "sdpa",
    "banded": "alibi_banded",
    "flex": "flex_attention",
    "augmented": "augmented keys",
}


def attention_table(records: Sequence[Record]) -> Table:
    """Times relative to plain causal attention, one row per back end, head size and mode, one column per length.

    Args:
        records: ``attention_speed`` records of one device.
    """
    frame = frame_of(records)
    wide = by_length(frame, ["name", "head_dim", "mode"], frame["times_reference"].map("{:.2f}".format))
    texts = dict(zip(wide.index, wide.to_numpy(), strict=True))
    missing = [MISSING_CELL] * len(wide.columns)
    settings = sorted({(head_dim, mode) for _, head_dim, mode in wide.index})
    rows = [
        [label, str(head_dim), mode.replace("_", " and "), *texts.get((name, head_dim, mode), missing)]
        for name, label in BACK_ENDS.items()
        for head_dim, mode in settings
    ]
    return Table(["way", "head size", "", *map(format_count, wide.columns)], rows)


def model_table(records: Sequence[Record]) -> Table:
    """Throughput of optimizer steps, in the order of the records.

    Args:
        records: ``model_speed`` records of one device.
    """
    frame = frame_of(records)
    columns = {
        "model": frame["name"],
        "parameters": (frame["num_parameters"] / 1e6).map("{:,.0f} M".format),
        "tokens a row": frame["length_tokens"].map(format_count),
        "tokens per second": frame["tokens_per_second"].map(format_count),
        "MFU": frame["model_flops_utilization"].map("{:.0%}".format),
        "times GPT-2's speed": (1 / frame["times_reference"]).map("{:.2f}".format),
    }
    return of_columns(columns)


def test_figures_from_a_gpu_are_those_of_the_records() -> None:
    (path,) = (ROOT / "results").glob("gpu_h200_*.jsonl")
    assert_links_to(path)
    by_kind = group_by(read_records(path), lambda record: record["kind"])
    assert markdown_table(model_table(by_kind["model_speed"])) in DOCUMENTATION
    assert markdown_table(attention_table(by_kind["attention_speed"])) in DOCUMENTATION
    assert markdown_table(decode_speed_table(by_kind["decode_speed"])) in DOCUMENTATION
    (tests,) = by_kind["gpu_tests"]
    assert tests["failed"] == 0 and not tests["unfinished"]
    assert_prose_has(f"{tests['passed']} tests passed and none failed; {tests['skipped']} were skipped")
    attention = {
        (record["name"], record["mode"], record["head_dim"], record["length_tokens"]): record
        for record in by_kind["attention_speed"]
    }
    for name, words in (("plain", "with its fastest kernel, at"), ("flex", "flex reaches")):
        record = attention[name, "forward", 128, 65_536]
        # Two matrix products, of which causal attention needs half.
        flops = 4 * record["length_tokens"] ** 2 * record["head_dim"] * record["num_heads"] / 2
        assert_prose_has(f"{words} {flops / record['seconds'] / 1e12:.0f} TFLOP/s")


def test_times_of_the_forward_kernel_are_those_of_the_records() -> None:
    (times,), (tests,) = ((ROOT / "results").glob(f"{name}_h200_*.jsonl") for name in ("kernel_times", "gpu_tests"))
    for path in (times, tests):
        assert_links_to(path)
    by_cell = {(row["head_dim"], row["length_tokens"]): row["times_plain"] for row in read_records(times)}
    for head_dim in (64, 128):
        for word, key in (("before", "before"), ("now", "fewer_maxima_and_flattest_heads_first")):
            cells = " | ".join(f"{by_cell[head_dim, length][key]:.2f}" for length in (1024, 2048, 4096, 16384))
            assert f"| {head_dim} | {word} | {cells} |" in DOCUMENTATION
    (outcome,) = read_records(tests)
    assert (outcome["failed"], outcome["unfinished"]) == (0, [])
    assert_prose_has(f"on that kernel, before the order of heads changed: {outcome['passed']} passed and none failed")
