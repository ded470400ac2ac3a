"""The settings reference that docs/settings_reference.py makes of the schemas."""

import importlib.util
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest


ROOT = Path(__file__).parent.parent
SCHEMAS = ROOT / "configs" / "schema"


@pytest.fixture(scope="module")
def rows() -> list[str]:
    spec = importlib.util.spec_from_file_location("settings_reference", ROOT / "docs" / "settings_reference.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    lines = module.settings_reference().replace("<wbr>", "").splitlines()
    return [re.sub("<code>(.*?)</code>", r"`\1`", line) for line in lines if line.startswith("| <code>")]


def keys_of(schema: Any) -> Iterator[str]:
    """The names of all properties of a schema and of what it contains."""
    if isinstance(schema, dict):
        yield from schema.get("properties", {})
        for part in schema.values():
            yield from keys_of(part)
    elif isinstance(schema, list):
        for part in schema:
            yield from keys_of(part)


def test_every_key_of_every_schema_has_one_row(rows: list[str]) -> None:
    keys = [key for path in SCHEMAS.glob("*.json") for key in keys_of(json.loads(path.read_text(encoding="utf-8")))]
    assert sorted(keys) == sorted(row.split("`")[1].rpartition(".")[2] for row in rows)
    # A bar within a cell would make another column.
    assert all(row.replace("\\|", "").count("|") == 4 for row in rows)


@pytest.mark.parametrize(
    "row",
    [
        "| `name` | string, required | Name of the run in records and figures. |",
        "| `data.validation_unit` | tail \\| document or null, default null |",
        "| `data.train_length_tokens` | integer, at least 3, required |",
        "| `model` | mapping, required |",
        "| `betas` | list of number",
    ],
)
def test_a_row_says_type_and_default(rows: list[str], row: str) -> None:
    assert any(line.startswith(row) for line in rows), [line for line in rows if row.split("`")[1] in line]
