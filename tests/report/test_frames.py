"""Records as tables: types, missing values, what records of old do not say, and CSV files."""

import csv
import json
from pathlib import Path

import pandas as pd

from modeling_alibi_gpt.report.frames import frame_of, frames, write_csv
from modeling_alibi_gpt.runtime.variants import what_varies
from tests.support.comparison_cases import beta_sweep, methods
from tests.support.example_records import demo_records, extrapolation_record


def test_columns_have_the_types_of_their_fields() -> None:
    frame = frame_of([extrapolation_record("learned", "sliding", length) for length in (128, 256)])
    assert frame["length_tokens"].dtype == "int64" and frame["num_tokens"].dtype == "Int64"
    assert frame["perplexity"].dtype == "float64"
    assert pd.isna(frame["perplexity"][1]) and pd.isna(frame["num_tokens"][1]) and frame["error"][0] is None
    assert frame["reading"].tolist() == ["as trained"] * 2, "what a lone measurement does not say has its default"


def test_each_kind_has_a_table_with_all_its_records() -> None:
    records = demo_records()
    found = frames(records)
    assert list(found) == list(dict.fromkeys(record["kind"] for record in records))
    for kind, frame in found.items():
        assert len(frame) == sum(record["kind"] == kind for record in records)


def test_what_a_variant_differs_in() -> None:
    assert what_varies("alibi", {}) == what_varies("alibi", {"alibi_beta": 1.0}) == "nothing"
    assert what_varies("alibi", {"alibi_beta": 2.0}) == what_varies("alibi", {"alibi_trainable": "beta"}) == "beta"
    assert what_varies("rope", {"position_method": "rope"}) == what_varies("alibi", {"qk_norm": True}) == "method"


def test_comparisons_of_old_are_read_as_those_of_now() -> None:
    for records in (methods(), beta_sweep()):
        cells = [record for record in records if record["kind"] == "comparison"]
        old = [{f: v for f, v in cell.items() if f not in ("corpus", "varies")} for cell in cells]
        assert all({"corpus", "varies"} <= cell.keys() for cell in cells)
        pd.testing.assert_frame_equal(frame_of(old).drop(columns="corpus"), frame_of(cells).drop(columns="corpus"))
    named = [cell | {"comparison": "methods on Mars"} for cell in old]
    assert set(frame_of(named)["corpus"]) == {"Mars"}


def test_each_kind_has_a_csv_file(tmp_path: Path) -> None:
    records = demo_records()
    paths = write_csv(records, tmp_path / "csv")
    assert sorted(Path(path).stem for path in paths) == sorted({record["kind"] for record in records})
    with (tmp_path / "csv" / "extrapolation.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    measured = [record for record in records if record["kind"] == "extrapolation"]
    for row, record in zip(rows, measured, strict=True):
        assert row["perplexity"] == ("" if record["perplexity"] is None else repr(record["perplexity"]))
        assert row["length_tokens"] == str(record["length_tokens"])
        assert row["num_tokens"] == ("" if record["num_tokens"] is None else str(record["num_tokens"]))
        assert json.loads(row["provenance"])["git_commit"] == record["provenance"]["git_commit"]
