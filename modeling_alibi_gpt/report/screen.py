"""A screen: a comparison of every method at several settings, from which the best setting of each is chosen."""

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from modeling_alibi_gpt.report.comparison import Comparison
from modeling_alibi_gpt.report.formats import MISSING_CELL, format_nats
from modeling_alibi_gpt.report.frames import frame_of
from modeling_alibi_gpt.report.tables import Table
from modeling_alibi_gpt.runtime.records import Record
from modeling_alibi_gpt.runtime.variants import BETA_SCHEDULE, POSITION_RATE, is_setting


AMPLITUDE = "sinusoidal_amplitude"
TIMES = "\N{MULTIPLICATION SIGN}"
SETTING_NAMES = {"training.learning_rate": "", POSITION_RATE: f"positions {TIMES}", AMPLITUDE: "amplitude "}
Settings = tuple[tuple[str, Any], ...]  # names and values


@dataclass(frozen=True)
class Screened:
    """One method of a screen.

    Attributes:
        name: Name of the method, with the fields that distinguish it from similar methods.
        nats: Mean nats per token over seeds at the shortest length, by settings.
        fields: Fields of the variant with the best settings.
    """

    name: str
    nats: dict[Settings, float]
    fields: dict[str, Any]

    @property
    def best(self) -> Settings:
        return min(self.nats, key=lambda settings: self.nats[settings])

    @property
    def at_the_edge(self) -> list[str]:
        """The best settings that are the smallest or largest tried, in words; a value beyond them may be better."""
        words = []
        for key, value in self.best:
            tried = {other for settings in self.nats for name, other in settings if name == key and _is_number(other)}
            if _is_number(value) and len(tried) > 1 and value in (min(tried), max(tried)):
                words.append(f"{_setting(key, value)} is the {'smallest' if value == min(tried) else 'largest'}")
        return words


def is_screen(grid: Comparison) -> bool:
    """Whether a comparison has a method at several training settings."""
    return any(len(method.nats) > 1 for method in screened(grid))


def screened(grid: Comparison) -> list[Screened]:
    """The methods of a comparison as trained, in the order of its variants; failed variants are left out.

    The settings of a variant are its training fields and the amplitude of its sinusoids.
    """
    methods: dict[str, list[Record]] = {}
    for variant in grid.variants:
        row = grid.cell(variant, grid.protocols[0], grid.lengths[0])
        if not row["error"]:
            methods.setdefault(_method_key(row), []).append(row)
    found = []
    for rows in methods.values():
        best = min(rows, key=lambda row: row["nats_per_token"])
        nats = {_settings(row["fields"]): row["nats_per_token"] for row in rows}
        found.append(Screened(_method_name(best), nats, best["fields"]))
    return found


def screen_tables(methods: Iterable[Screened]) -> list[Table]:
    """One table per set of settings, with one row per method: its nats at each setting, and which are at an edge.

    A star marks the best setting of a row.
    """
    alike: dict[tuple[str, ...], list[Screened]] = {}
    for method in methods:
        alike.setdefault(tuple(key for key, _ in method.best), []).append(method)
    return [_screen_table(rows) for rows in alike.values()]


def best_variants(records: Sequence[Record]) -> dict[str, dict[str, Any]]:
    """Every screened method at its best settings, as ``variants`` for the next comparison.

    Args:
        records: Records of one or more screens; only ``comparison`` records are used.

    Raises:
        ValueError: The records contain no screen, or two screens of the same method.
    """
    cells = [record for record in records if record["kind"] == "comparison"]
    groups = frame_of(cells).groupby("comparison", sort=False) if cells else []
    variants: dict[str, dict[str, Any]] = {}
    for grid in (Comparison(frame) for _, frame in groups):
        for method in screened(grid) if is_screen(grid) else ():
            if method.name in variants:
                raise ValueError(f"{method.name!r} was screened more than once; expected one screen of each method")
            variants[method.name] = method.fields
    if not variants:
        raise ValueError("got no screen; expected the records of a comparison with a method at several settings")
    return variants


def _screen_table(methods: list[Screened]) -> Table:
    every = sorted({settings for method in methods for settings in method.nats}, key=_order)
    rows = []
    for method in methods:
        cells = [format_nats(method.nats.get(s)) + (" *" if s == method.best else "") for s in every]
        rows.append([method.name, *cells, "; ".join(method.at_the_edge) or MISSING_CELL])
    header = [", ".join(_setting(*setting) for setting in settings) or "as is" for settings in every]
    return Table(["nats per token", *header, "at an edge"], rows)


def _settings(fields: dict[str, Any]) -> Settings:
    return tuple((key, _hashable(fields[key])) for key in sorted(fields, key=_place) if _is_screened(key))


def _hashable(value: Any) -> Any:
    return json.dumps(value, sort_keys=True) if isinstance(value, dict | list) else value


def _order(settings: Settings) -> list[tuple[str, float, str]]:
    """Sort key of values that may be numbers or words."""
    return [(name, value if _is_number(value) else math.inf, str(value)) for name, value in settings]


def _place(key: str) -> tuple[int, str]:
    """Sort key of settings: those in ``SETTING_NAMES`` come first."""
    names = list(SETTING_NAMES)
    return names.index(key) if key in names else len(names), key


def _is_screened(key: str) -> bool:
    return (is_setting(key) and key != BETA_SCHEDULE) or key == AMPLITUDE


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _setting(key: str, value: Any) -> str:
    return f"{SETTING_NAMES.get(key, f'{key} ')}{f'{value:g}' if _is_number(value) else value}"


def _method_key(row: Record) -> str:
    return json.dumps({key: value for key, value in row["fields"].items() if not _is_screened(key)}, sort_keys=True)


def _method_name(row: Record) -> str:
    """``t5``, ``alibi, learned beta``, ``rope, rope_theta 500``."""
    words = [row["position_method"].replace("_", " ")]
    for key, value in row["fields"].items():
        if key == "alibi_trainable":
            words.append(f"learned {value}")
        elif key != "position_method" and not _is_screened(key):
            words.append(f"{key} {value}")
    return ", ".join(words)
