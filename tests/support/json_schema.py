"""Validate the subset of JSON Schema that the settings schemas use, so that tests need no extra package."""

from collections.abc import Callable, Iterator
from typing import Any


# Keywords that do not restrict values.
_ANNOTATIONS = {"$schema", "$defs", "title", "description", "default"}
_TYPES: dict[str, type | tuple[type, ...]] = {
    **{"string": str, "integer": int, "number": (int, float), "boolean": bool, "null": type(None)},
    **{"array": list, "object": dict},
}


def violations(schema: dict[str, Any], value: Any, root: dict[str, Any], where: str = "") -> Iterator[str]:
    """Everything in ``value`` that ``schema`` does not allow.

    Args:
        schema: Schema of the value.
        value: Plain value, as read from a YAML file.
        root: The whole schema, which contains the ``$defs``.
        where: Path of the value, for messages.

    Raises:
        NotImplementedError: The schema has an unsupported keyword.
    """
    for keyword, wanted in schema.items():
        if keyword == "type":
            is_truth = isinstance(value, bool) and wanted != "boolean"
            if is_truth or not isinstance(value, _TYPES[wanted]):
                yield f"{where}: expected {wanted}, got {value!r}"
        elif keyword == "$ref":
            yield from violations(root["$defs"][wanted.removeprefix("#/$defs/")], value, root, where)
        elif keyword == "anyOf":
            if all(any(violations(choice, value, root, where)) for choice in wanted):
                yield f"{where}: no alternative allows {value!r}"
        elif keyword == "items":
            for place, item in enumerate(value if isinstance(value, list) else ()):
                yield from violations(wanted, item, root, f"{where}[{place}]")
        elif keyword in ("properties", "required", "additionalProperties"):
            yield from _wrong_keys(keyword, schema, value, root, where) if isinstance(value, dict) else ()
        elif keyword not in _ANNOTATIONS:
            yield from _wrong_value(keyword, wanted, value, where)


# By keyword: the types that it applies to, and whether a value is allowed.
_CHECKS: dict[str, tuple[Any, Callable[[Any, Any], bool]]] = {
    "enum": (object, lambda value, wanted: value in wanted),
    "const": (object, lambda value, wanted: value == wanted),
    "minLength": (str, lambda value, wanted: len(value) >= wanted),
    "minItems": (list, lambda value, wanted: len(value) >= wanted),
    "minimum": ((int, float), lambda value, wanted: value >= wanted),
    "exclusiveMinimum": ((int, float), lambda value, wanted: value > wanted),
    "maximum": ((int, float), lambda value, wanted: value <= wanted),
    "exclusiveMaximum": ((int, float), lambda value, wanted: value < wanted),
}


def _wrong_value(keyword: str, wanted: Any, value: Any, where: str) -> Iterator[str]:
    if keyword not in _CHECKS:
        raise NotImplementedError(f"the keyword {keyword}")
    kind, is_allowed = _CHECKS[keyword]
    if isinstance(value, kind) and not is_allowed(value, wanted):
        yield f"{where}: {keyword} {wanted}, got {value!r}"


def _wrong_keys(
    keyword: str, schema: dict[str, Any], value: dict[str, Any], root: dict[str, Any], where: str
) -> Iterator[str]:
    known = schema.get("properties", {})
    if keyword == "required":
        yield from (f"{where}.{key} is missing" for key in schema["required"] if key not in value)
    elif keyword == "properties":
        for key in known.keys() & value.keys():
            yield from violations(known[key], value[key], root, f"{where}.{key}")
    elif schema[keyword] is False:
        yield from (f"{where}.{key} is unknown" for key in value if key not in known)
    elif isinstance(schema[keyword], dict):
        for key in value.keys() - known.keys():
            yield from violations(schema[keyword], value[key], root, f"{where}.{key}")
