"""The settings reference that docs/settings_reference.py makes of the schemas."""

import importlib.util
import json
import shutil
from pathlib import Path
from types import ModuleType

import pytest
import typer

from alibi_gpt_cli.main import app


ROOT = Path(__file__).parent.parent
SCHEMAS = ROOT / "configs" / "schema"


@pytest.fixture(scope="module")
def reference() -> ModuleType:
    spec = importlib.util.spec_from_file_location("settings_reference", ROOT / "docs" / "settings_reference.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_key_of_every_schema_has_one_row(reference: ModuleType) -> None:
    lines = reference.settings_reference(SCHEMAS).splitlines()
    keys = []
    for path in SCHEMAS.glob("*.json"):
        schema = json.loads(path.read_text(encoding="utf-8"))
        for section in (schema, *schema.get("$defs", {}).values()):
            keys += section.get("properties", {})
    rows = [line for line in lines if line.startswith("| `")]
    assert sorted(keys) == sorted(row.split("`")[1] for row in rows)
    # A bar within a cell would make another column.
    assert all(row.replace("\\|", "").count("|") == 5 for row in rows)


@pytest.mark.parametrize(
    "row",
    [
        "| `name` | string | required | Name of the run in records and figures. |",
        "| `validation_unit` | `tail`, `document` or null | `null` |",
        "| `train_length_tokens` | integer ≥ 3 | required |",
        "| `model` | ModelSection | required |",
        "| `betas` | list of number",
    ],
)
def test_a_row_says_type_and_default(reference: ModuleType, row: str) -> None:
    assert any(line.startswith(row) for line in reference.settings_reference(SCHEMAS).splitlines())


def test_sections_are_named_by_commands(reference: ModuleType) -> None:
    commands = typer.main.get_command(app).commands
    assert all(title.removeprefix("alibi-gpt ") in commands for title in reference.COMMANDS.values())


def test_a_schema_without_a_command_is_refused(reference: ModuleType, tmp_path: Path) -> None:
    shutil.copytree(SCHEMAS, tmp_path / "schema")
    (tmp_path / "schema" / "other.json").write_text("{}", encoding="utf-8")
    with pytest.raises(ValueError, match="expected schemas of .*got .*'other'"):
        reference.settings_reference(tmp_path / "schema")
