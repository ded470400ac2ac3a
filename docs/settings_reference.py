"""The settings reference: one Markdown page from the JSON schemas of all commands."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any


COMMANDS = {
    "experiment": "alibi-gpt train",
    "evaluation": "alibi-gpt evaluate",
    "extrapolation": "alibi-gpt extrapolate",
    "context": "alibi-gpt context",
    "recall": "alibi-gpt recall",
    "margins": "alibi-gpt margins",
    "sweep": "alibi-gpt sweep",
    "comparison": "alibi-gpt compare",
    "conversion": "alibi-gpt convert",
    "export": "alibi-gpt export",
    "generation": "alibi-gpt generate",
    "report": "alibi-gpt report",
    "benchmark": "alibi-gpt benchmark",
}
INTRODUCTION = """# Settings reference

Each command reads its settings from a YAML or JSON file (`--config`), and `--set KEY=VALUE` changes any of them.
Nested keys are joined by dots: `--set training.seed=1`. An unknown key is an error. This page is generated from
`configs/schema/`.
"""


def settings_reference(folder: Path) -> str:
    """Markdown page with every setting of every command.

    Args:
        folder: Holds one JSON schema for each key of ``COMMANDS``.

    Raises:
        ValueError: The folder holds other schemas than these.
    """
    found = {path.stem for path in folder.glob("*.json")}
    if found != COMMANDS.keys():
        raise ValueError(f"expected schemas of {sorted(COMMANDS)} in {folder}, got {sorted(found)}")
    parts = [INTRODUCTION]
    for name, command in COMMANDS.items():
        schema = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
        parts += [f"## {command}\n", *_sections(schema)]
    return "\n".join(parts)


def _sections(schema: dict[str, Any]) -> Iterator[str]:
    yield _table(schema)
    for name, section in sorted(schema.get("$defs", {}).items()):
        if section.get("properties"):
            yield f"### {name}\n\n{section.get('description', '')}\n"
            yield _table(section)


def _table(section: dict[str, Any]) -> str:
    required = section.get("required", [])
    rows = ["| key | type | default | meaning |", "|---|---|---|---|"]
    for key, value in section["properties"].items():
        default = "required" if key in required else _code(value["default"]) if "default" in value else ""
        rows.append(f"| `{key}` | {_type(value)} | {default} | {_cell(value.get('description', ''))} |")
    return "\n".join(rows) + "\n"


def _type(value: dict[str, Any]) -> str:
    if "$ref" in value:
        return value["$ref"].rpartition("/")[2]
    for key in ("anyOf", "oneOf"):
        if key in value:
            return " or ".join(dict.fromkeys(_type(each) for each in value[key]))
    if "enum" in value:
        return ", ".join(_code(each) for each in value["enum"])
    if "const" in value:
        return _code(value["const"])
    name = value.get("type", "any")
    if name == "array":
        return f"list of {_type(value.get('items', {}))}"
    bounds = [f"{sign} {value[key]}" for key, sign in BOUNDS.items() if key in value]
    return f"{name} {', '.join(bounds)}".strip()


BOUNDS = {"minimum": "≥", "exclusiveMinimum": "&gt;", "maximum": "≤", "exclusiveMaximum": "&lt;"}


def _code(value: Any) -> str:
    return f"`{_cell(value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False))}`"


def _cell(text: str) -> str:
    """Text of one table cell, which may hold neither a line break nor a bar."""
    return " ".join(text.split()).replace("|", "\\|")
