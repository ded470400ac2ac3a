"""The schemas that editors and ``--help`` read are those of the classes, and every example is valid by its own."""

import json
import re
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import yaml

from alibi_gpt_cli.schemas import SETTINGS, schema_text
from alibi_gpt_cli.settings_help import SCHEMAS, setting_rows
from modeling_alibi_gpt.runtime.parsing import parse_yaml
from tests.support.json_schema import violations


ROOT = Path(__file__).parents[2]
# `accelerate launch` reads its own files.
EXAMPLES = [path for path in sorted((ROOT / "configs").rglob("*.yaml")) if path.parent.name != "accelerate"]
# Their versions decide how types are written down.
PACKAGES = ("pydantic", "transformers")


def schema_of(path: Path) -> dict[str, Any]:
    """The schema that the first line of an example names, as an editor finds it."""
    first, _, _ = path.read_text(encoding="utf-8").partition("\n")
    found = re.fullmatch(r"# yaml-language-server: \$schema=(\S+)", first)
    assert found, f"{path}: the first line names no schema"
    return json.loads((path.parent / found[1]).read_text(encoding="utf-8"))


def test_there_is_a_file_for_all_settings_and_no_other() -> None:
    assert {path.stem for path in SCHEMAS.iterdir()} == set(SETTINGS)


@pytest.mark.parametrize("name", SETTINGS)
def test_schemas_are_those_of_the_classes(name: str) -> None:
    pinned = dict(
        line.split("==")
        for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
        if line.partition("==")[0] in PACKAGES
    )
    if other := [package for package in PACKAGES if metadata.version(package) != pinned[package]]:
        pytest.skip(f"the schemas are written with the versions in constraints.txt, not with this {other[0]}")
    assert (SCHEMAS / f"{name}.json").read_text(encoding="utf-8") == schema_text(name), "run: make schemas"


@pytest.mark.parametrize("name", SETTINGS)
def test_every_key_has_a_meaning(name: str) -> None:
    rows = setting_rows(name)
    assert rows
    assert [key for key, _, meaning in rows if not meaning] == []


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_examples_are_valid(path: Path) -> None:
    schema = schema_of(path)
    assert list(violations(schema, parse_yaml(path.read_text(encoding="utf-8")), schema)) == []


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"nmae": "x"}, ".nmae is unknown"),
        ({"name": 1}, ".name: expected string, got 1"),
        ({"name": None}, ".name: expected string, got None"),
        ({"precision": "float16"}, ".precision: enum ['float32', 'bfloat16', 'auto'], got 'float16'"),
        ({"global_batch_size": "4"}, ".global_batch_size: no alternative allows '4'"),
        ({"global_batch_size": True}, ".global_batch_size: no alternative allows True"),
        ({"plugins": [1]}, ".plugins: no alternative allows [1]"),
        ({"data": {"source": "stdlib"}}, ".data.train_length_tokens is missing"),
        ({"data": {"train_length_tokens": 8, "sauce": "x"}}, ".data.sauce is unknown"),
        ({"milestones": {"steps": [0], "lengths_tokens": ["a"]}}, ".milestones: no alternative allows"),
        ({"training": {"max_steps": 1}}, ".training.output_dir is missing"),
        ({"training": {"output_dir": "x", "seed": "y"}}, ".training.seed: expected integer, got 'y'"),
    ],
)
def test_a_broken_example_is_not_valid(change: dict[str, Any], complaint: str) -> None:
    path = ROOT / "configs" / "experiment" / "demo.yaml"
    schema, values = schema_of(path), yaml.safe_load(path.read_text(encoding="utf-8"))
    (found,) = violations(schema, values | change, schema)
    assert found.startswith(complaint)


def test_a_keyword_that_the_check_does_not_know_fails() -> None:
    with pytest.raises(NotImplementedError, match="the keyword pattern"):
        list(violations({"pattern": "x"}, "x", {}))
