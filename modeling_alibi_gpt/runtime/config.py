"""Configuration files: YAML (or JSON) to frozen dataclasses and back, where an unknown key is an error."""

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from modeling_alibi_gpt.runtime.parsing import MAX_DEPTH, parse_yaml, read_mapping
from modeling_alibi_gpt.runtime.plugins import import_plugins


if typing.TYPE_CHECKING:
    from _typeshed import DataclassInstance

Config = TypeVar("Config", bound="DataclassInstance")

_MAX_INT = 2**63 - 1


def load_config(config_class: type[Config], path: str | None, overrides: Sequence[str] = (), **named: Any) -> Config:
    """Read a YAML or JSON file into ``config_class``, with named values and ``a.b=value`` overrides laid over it.

    The modules that it names under ``plugins`` are imported: nothing but a user's own settings comes through here.

    Args:
        config_class: A keyword-only dataclass, possibly of other dataclasses.
        path: The file; None starts from the defaults.
        overrides: Assignments whose value is read as YAML, e.g. ``training.max_steps=100``.
        **named: Values of top-level keys, such as those that a script has an option for; None leaves the file's.

    Raises:
        ValueError: The file is missing or not a mapping, a key is unknown, a value has the wrong type, or a plugin
            cannot be imported.
    """
    values = {} if path is None else read_mapping(path)
    values |= {key: value for key, value in named.items() if value is not None}
    for assignment in overrides:
        _assign(values, assignment)
    config = build_config(config_class, values)
    import_plugins(getattr(config, "plugins", None) or ())
    return config


def build_config(config_class: type[Config], values: Mapping[str, Any], where: str = "") -> Config:
    """Build a (nested) dataclass from plain values.

    Raises:
        ValueError: A key is unknown or missing, or a value has the wrong type.
    """
    fields = {field.name: field for field in dataclasses.fields(config_class)}
    hints = typing.get_type_hints(config_class)
    arguments = {}
    for key, value in values.items():
        refuse_unknown_key(key, fields, where)
        arguments[key] = convert_value(value, hints[key], f"{where}{key}")
    for name, field in fields.items():
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and name not in arguments:
            raise ValueError(f"key '{where}{name}' is missing")
    return config_class(**arguments)


def convert_value(value: Any, hint: Any, where: str) -> Any:
    """A plain value as the type that a dataclass field is annotated with: a nested dataclass is built from a mapping.

    Raises:
        ValueError: The value has another type; says which was expected at ``where``.
    """
    if value is not None and typing.get_origin(hint) is types.UnionType:
        sections = [kind for kind in typing.get_args(hint) if dataclasses.is_dataclass(kind)]
        hint = sections[0] if sections else hint
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        if not isinstance(value, dict):
            raise ValueError(f"'{where}' must be a mapping, got {value!r}")
        return build_config(hint, value, f"{where}.")
    if not _matches(value, hint):
        expected = hint.__name__ if isinstance(hint, type) else str(hint).replace("typing.", "")
        raise ValueError(f"'{where}' must be {expected}, got {value!r}")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"'{where}' must be a finite number, got {value}")
    if isinstance(value, int) and abs(value) > _MAX_INT:
        raise ValueError(f"'{where}' must be a whole number of at most 64 bits, got one of {value.bit_length()}")
    return float(value) if hint is float else value


def refuse_unknown_key(key: str, known: typing.Iterable[str], where: str = "") -> None:
    """Raise a ValueError that suggests the nearest known key, unless ``key`` is one of them."""
    known = list(known)
    if key in known:
        return
    close = difflib.get_close_matches(str(key), known, n=1)
    hint = f"did you mean '{where}{close[0]}'?" if close else f"expected one of: {', '.join(sorted(known))}"
    raise ValueError(f"unknown key '{where}{key}'; {hint}")


def _assign(values: dict[str, Any], assignment: str) -> None:
    name, separator, text = assignment.partition("=")
    if not separator:
        raise ValueError(f"--set takes KEY=VALUE, got {assignment!r}")
    *parents, leaf = name.split(".")
    if len(parents) > MAX_DEPTH:
        raise ValueError(f"--set {name[:40]}... goes {len(parents)} deep, expected at most {MAX_DEPTH}")
    for parent in parents:
        values = values.setdefault(parent, {})
        if not isinstance(values, dict):
            raise ValueError(f"--set {assignment}: '{parent}' holds a value, not a mapping")
    try:
        values[leaf] = parse_yaml(text)
    except ValueError as error:
        shown = assignment if len(assignment) <= 80 else f"{assignment[:80]}..."
        raise ValueError(f"--set {shown}: the value is not valid YAML, quote it: {error}") from error


def _matches(value: Any, hint: Any) -> bool:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return True
    if origin in (types.UnionType, typing.Union):
        return any(_matches(value, argument) for argument in arguments)
    if origin is typing.Literal:
        return value in arguments
    if origin is list:
        return isinstance(value, list) and all(_matches(item, arguments[0]) for item in value)
    if origin is dict:
        return isinstance(value, dict)
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, hint)
