"""JSON Schema as far as the schemas of settings use it, so that tests need no package for it."""

from collections.abc import Iterator
from typing import Any


# Keywords that allow every value.
_ANNOTATIONS = {"$schema", "$defs", "title", "description", "default"}
_TYPES: dict[str, type | tuple[type, ...]] = {
    **{"string": str, "integer": int, "number": (int, float), "boolean": bool, "null": type(None)},
    **{"array": list, "object": dict},
}


def violations(schema: dict[str, Any], value: Any, root: dict[str, Any], where: str = "") -> Iterator[str]:
    """Everything in ``value`` that ``schema`` does not allow.

    Args:
        schema: What the value must be.
        value: Plain values, those of a YAML file.
        root: The whole schema, whose ``$defs`` are referred to.
        where: Place of the value, for the complaints.

    Raises:
        NotImplementedError: The schema has a keyword that is not known here.
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
        elif keyword in ("properties", "required", "additionalProperties"):
            if isinstance(value, dict):
                yield from _wrong_keys(keyword, schema, value, root, where)
        elif keyword in ("items", "uniqueItems", "minItems"):
            if isinstance(value, list):
                yield from _wrong_items(keyword, wanted, value, root, where)
        elif keyword in _VALUE_CHECKS:
            if isinstance(value, _VALUE_CHECKS[keyword][0]) and not _VALUE_CHECKS[keyword][1](value, wanted):
                yield f"{where}: {keyword} {wanted}, got {value!r}"
        elif keyword not in _ANNOTATIONS:
            raise NotImplementedError(f"the keyword {keyword}")


# By keyword: the values that it concerns, and whether one is allowed.
_VALUE_CHECKS: dict[str, tuple[Any, Any]] = {
    "enum": (object, lambda value, wanted: value in wanted),
    "const": (object, lambda value, wanted: value == wanted),
    "minLength": (str, lambda value, wanted: len(value) >= wanted),
    "minimum": ((int, float), lambda value, wanted: value >= wanted),
    "exclusiveMinimum": ((int, float), lambda value, wanted: value > wanted),
    "maximum": ((int, float), lambda value, wanted: value <= wanted),
    "exclusiveMaximum": ((int, float), lambda value, wanted: value < wanted),
}


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


def _wrong_items(keyword: str, wanted: Any, value: list[Any], root: dict[str, Any], where: str) -> Iterator[str]:
    if keyword == "items":
        for place, item in enumerate(value):
            yield from violations(wanted, item, root, f"{where}[{place}]")
    elif keyword == "minItems" and len(value) < wanted:
        yield f"{where}: expected at least {wanted} items, got {value!r}"
    elif keyword == "uniqueItems" and wanted and len({repr(item) for item in value}) < len(value):
        yield f"{where}: expected different items, got {value!r}"
