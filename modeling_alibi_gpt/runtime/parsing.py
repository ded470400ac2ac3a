"""Reads untrusted YAML and JSON with limits on size, depth and aliases; plain values only."""

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml


# Far more than any settings need, yet parsed within seconds.
MAX_YAML_BYTES = 2**16
MAX_JSON_BYTES = 2**24
MAX_DEPTH = 32
MAX_YAML_NODES = 2**16

_TAG = "tag:yaml.org,2002:"
# The types of unquoted YAML scalars other than strings. YAML 1.1 would also read ``no`` as false, ``1:30`` as 90,
# ``010`` as 8 and ``2026-01-01`` as a date, and would not read ``3e-4`` as a number.
_SCALARS = {
    "null": (r"~|null|Null|NULL|", "~nN"),
    "bool": (r"(?i:true|false)", "tTfF"),
    "int": (r"[-+]?(?:0|[1-9][0-9_]*|0x[0-9a-fA-F_]+)", "-+0123456789"),
    "float": (
        r"[-+]?(?:[0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*|[0-9][0-9_]*(?=[eE]))(?:[eE][-+]?[0-9]+)?"
        r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        "-+0123456789.",
    ),
    "merge": (r"<<", "<"),
}


class _Loader(yaml.SafeLoader):
    """SafeLoader restricted to plain values, string keys and a bounded number of nodes.

    An alias counts as all nodes that it expands to. Otherwise a few lines of nested aliases would exhaust memory when
    the result is copied or printed.
    """

    yaml_implicit_resolvers: dict[str | None, list[tuple[str, re.Pattern[str]]]] = {}

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = self._num_nodes = 0
        self._nodes_of_anchor: dict[int, int] = {}

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event, first = self.peek_event(), self._num_nodes
        mark = event.start_mark
        if getattr(event, "tag", None) not in (None, "!", f"{_TAG}str"):
            raise _error(f"the tag {event.tag} is not allowed; expected plain values without tags", mark)
        is_alias = self.check_event(yaml.AliasEvent)
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise _error(f"nested more than {MAX_DEPTH} deep", mark)
        node = super().compose_node(parent, index)
        self._depth -= 1
        if is_alias:
            if id(node) not in self._nodes_of_anchor:
                raise _error("an alias refers to a value that contains it", mark)
            self._num_nodes += self._nodes_of_anchor[id(node)]
        else:
            self._num_nodes += 1
            self._nodes_of_anchor[id(node)] = self._num_nodes - first
        if self._num_nodes > MAX_YAML_NODES:
            raise _error(f"more than {MAX_YAML_NODES:,} values, counting expanded aliases", mark)
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys: set[str] = set()
        for key, _ in node.value:
            if key.tag == f"{_TAG}merge":
                continue
            if key.tag != f"{_TAG}str":
                text = key.value or "null" if isinstance(key, yaml.ScalarNode) else f"of type {key.id}"
                raise _error(f"key {text} is not a string; quote it", key.start_mark)
            if key.value in keys:
                raise _error(f"key '{key.value}' occurs twice", key.start_mark)
            keys.add(key.value)
        return super().construct_mapping(node, deep)


for _type, (_pattern, _first) in _SCALARS.items():
    _starts: Iterable[str | None] = [*_first, ""] if _type == "null" else list(_first)
    _Loader.add_implicit_resolver(f"{_TAG}{_type}", re.compile(f"^(?:{_pattern})$"), list(_starts))


def _error(problem: str, mark: yaml.Mark) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=mark)


def parse_yaml(text: str) -> Any:
    """Parse a YAML document into None, bool, int, float, str, and lists and dicts of these.

    Raises:
        ValueError: The text does not parse, is too long, is nested too deeply or contains too many values, a key is
            not a string or occurs twice, or a tag requests another type.
    """
    if len(text) > MAX_YAML_BYTES:
        raise ValueError(f"{len(text):,} characters of YAML, expected at most {MAX_YAML_BYTES:,}")
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise ValueError(f"{where}{error.problem}") from error
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error


def parse_json(text: str | bytes) -> Any:
    """Parse a JSON document.

    Raises:
        ValueError: The text does not parse, is too long or is nested too deeply, or a key occurs twice.
    """
    if len(text) > MAX_JSON_BYTES:
        raise ValueError(f"{len(text):,} bytes of JSON, expected at most {MAX_JSON_BYTES:,}")
    try:
        value = json.loads(text, object_pairs_hook=_mapping)
    except RecursionError as error:
        raise ValueError(f"nested more than {MAX_DEPTH} deep") from error
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [inner for outer in level if isinstance(outer, dict | list) for inner in _values(outer)]
        if not level:
            return value
    raise ValueError(f"nested more than {MAX_DEPTH} deep")


def read_mapping(path: str | Path) -> dict[str, Any]:
    """Read a YAML or JSON file that contains one mapping.

    Raises:
        ValueError: The file is missing, does not parse, or contains something else.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    kind, parse, limit = ("YAML", parse_yaml, MAX_YAML_BYTES)
    if path.suffix == ".json":
        kind, parse, limit = ("JSON", parse_json, MAX_JSON_BYTES)
    if (num_bytes := path.stat().st_size) > limit:
        raise ValueError(f"{path} has {num_bytes:,} bytes, expected at most {limit:,} of {kind}")
    try:
        values = parse(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not valid {kind}: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path}: expected a mapping of keys to values, got {type(values).__name__}")
    return values


def _mapping(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    mapping: dict[str, Any] = {}
    for key, value in pairs:
        if key in mapping:
            raise ValueError(f"key '{key}' occurs twice")
        mapping[key] = value
    return mapping


def _values(container: dict[str, Any] | list[Any]) -> Iterable[Any]:
    return container.values() if isinstance(container, dict) else container
