"""Loads YAML or JSON settings into frozen dataclasses validated by pydantic. Unknown keys are errors."""

import dataclasses
import difflib
import json
import os
import typing
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter, ValidationError, ValidationInfo
from pydantic.dataclasses import dataclass

from modeling_alibi_gpt.runtime.parsing import MAX_DEPTH, parse_yaml, read_mapping
from modeling_alibi_gpt.runtime.plugins import import_plugins


Config = TypeVar("Config")
# Common field types.
Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0)]
# A path; shells do not expand its "~" in a file or after "--set key=".
UserPath = Annotated[str, AfterValidator(os.path.expanduser)]

_MAX_INT = 2**63 - 1
_TYPES = ConfigDict(strict=True, allow_inf_nan=False)
_UNKNOWN = "unexpected_keyword_argument"
_MISSING = "missing"
# Replacements for phrases of pydantic; longer phrases come first.
_WORDS = {
    "Input should be ": "",
    "an object": "a mapping",
    "a dictionary": "a mapping",
    "a valid dictionary": "a mapping",
    "greater than or equal to": "at least",
    "less than or equal to": "at most",
    "greater than": "above",
    "less than": "below",
}


def _check_distinct(values: list[Any], field: ValidationInfo) -> list[Any]:
    if not values or len(set(values)) < len(values):
        raise ValueError(f"{field.field_name} must be a list of one or more different values, got {values}")
    return values


Distinct = AfterValidator(_check_distinct)  # of a list


@typing.dataclass_transform(kw_only_default=True, frozen_default=True, field_specifiers=(dataclasses.field,))
def config_dataclass(cls: type[Config]) -> type[Config]:
    """Make a class a frozen, keyword-only dataclass with strict type validation.

    The string below a field is its description in ``--help`` and in JSON schemas. Invalid values raise a one-line
    ``ValueError``, as in ``build_config``.
    """
    checks = ConfigDict(**_TYPES, extra="forbid", use_attribute_docstrings=True)
    made: Any = dataclass(frozen=True, kw_only=True, config=checks)(cls)
    for field in dataclasses.fields(made):  # of base classes, pydantic reads descriptions only from the metadata
        field.metadata = MappingProxyType({"description": made.__pydantic_fields__[field.name].description})
    validate = made.__init__

    def __init__(self: Config, **values: Any) -> None:
        try:
            validate(self, **values)
        except ValidationError as error:
            raise ValueError(_described(error, made, values)) from None

    made.__init__ = __init__
    return made


def load_config(config_class: type[Config], path: str | None, overrides: Sequence[str] = (), **named: Any) -> Config:
    """Read a YAML or JSON file into ``config_class``. Named values and ``a.b=value`` overrides take precedence.

    Modules listed under ``plugins`` are imported, so pass only the user's own settings, never a file of a checkpoint.

    Args:
        config_class: A ``config_dataclass``, possibly nested.
        path: The file; None starts from the defaults.
        overrides: Assignments whose values are parsed as YAML, e.g. ``training.max_steps=100``.
        **named: Values of top-level keys, such as those with their own command-line option; None keeps the file's.

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
    """Build a (nested) ``config_dataclass`` from the plain values of a file.

    Raises:
        ValueError: A key is unknown or missing, or a value has the wrong type. The message prefixes it with ``where``.
    """
    _check_ints(values, where)
    try:
        # Strict pydantic accepts a mapping for a section in JSON, but requires an instance among Python objects.
        return TypeAdapter(config_class).validate_json(json.dumps(values, ensure_ascii=False).encode())
    except ValidationError as error:
        raise ValueError(_described(error, config_class, values, where)) from None


def convert_value(value: Any, hint: Any, where: str) -> Any:
    """Validate a plain value against a type annotation.

    Raises:
        ValueError: The value has another type. The message names the expected type and ``where``.
    """
    _check_ints(value, where)
    try:
        return TypeAdapter(hint, config=ConfigDict(**_TYPES, arbitrary_types_allowed=True)).validate_python(value)
    except ValidationError as error:
        raise ValueError(_described(error, None, value, where)) from None


def with_defaults(config_class: type[Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Complete plain values of an earlier version with the defaults of fields that it lacked."""
    complete = dict(values)
    hints = typing.get_type_hints(config_class)
    for field in dataclasses.fields(config_class):
        if field.name not in complete:
            if field.default is not dataclasses.MISSING:
                complete[field.name] = field.default
            elif field.default_factory is not dataclasses.MISSING:
                complete[field.name] = field.default_factory()
        elif isinstance(complete[field.name], dict) and (section := _section(hints[field.name])) is not None:
            complete[field.name] = with_defaults(section, complete[field.name])
    return complete


def refuse_unknown_key(key: str, known: Iterable[str], where: str = "") -> None:
    """Raise ValueError with the closest known key as a suggestion, unless ``key`` is known."""
    known = list(known)
    if key not in known:
        raise ValueError(_unknown_key(key, known, where))


def _unknown_key(key: int | str, known: Sequence[str], where: str) -> str:
    close = difflib.get_close_matches(str(key), known, n=1)
    hint = f"did you mean '{where}{close[0]}'?" if close else f"expected one of: {', '.join(sorted(known))}"
    return f"unknown key '{where}{key}'; {hint}"


def _assign(values: dict[str, Any], assignment: str) -> None:
    name, separator, text = assignment.partition("=")
    if not separator:
        raise ValueError(f"--set expects KEY=VALUE, got {assignment!r}")
    *parents, leaf = name.split(".")
    if len(parents) > MAX_DEPTH:
        raise ValueError(f"--set {name[:40]}... is nested {len(parents)} deep, expected at most {MAX_DEPTH}")
    for parent in parents:
        inner = values.get(parent, {})
        if not isinstance(inner, dict):
            raise ValueError(f"--set {assignment}: '{parent}' is a value, expected a mapping")
        # A copy, because an alias of the file or the caller may have the same mapping.
        values[parent] = values = dict(inner)
    try:
        values[leaf] = parse_yaml(text)
    except ValueError as error:
        shown = assignment if len(assignment) <= 80 else f"{assignment[:80]}..."
        raise ValueError(f"--set {shown}: the value is not valid YAML, try quoting it: {error}") from error


def _check_ints(value: Any, where: str) -> None:
    """Raise ValueError for an integer, at any depth, that does not fit in 64 bits with its sign."""
    if isinstance(value, int) and abs(value) > _MAX_INT:
        raise ValueError(f"'{where}' must be an integer of at most 63 bits, got one of {value.bit_length()} bits")
    prefix = f"{where}." if where and not where.endswith(".") else where
    if isinstance(value, Mapping):
        for key, inner in value.items():
            _check_ints(inner, f"{prefix}{key}")
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            _check_ints(inner, f"{where}[{index}]")


def _described(error: ValidationError, config_class: type[Any] | None, values: Any, where: str = "") -> str:
    """Describe the first problem in one line: unknown keys first, then invalid values, then missing keys.

    Args:
        error: The error of pydantic.
        config_class: Class that ``values`` should match; None for a single value named ``where``.
        values: The validated values.
        where: Prefix of keys.
    """
    ranks = {_UNKNOWN: 0, _MISSING: 2}
    found_errors = [found for found in error.errors() if not _is_of_other_type(found, error.errors(), values)]
    first = min(found_errors, key=lambda found: ranks.get(found["type"], 1))
    parts, kind = _without_labels(first["loc"]), first["type"]
    if kind == "value_error":  # raised by __post_init__, whose message names the key
        return str(first["ctx"]["error"])
    if kind == _UNKNOWN:
        section = _section_at(config_class, parts[:-1])
        known = [field.name for field in dataclasses.fields(section)]
        return _unknown_key(parts[-1], known, f"{where}{_place(parts[:-1])}." if parts[:-1] else where)
    if kind == _MISSING:
        return f"key '{where}{_place(parts)}' is missing"
    parts, value = _reached(parts, values)
    # Each alternative of a union reports its own error.
    wanted = [
        _wanted(found) for found in error.errors() if _reached(_without_labels(found["loc"]), values)[0] == parts
    ]
    words = " or ".join(dict.fromkeys(wanted))
    return f"'{where}{_place(parts)}' must be {words}, got {value!r}"


def _without_labels(place: tuple[int | str, ...]) -> tuple[int | str, ...]:
    """A location without the names of union alternatives, such as ``list[Part]``."""
    return tuple(part for part in place if "[" not in str(part))


def _is_of_other_type(found: Any, errors: Sequence[Any], values: Any) -> bool:
    """Whether an error concerns a union alternative, such as ``str``, that was not meant.

    The alternative that was meant, such as ``list[Part]``, has an error at a deeper location.
    """
    place = _reached(found["loc"], values)[0]
    return len(found["loc"]) > len(place) and any(
        len(other["loc"]) > len(found["loc"]) and other["loc"][: len(place)] == place for other in errors
    )


def _wanted(found: Mapping[str, Any]) -> str:
    """What a value must be, according to one error of pydantic."""
    if found["type"] == "too_short":
        return f"a list of at least {found['ctx']['min_length']}"
    words = found["msg"]
    for theirs, ours in _WORDS.items():
        words = words.replace(theirs, ours)
    return words


def _reached(parts: tuple[int | str, ...], values: Any) -> tuple[tuple[int | str, ...], Any]:
    """The part of a location that exists in ``values``, and its value. The rest names a union alternative."""
    for depth, part in enumerate(parts):
        if isinstance(values, list | tuple):
            is_inside = isinstance(part, int)
        else:
            is_inside = isinstance(values, Mapping) and part in values
        if not is_inside:
            return parts[:depth], values
        values = values[part]
    return parts, values


def _place(parts: Iterable[int | str]) -> str:
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in parts).removeprefix(".")


def _section_at(config_class: Any, parts: Iterable[int | str]) -> Any:
    for part in parts:
        config_class = config_class if isinstance(part, int) else _section(typing.get_type_hints(config_class)[part])
    return config_class


def _section(hint: Any) -> Any:
    """The dataclass in an annotation: itself, in a union, or as list items; None if there is none."""
    if dataclasses.is_dataclass(hint):
        return hint
    return next((found for argument in typing.get_args(hint) if (found := _section(argument)) is not None), None)
