"""The help of a command lists every key of its settings, in a pipe and on a terminal."""

import dataclasses
import importlib
import json
import typing
from collections.abc import Iterator
from typing import Any

import pytest

from alibi_gpt_cli import settings_help
from alibi_gpt_cli.main import main
from alibi_gpt_cli.schemas import SETTINGS
from alibi_gpt_cli.settings_help import setting_rows


def dotted_keys(config_class: Any, prefix: str = "") -> Iterator[str]:
    """Keys of a settings class by the class itself, not by its schema."""
    hints = typing.get_type_hints(config_class)
    for field in dataclasses.fields(config_class):
        yield f"{prefix}{field.name}"
        for suffix, section in _sections(hints[field.name], ""):
            yield from dotted_keys(section, f"{prefix}{field.name}{suffix}.")


def _sections(hint: Any, suffix: str) -> Iterator[tuple[str, Any]]:
    if dataclasses.is_dataclass(hint):
        yield suffix, hint
    for argument in typing.get_args(hint):
        yield from _sections(argument, "[]" if typing.get_origin(hint) is list else suffix)


@pytest.mark.parametrize("name", SETTINGS)
def test_it_has_every_key(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    command, path = SETTINGS[name]
    module, _, config_class = path.rpartition(".")
    assert main([command.__name__, "--help"]) == 0
    printed = capsys.readouterr().out
    listed = [line.split()[1] for line in printed.splitlines() if line.startswith("│ ") and not line.startswith("│  ")]
    settings = getattr(importlib.import_module(module), config_class)
    refused = getattr(settings, "UNUSED", {})
    keys = list(dotted_keys(settings))
    assert [key for key in keys if key not in listed] == [key for key in keys if key in refused]
    assert max(map(len, printed.splitlines())) <= 80


def test_a_key_has_its_type_its_default_and_its_meaning(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--help"]) == 0
    lines = [line.strip("│ ") for line in capsys.readouterr().out.splitlines()]
    place = lines.index("data.train_length_tokens  integer, at least 3, required")
    assert lines[place + 1] == "Length of a training sequence, in tokens."
    assert 'precision  float32 | bfloat16 | auto, default "float32"' in lines


def test_types_are_in_words(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    integer = {"type": "integer", "minimum": 1}
    fields: dict[str, tuple[dict[str, Any], str]] = {
        "a": ({"type": "string"}, "string, required"),
        "b": ({"anyOf": [integer, {"type": "null"}], "default": None}, "integer, at least 1 or null, default null"),
        "c": ({"type": "array", "items": {"type": "number"}, "default": [0.5]}, "list of numbers, default [0.5]"),
        "d": ({"enum": ["x", "y"], "type": "string", "default": "x"}, 'x | y, default "x"'),
        "e": ({"type": "boolean"}, "true or false, required here or as an option"),
        "g": ({"anyOf": [{"type": "number"}, {"type": "integer"}], "default": 1}, "number, default 1"),
        "f": ({"const": "only", "default": "only"}, 'only, default "only"'),
    }
    schema = {"properties": {key: field for key, (field, _) in fields.items()}, "required": ["a"]}
    (tmp_path / "some.json").write_text(json.dumps(schema), encoding="utf-8")
    monkeypatch.setattr(settings_help, "SCHEMAS", tmp_path)
    assert {key: kind for key, kind, _ in setting_rows("some")} == {key: words for key, (_, words) in fields.items()}


def test_a_terminal_gets_bold_code_and_a_pipe_backquotes(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["export", "--help"]) == main(["evaluate", "--help"]) == 0
    assert "`nonoverlapping` or `sliding`" in capsys.readouterr().out
    for name in ("FORCE_COLOR", "COLORTERM"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("TERM", "xterm")
    settings_help.print_settings("evaluation")
    assert "\x1b[1mnonoverlapping\x1b[0m or \x1b[1msliding\x1b[0m" in capsys.readouterr().out
