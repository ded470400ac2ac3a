"""YAML and JSON mean what everybody means, and no text costs more than a moment."""

import json
import math
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import yaml

from modeling_alibi_gpt.runtime.parsing import (
    MAX_DEPTH,
    MAX_JSON_BYTES,
    MAX_YAML_BYTES,
    MAX_YAML_NODES,
    parse_json,
    parse_yaml,
    read_mapping,
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1", 1),
        ("-3", -3),
        ("+3", 3),
        ("1_000", 1000),
        ("0x10", 16),
        ("3e-4", 3e-4),
        ("1.5E+3", 1500.0),
        ("-.5", -0.5),
        ("1.", 1.0),
        (".inf", math.inf),
        ("-.Inf", -math.inf),
        ("1:30", "1:30"),
        ("010", "010"),
        ("2026-01-01", "2026-01-01"),
        ("no", "no"),
        ("Yes", "Yes"),
        ("TRUE", True),
        ("false", False),
        ("~", None),
        ("null", None),
        ("'1'", "1"),
        ("!!str 1", "1"),
        ("", None),
        ("[a, {b: 1}]", ["a", {"b": 1}]),
        ("a: &x {y: 1}\nb: *x", {"a": {"y": 1}, "b": {"y": 1}}),
        ("a: &x {y: 1, z: 1}\nb: {<<: *x, z: 2}", {"a": {"y": 1, "z": 1}, "b": {"y": 1, "z": 2}}),
        ("'1': a", {"1": "a"}),
    ],
)
def test_values(text: str, expected: Any) -> None:
    value = parse_yaml(text)
    assert value == expected and type(value) is type(expected)


def test_a_key_occurs_once(tmp_path: Path) -> None:
    for name, text in (
        ("a.yaml", "a: 1\na: 2"),
        ("a.json", '{"a": 1, "a": 2}'),
        ("b.json", '{"x": [{"a": 1, "a": 1}]}'),
    ):
        (tmp_path / name).write_text(text)
        with pytest.raises(ValueError, match=f"{name} is not valid .*: .*key 'a' occurs twice"):
            read_mapping(tmp_path / name)


def test_the_bounds_are_what_is_still_read() -> None:
    deep = "[" * (MAX_DEPTH - 1) + "1" + "]" * (MAX_DEPTH - 1)
    assert parse_yaml(deep) == parse_json(deep) == json.loads(deep)
    for parse in (parse_yaml, parse_json):
        with pytest.raises(ValueError, match=f"nested more than {MAX_DEPTH} deep"):
            parse(f"[[{deep}]]")
    row, count = "a: &a [" + ", ".join(["x"] * 99) + "]", (MAX_YAML_NODES - 103) // 100
    fitting = f"{row}\nb: [{', '.join(['*a'] * count)}]"
    assert len(parse_yaml(fitting)["b"]) == count
    with pytest.raises(ValueError, match="counting expanded aliases"):
        parse_yaml(f"{row}\nb: [{', '.join(['*a'] * (count + 2))}]")
    for parse, limit in ((parse_yaml, MAX_YAML_BYTES), (parse_json, MAX_JSON_BYTES)):
        assert parse(f'"{"x" * (limit - 2)}"')
        with pytest.raises(ValueError, match=f"expected at most {limit:,}"):
            parse(f'"{"x" * (limit - 1)}"')


@pytest.mark.parametrize("part", ["1,", "- a\n", "{a: [b, ", "&a "])
def test_the_time_grows_no_faster_than_the_text(part: str) -> None:
    def seconds(num_bytes: int) -> float:
        text = part * ((num_bytes - 2) // len(part))
        start = time.process_time()
        with suppress(ValueError):
            parse_yaml(f"[{text}]" if part == "1," else text)
        return time.process_time() - start

    # Four times the text would take 16 times as long if the time grew with the square.
    assert seconds(MAX_YAML_BYTES) < 8 * max(seconds(MAX_YAML_BYTES // 4) for _ in range(3))


def test_what_is_dumped_is_read_back(tmp_path: Path) -> None:
    values = {"a": [1, 2.5, None, True, "no", "1:30"], "b": {"c": {}, "d": []}, "e": "x\ny", "1": "010"}
    for name, text in (("a.yaml", yaml.safe_dump(values)), ("a.json", json.dumps(values))):
        (tmp_path / name).write_text(text, encoding="utf-8")
        assert read_mapping(tmp_path / name) == values
