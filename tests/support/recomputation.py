"""What a page of results must say, worked out from records with plain loops; nothing is shared with the report."""

import json
import math
import re
from pathlib import Path
from typing import Any


Record = dict[str, Any]
BETA_FIELDS = {"alibi_beta", "alibi_slope_kind", "alibi_trainable"}
MINUS, DASH, PLUS_MINUS = "\N{MINUS SIGN}", "\N{EN DASH}", "\N{PLUS-MINUS SIGN}"
PROTOCOLS = {"nonoverlapping": "non-overlapping", "sliding": "sliding"}


class Grid:
    """The losses of one comparison by name, protocol, length and seed."""

    def __init__(self, records: list[Record]) -> None:
        self.records = records
        self.nats: dict[tuple[str, str, int], dict[int, float]] = {}
        self.lengths: list[int] = []
        for row in self.of_kind("extrapolation"):
            if row["length_tokens"] not in self.lengths:
                self.lengths.append(row["length_tokens"])
            if row["error"] is None:
                place = (row["name"], row["protocol"], row["length_tokens"])
                self.nats.setdefault(place, {})[row["seed"]] = row["nats_per_token"]
        self.lengths.sort()
        cell = self.of_kind("comparison")[0]
        self.reference = cell["reference"]
        self.corpus = cell.get("corpus") or cell["comparison"].split(" on ")[-1]

    def of_kind(self, kind: str) -> list[Record]:
        return [record for record in self.records if record["kind"] == kind]

    def names(self, **fields: Any) -> list[str]:
        """Of the rows that have these fields, each once."""
        found: list[str] = []
        for row in self.of_kind("extrapolation"):
            if all(row[key] == value for key, value in fields.items()) and row["name"] not in found:
                found.append(row["name"])
        return found

    def by_seed(self, name: str, protocol: str, length: int) -> list[float] | None:
        found = self.nats.get((name, protocol, length))
        return None if found is None else [found[seed] for seed in sorted(found)]

    def above(self, one: tuple[str, str, int], other: tuple[str, str, int]) -> list[float] | None:
        """The one above the other, seed by seed; None where either failed."""
        first, second = self.by_seed(*one), self.by_seed(*other)
        if first is None or second is None:
            return None
        return [first[n] - second[n] for n in range(len(first))]

    def change(self, name: str, protocol: str, base: str | None = None) -> list[float] | None:
        near = (base or name, protocol, self.lengths[0])
        return self.above((name, protocol, self.lengths[-1]), near)

    def perplexity(self, name: str, protocol: str, length: int) -> str:
        nats = self.by_seed(name, protocol, length)
        return DASH if nats is None else number(math.exp(sum(nats) / len(nats)))

    def curve(self, kind: str, protocol: str, length: int) -> dict[float, str]:
        """The names of a curve by beta: of trainings with one kind of slopes, or of one model and its readings."""
        found: dict[float, str] = {}
        for row in self.of_kind("extrapolation"):
            settings = {"alibi_beta": 1.0, "alibi_slope_kind": "geometric", "alibi_trainable": "none"}
            settings |= row["fields"] | row["overrides"]
            if settings.keys() - BETA_FIELDS or row["position_method"] != "alibi":
                continue
            after = kind == "set after training"
            is_of_kind = row["variant"] == self.reference if after else row["reading"] == "as trained"
            fits = settings["alibi_slope_kind"] == ("geometric" if after else kind)
            if is_of_kind and fits and settings["alibi_trainable"] == "none":
                found[settings["alibi_beta"]] = row["name"]
        return {beta: found[beta] for beta in sorted(found) if (found[beta], protocol, length) in self.nats}

    def lowest(self, kind: str, protocol: str, length: int) -> float:
        curve = self.curve(kind, protocol, length)
        best = None
        for beta, name in curve.items():
            nats = mean(self.by_seed(name, protocol, length) or [])
            if best is None or nats < best[0]:
                best = (nats, beta)
        assert best is not None
        return best[1]

    def level(self, protocol: str, length: int, kind: str = "geometric") -> list[float]:
        """The betas not told apart from the lowest: by 0.12 nats of one seed, by 0.02 and two errors of two."""
        curve, lowest = self.curve(kind, protocol, length), self.lowest(kind, protocol, length)
        found = []
        for beta, name in curve.items():
            gaps = self.above((name, protocol, length), (curve[lowest], protocol, length)) or []
            noise = 0.12 if len(gaps) == 1 else max(0.02, 2 * deviation(gaps) / math.sqrt(len(gaps)))
            if beta == lowest or abs(mean(gaps)) <= noise or min(gaps) < 0 < max(gaps):
                found.append(beta)
        return found

    def basis(self) -> str:
        ratios = sorted(r["num_train_tokens"] / r["num_parameters"] for r in self.of_kind("training"))
        ends = span(ratios)
        seeds = len({record["seed"] for record in self.of_kind("training")})
        tokens = max(row["num_tokens"] for row in self.of_kind("extrapolation") if row["num_tokens"])
        return f"{ends} tokens per parameter, {seeds} seed{'s' if seeds > 1 else ''}, {tokens:,} tokens read"


def read(paths: list[Path]) -> list[Record]:
    return [json.loads(line) for path in paths for line in path.read_text(encoding="utf-8").splitlines()]


def sections_of(page: str) -> list[tuple[str, list[str]]]:
    """The title and the lines of every section."""
    found: list[tuple[str, list[str]]] = []
    for line in page.splitlines():
        if line.startswith("## "):
            found.append((line[3:], []))
        elif found:
            found[-1][1].append(line.replace("\\*", "*"))
    return found


def tables_of(lines: list[str]) -> list[list[list[str]]]:
    """The cells of each table, its header first."""
    tables: list[list[list[str]]] = []
    for before, line in zip(["", *lines], lines, strict=False):
        if line.startswith("|"):
            if not before.startswith("|"):
                tables.append([])
            if not re.fullmatch(r"[-: |]+", line):
                tables[-1].append([cell.strip() for cell in line.strip("|").split("|")])
    return tables


def mean(values: list[float]) -> float:
    total = 0.0
    for value in values:
        total += value
    return total / len(values)


def deviation(values: list[float]) -> float:
    """Of a sample: with n - 1."""
    centre, total = mean(values), 0.0
    for value in values:
        total += (value - centre) ** 2
    return math.sqrt(total / (len(values) - 1))


def number(value: float) -> str:
    return f"{value:,.2f}" if value < 1e6 else f"{value:.2e}"


def signed(value: float) -> str:
    return f"{value:+.3f}".replace("-", MINUS)


def full(values: list[float]) -> str:
    """The mean, and each seed in brackets where there are two."""
    assert len(values) < 3, "three seeds have an interval, which this does not recompute"
    seeds = f" ({', '.join(map(signed, values))})" if len(values) > 1 else ""
    return signed(mean(values)) + seeds


def ratio(value: float) -> str:
    return f"1/{round(1 / value)}" if value < 1 and math.log2(value).is_integer() else f"{value:.4g}"


def span(values: list[float]) -> str:
    low, high = f"{min(values):.2f}", f"{max(values):.2f}"
    return low if low == high else f"{low} to {high}"
