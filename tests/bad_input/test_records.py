"""Records of a wrong shape: every field of every kind as something else, and comparisons that are not whole."""

import copy
import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from modeling_alibi_gpt.runtime.records import RECORD_TYPES, check_record
from tests.bad_input.refusals import Case, Inputs, parametrized, refused
from tests.support.comparison_cases import methods
from tests.support.example_records import demo_records


# What no field of a record is.
WRONG = [{"a": {"b": [None]}}, [[[["x"]]]]]
OPEN = ("fields", "overrides", "provenance", "reading_fields")  # objects that may hold any key
RECORDS = {record["kind"]: record for record in reversed([*methods(), *demo_records()])}
LINES: dict[str, tuple[str, str]] = {
    "cut": ('{"kind": "training"\n', " is not valid JSON"),
    "nested deep": ("[" * 10**5 + "\n", " is not valid JSON"),
    "a list": ("[1]\n", " contains list"),
    "a number": ("5\n", " contains int"),
    "NaN": ('{"kind": NaN}\n', " is not valid JSON (expected value at line 1 column 10)"),
    "empty": ("\n", " is not valid JSON"),
    "no kind": ("{}\n", ": got a record of kind None"),
    "a kind that is a list": ('{"kind": []}\n', ": got a record of kind []"),
    "an unknown kind": ('{"kind": "x"}\n', ": got a record of kind 'x'"),
}


def _lines(lines: list[str], work: Path, _: Inputs) -> list[str]:
    path = work / "records.jsonl"
    path.write_text("".join(lines), encoding="utf-8")
    return ["--records", str(path), "--output-dir", str(work / "out")]


def _records(records: list[dict[str, Any]], work: Path, inputs: Inputs) -> list[str]:
    return _lines([json.dumps(record) + "\n" for record in records], work, inputs)


def _field_cases() -> list[Case]:
    """The second line is wrong in one field, lacks one, or has one that its kind does not have."""
    without = {key: value for key, value in RECORDS["comparison"].items() if key != "seeds"}
    message = "records.jsonl line 2: a record of kind comparison needs seeds"
    cases = [Case("a comparison without seeds", "report", partial(_records, [RECORDS["training"], without]), message)]
    for kind, record in RECORDS.items():
        for field in [name for name in record if name != "kind"]:
            for wrong in WRONG:
                # A field of one value refuses an object and a list in the same words.
                if isinstance(wrong, dict) and (field in OPEN or not isinstance(record[field], list | dict)):
                    continue
                arguments = partial(_records, [RECORDS["training"], {**record, field: copy.deepcopy(wrong)}])
                name = f"{kind} whose {field} is of type {type(wrong).__name__}"
                cases.append(Case(name, "report", arguments, f"records.jsonl line 2: '{field}' must be "))
        arguments = partial(_records, [RECORDS["training"], {**record, "color": "red"}])
        message = f"records.jsonl line 2: 'color' is not a field of a record of kind {kind}"
        cases.append(Case(f"{kind} with a field of its own", "report", arguments, message))
    return cases


def _line_cases() -> list[Case]:
    first = json.dumps(RECORDS["training"]) + "\n"
    cases = [
        Case(f"a line that is {what}", "report", partial(_lines, [first, line]), f"records.jsonl line 2{message}")
        for what, (line, message) in LINES.items()
    ]
    cases += [
        Case(
            f"{kind} with a number for {field}", "report", partial(_records, [{**RECORDS[kind], field: value}]), field
        )
        for kind, field, value in (
            ("extrapolation", "length_tokens", 0),
            ("extrapolation", "perplexity", -1.0),
            ("extrapolation", "perplexity", None),
            ("beta_trial", "beta", 0.0),
            ("beta_trial", "nats_per_token", None),
            ("bias_matrix", "slopes", []),
            ("bias_matrix", "bias", [[[]]]),
            ("bias_by_distance", "distances_tokens", []),
            ("bias_by_distance", "bias_after", []),
            ("trained_beta", "beta_by_layer", []),
        )
    ]
    return cases


def _whole_cases() -> list[Case]:
    records = methods()
    cases = []
    for kind in ("training", "extrapolation", "comparison"):
        arguments = partial(_records, [record for record in records if record["kind"] != kind])
        cases.append(Case(f"a comparison without its {kind} records", "report", arguments, "comparison 'test' "))
    cells = [index for index, record in enumerate(records) if record["kind"] == "comparison"]
    for index in cells[:3]:
        arguments = partial(_records, records[:index] + records[index + 1 :])
        cases.append(Case(f"a comparison without cell {index}", "report", arguments, "comparison 'test' lacks"))
    return cases


def _parts() -> list[Case]:
    named = {case.name: case for case in _field_cases() + _line_cases() + _whole_cases()}
    return list(named.values())


@pytest.mark.parametrize("kind", RECORDS)
def test_a_record_without_a_field_is_refused(kind: str) -> None:
    fields = RECORD_TYPES[kind].model_fields
    required = [name for name, schema in fields.items() if schema.is_required() and name != "kind"]
    assert required
    for field in required:
        without = {key: value for key, value in RECORDS[kind].items() if key != field}
        with pytest.raises(ValueError, match=f"^a record of kind {kind} needs {field}; got only "):
            check_record(without)


@parametrized(_parts())
def test_records(case: Case, tmp_path: Path, inputs: Inputs, capfd: pytest.CaptureFixture[str]) -> None:
    refused(case, tmp_path, inputs, capfd)
