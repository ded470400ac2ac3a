"""The keys of a command's settings in its ``--help``: type, default and meaning, from the committed schemas."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.padding import Padding
from rich.panel import Panel
from rich.text import Text
from typer.core import TyperCommand


SCHEMAS = Path(__file__).with_name("configs") / "schema"
_TYPES = {"boolean": "true or false", "array": "list", "object": "mapping"}
_BOUNDS = {
    "minimum": "at least",
    "exclusiveMinimum": "above",
    "maximum": "at most",
    "exclusiveMaximum": "below",
    "minItems": "items: at least",
    "minLength": "length: at least",
}


def command_with_settings(name: str, examples: str | None = None) -> type[TyperCommand]:
    """A command class whose help ends with the keys of its settings.

    Args:
        name: Of the schema in ``configs/schema/``.
        examples: Folder of ``configs/`` with examples; None if there are none.
    """

    class Command(TyperCommand):
        def format_help(self, ctx: Any, formatter: Any) -> None:
            super().format_help(ctx, formatter)
            print_settings(name, examples)

    return Command


def print_settings(name: str, examples: str | None = None) -> None:
    """Print every key of the settings that the schema ``name`` describes."""
    intro = "Keys of the --config file. --set a.b=VALUE sets one of them; VALUE is read as YAML."
    if examples is not None:
        intro += f" Examples are in configs/{examples}/; 'alibi-gpt init DIR' writes them."
    console, lines = Console(), [Padding(intro, (0, 0, 1, 0))]
    for key, kind, description in setting_rows(name):
        lines.append(Padding(Text.assemble((key, "bold cyan"), "  ", (kind, "yellow"))))
        if description:
            lines.append(Padding(_marked(description) if console.is_terminal else Text(description), (0, 0, 1, 4)))
    console.print(Panel(Group(*lines), title="Settings", title_align="left", border_style="dim"))


def setting_rows(name: str) -> list[tuple[str, str, str]]:
    """Dotted key, type with default, and meaning of every setting that the schema ``name`` describes.

    ``cases[].size`` is the key ``size`` of each item of the list ``cases``.
    """
    schema = json.loads((SCHEMAS / f"{name}.json").read_text(encoding="utf-8"))
    return list(_rows(schema, schema.get("$defs", {}), ""))


def _rows(section: dict[str, Any], sections: dict[str, Any], prefix: str) -> Iterator[tuple[str, str, str]]:
    for key, field in section.get("properties", {}).items():
        kind = _kind(field)
        if key in section.get("required", ()):
            kind += ", required"
        elif "default" in field:
            kind += f", default {json.dumps(field['default'], ensure_ascii=False)}"
        else:
            kind += ", required here or as an option"
        yield f"{prefix}{key}", kind, field.get("description", "")
        for inner, suffix in _sections_of(field, sections):
            yield from _rows(inner, sections, f"{prefix}{key}{suffix}.")


def _sections_of(field: dict[str, Any], sections: dict[str, Any]) -> Iterator[tuple[dict[str, Any], str]]:
    """The sections that a value, or with ``[]`` the items of a list, may be.

    They are removed from ``sections``, so that each is listed only once.
    """
    if "properties" in field:
        yield field, ""
    if (section := sections.pop(field.get("$ref", "").rpartition("/")[2], None)) is not None:
        yield section, ""
    for choice in field.get("anyOf", ()):
        yield from _sections_of(choice, sections)
    if isinstance(items := field.get("items"), dict):
        yield from ((section, f"[]{suffix}") for section, suffix in _sections_of(items, sections))


def _kind(field: dict[str, Any]) -> str:
    """Type and bounds of a value, in words."""
    if "anyOf" in field:
        kinds = [_kind(choice) for choice in field["anyOf"]]
        return " or ".join(kind for kind in kinds if (kind, "number" in kinds) != ("integer", True))
    if "enum" in field:
        return " | ".join(map(str, field["enum"]))
    if "const" in field:
        return str(field["const"])
    if "$ref" in field:
        return "mapping"
    kind = _TYPES.get(field["type"], field["type"])
    if isinstance(items := field.get("items"), dict):
        words = _kind(items)
        kind += f" of {words}{'s' if words in ('string', 'integer', 'number') else ''}"
    return ", ".join([kind, *(f"{words} {field[bound]}" for bound, words in _BOUNDS.items() if bound in field)])


def _marked(description: str) -> Text:
    """A description whose code is bold instead of in backquotes."""
    parts = description.split("`")
    return Text.assemble(*((part, "bold") if place % 2 else part for place, part in enumerate(parts)))
