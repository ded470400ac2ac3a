"""Names that are paths, or that only one folder could have: comparisons and reports."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest

from modeling_alibi_gpt.runtime.records import write_records
from tests.bad_input.refusals import Case, Inputs, config_file, experiment, parametrized, refused
from tests.support.example_records import training_record


VARIANTS: dict[str, list[str]] = {
    "empty": [""],
    "a space": [" "],
    "spaces at the end": ["a", "a "],
    "spaces at the start": [" a"],
    "two spaces": ["a b", "a  b"],
    "a newline": ["a\nb"],
    "an escape": ["a\x1b[31m"],
    "a NUL": ["a\0b"],
    "one folder for a space and a hyphen": ["a b", "a-b"],
    "one folder for a slash and a space": ["x/y", "x y"],
    "one folder on disks that ignore case": ["ALiBi", "alibi"],
    "one folder for two ways up": ["../a", "..-a"],
    "a long one": ["x" * 300],
}


def _overrides(of_a: Any) -> dict[str, Any]:
    return {"inference_overrides": {"a": of_a}}


COMPARISON: dict[str, tuple[dict[str, Any], str]] = {
    "variants that are a list": ({"variants": ["a"]}, "'variants' must be"),
    "a variant that is a number": ({"variants": {"a": 5}}, "'variants.a' must be a mapping"),
    "no variants": ({"variants": {}}, "'a' is not a variant"),
    "another reference": ({"reference": "b"}, "'b' is not a variant"),
    "an override of no variant": ({"inference_overrides": {"b": {}}}, "'b' is not a variant"),
    "overrides that are a list": (_overrides([1]), "'inference_overrides.a' must be a mapping"),
    "an override that is a number": (
        {"inference_overrides": {"a": {"b": 5}}},
        "'inference_overrides.a.b' must be a mapping",
    ),
    "an override with an unknown key": (
        {"inference_overrides": {"a": {"b": {"betta": 1}}}},
        "unknown key 'model.overrides.betta'",
    ),
    "an override with an unknown value": (
        {"inference_overrides": {"a": {"b": {"position_method": "x"}}}},
        "must be one of",
    ),
    "an override of another type": (_overrides({"b": {"alibi_beta": "x"}}), "alibi_beta"),
    "an override of another width": (
        {"inference_overrides": {"a": {"b": {"hidden_size": 32}}}},
        "needs other weights",
    ),
    "an override that replaces": (_overrides({"as trained": {"alibi_beta": 2.0}}), "'as trained'"),
    "no source": ({"evaluation": {"lengths_tokens": [8]}}, "evaluation.source is missing"),
    "an unknown source": ({"evaluation": {"source": "x"}}, "unknown source 'x'"),
    "no text": ({"evaluation": {"source": "text:nowhere"}}, "no file matches"),
    "an unknown key": ({"evaluation": {"source": "stdlib", "length": [8]}}, "unknown key 'evaluation.length'"),
    "an unknown protocol": ({"evaluation": {"source": "stdlib", "protocols": ["x"]}}, "protocol must be one of"),
    "an unknown split": ({"evaluation": {"source": "stdlib", "split": "x"}}, "split must be one of"),
    "models of its own": ({"evaluation": {"source": "stdlib", "models": ["x"]}}, "evaluation.models cannot be set"),
    "a length of 0": ({"evaluation": {"source": "stdlib", "lengths_tokens": [0]}}, "at least 1, got 0"),
    "an unknown dtype": (
        {"evaluation": {"source": "stdlib", "dtype": "int8"}},
        "'evaluation.dtype' must be 'float32' or 'bfloat16', got 'int8'",
    ),
    "no seeds": ({"seeds": []}, "seeds must be a list of one or more different values"),
    "a negative seed": ({"seeds": [-1]}, "training.seed must be at least 0"),
}
PAGES = ["../esc", "../../esc", "/tmp/esc", "a/b", "a\\b", "", ".", "..", "a\nb", "a\0b"]
FOLDERS = ["../esc", "..", "a/../../esc", "/tmp/esc", "", "a\\..\\b", "a\nb", "a\0b"]


def _comparison(changes: dict[str, Any], work: Path, inputs: Inputs) -> list[str]:
    values = {"name": "c", "variants": {"a": {}}, "reference": "a", "seeds": [0], "output_dir": str(work / "out")}
    values |= {"experiment": experiment(work, inputs), "evaluation": {"source": inputs.source}}
    return config_file(work, values | changes)


def _report(changes: dict[str, Any], work: Path, _: Inputs) -> list[str]:
    write_records(work / "records.jsonl", [training_record("alibi")])
    values = {"records": [str(work / "records.jsonl")], "output_dir": str(work / "out")}
    return config_file(work, values | changes)


def _cases() -> list[Case]:
    cases = [
        Case(
            f"variants with {what}",
            "compare",
            partial(_comparison, {"variants": {"a": {}} | dict.fromkeys(names, {})}),
            "",
        )
        for what, names in VARIANTS.items()
    ]
    cases += [
        Case(f"a comparison with {what}", "compare", partial(_comparison, changes), message)
        for what, (changes, message) in COMPARISON.items()
    ]
    cases += [
        Case(f"page {page!r}", "report", partial(_report, {"page": page}), "page must be a file name")
        for page in PAGES
    ]
    cases += [
        Case(f"figures in {name!r}", "report", partial(_report, {"figures_folder": name}), "figures_folder must be")
        for name in FOLDERS
    ]
    return cases


@parametrized(_cases())
def test_names(case: Case, tmp_path: Path, inputs: Inputs, capfd: pytest.CaptureFixture[str]) -> None:
    refused(case, tmp_path, inputs, capfd)
