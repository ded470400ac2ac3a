"""Tables and the figure of speed: a cell for each record, ratios as they were measured, nothing where nothing was."""

from pathlib import Path
from typing import Any

from modeling_alibi_gpt.report.report import build_report
from modeling_alibi_gpt.report.speed_tables import (
    attention_speed_table,
    conversion_speed_table,
    decode_speed_table,
    model_speed_table,
)
from modeling_alibi_gpt.runtime.records import Record
from tests.support.example_records import PROVENANCE


def attention_record(name: str, length_tokens: int, times_reference: float, **fields: Any) -> Record:
    return {
        "kind": "attention_speed",
        "name": name,
        "mode": "forward",
        "dtype": "float32",
        "length_tokens": length_tokens,
        "num_heads": 12,
        "head_dim": 64,
        "seconds": 0.5 * times_reference,
        "reference": "plain",
        "times_reference": times_reference,
        "times_reference_quartiles": [times_reference, times_reference],
        "num_rounds": 3,
        "num_threads": 2,
        "extra_bytes": 2**20,
        "max_error": 1e-6,
        "provenance": PROVENANCE,
        **fields,
    }


ATTENTION = [
    attention_record("plain", 1024, 1.0),
    attention_record("banded", 1024, 1.25),
    attention_record("dense", 1024, 2.0),
    attention_record("plain", 4096, 1.0),
    attention_record("banded", 4096, 0.625),
    attention_record("banded", 4096, 0.75, mode="forward_backward"),
    attention_record("banded", 1024, 1.0, num_heads=6, head_dim=32),
]
CPU = f"{PROVENANCE['hardware']['cpu']}, 2 threads"
SIZED = {"extra_bytes": 2**20}
SHAPE = {"num_layers": 4, "hidden_size": 768, "extra_bytes": None}


def of_models(name: str, length_tokens: int, times: float, **fields: Any) -> Record:
    """The fields of attention that whole models share, and ``fields``."""
    record = attention_record(name, length_tokens, times, **SHAPE | fields)
    return {field: value for field, value in record.items() if field not in ("head_dim", "max_error")}


MODEL = of_models("bloom", 2048, 2.5, kind="model_speed", reference="gpt2")
DECODE = of_models("alibi_banded", 0, 0.4, kind="decode_speed", reference="sdpa", context_tokens=16384)
DECODE |= {"cache_bytes": 2**21, "max_difference": 2e-6}
DECODE = {field: DECODE[field] for field in DECODE.keys() - {"mode", "length_tokens", "extra_bytes"}}


def test_attention_has_a_column_for_each_length_and_no_row_for_the_reference() -> None:
    table = attention_speed_table(ATTENTION)
    assert table.header[-2:] == ["1,024", "4,096"]
    assert table.rows == [
        ["alibi_banded", "forward", "float32", CPU, "12 x 64", "1.25", "0.62"],
        ["SDPA with a dense bias", "forward", "float32", CPU, "12 x 64", "2.00", "\N{EN DASH}"],
        ["alibi_banded", "forward and backward", "float32", CPU, "12 x 64", "\N{EN DASH}", "0.75"],
        ["alibi_banded", "forward", "float32", CPU, "6 x 32", "1.00", "\N{EN DASH}"],
    ]


def test_conversions_have_times_and_memory_at_each_length() -> None:
    fields = {"kind": "conversion_speed", "num_new_tokens": 32, "mode": "generate", "max_logit_difference": 3e-6}
    rows = [of_models("bloom", length, times, **SIZED | fields) for length, times in ((1024, 1.0), (4096, 0.25))]
    table = conversion_speed_table(rows)
    assert table.header[2:4] == ["times original, 1,024", "times original, 4,096"]
    assert table.rows == [["bloom", "generate 32", "1.00", "0.25", "1", "1", "3e-06"]]


def test_models_and_decoding() -> None:
    assert model_speed_table([MODEL]).rows == [["bloom", "forward", "2,048", "1.25", "2.50", "\N{EN DASH}"]]
    assert decode_speed_table([DECODE]).rows == [["alibi_banded", "16,384", "5.0", "2.50", "2", "2.0e-06"]]


def test_the_report_has_a_section_for_each_kind(tmp_path: Path) -> None:
    written = build_report([*ATTENTION, MODEL, DECODE], tmp_path, title="Speed")
    markdown = Path(written["markdown"]).read_text(encoding="utf-8")
    for heading in ("Speed of attention", "Speed of models", "Speed of decoding"):
        assert heading in markdown
    assert [Path(path).name for path in written["figures"]] == ["attention_speed.png"]
