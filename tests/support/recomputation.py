"""Recompute the expected statements of a results page from records in plain loops, without code of the report."""

import json
import math
import re
from pathlib import Path
from typing import Any

import yaml


Record = dict[str, Any]
BETA_FIELDS = {"alibi_beta", "alibi_slope_kind", "alibi_trainable"}
MINUS, DASH, PLUS_MINUS = "\N{MINUS SIGN}", "\N{EN DASH}", "\N{PLUS-MINUS SIGN}"
PROTOCOLS = {"nonoverlapping": "non-overlapping", "sliding": "sliding"}


class Gap(list[float]):
    """Differences in nats by seed, in order, and by seed and block if records have blocks."""

    by_block: list[list[float]] | None = None


class Grid:
    """The losses of one comparison by name, protocol, length and seed."""

    def __init__(self, records: list[Record]) -> None:
        self.records = records
        self.nats: dict[tuple[str, str, int], dict[int, float]] = {}
        self.blocks: dict[tuple[str, str, int], dict[int, list[float]]] = {}
        self.lengths: list[int] = []
        for row in self.of_kind("extrapolation"):
            if row["length_tokens"] not in self.lengths:
                self.lengths.append(row["length_tokens"])
            if row["error"] is None:
                place = (row["name"], row["protocol"], row["length_tokens"])
                self.nats.setdefault(place, {})[row["seed"]] = row["nats_per_token"]
                if row.get("nats_per_token_by_block"):
                    self.blocks.setdefault(place, {})[row["seed"]] = row["nats_per_token_by_block"]
        self.lengths.sort()
        cell = self.of_kind("comparison")[0]
        self.reference = cell["reference"]
        self.corpus = cell.get("corpus") or cell["comparison"].split(" on ")[-1]

    def of_kind(self, kind: str) -> list[Record]:
        return [record for record in self.records if record["kind"] == kind]

    def names(self, **fields: Any) -> list[str]:
        """Distinct names of the rows with these fields."""
        found: list[str] = []
        for row in self.of_kind("extrapolation"):
            if all(row[key] == value for key, value in fields.items()) and row["name"] not in found:
                found.append(row["name"])
        return found

    def by_seed(self, name: str, protocol: str, length: int) -> list[float] | None:
        found = self.nats.get((name, protocol, length))
        return None if found is None else [found[seed] for seed in sorted(found)]

    def above(self, one: tuple[str, str, int], other: tuple[str, str, int]) -> Gap | None:
        """Difference of two cells by seed; None if either failed."""
        first, second = self.by_seed(*one), self.by_seed(*other)
        if first is None or second is None:
            return None
        gap = Gap(first[n] - second[n] for n in range(len(first)))
        if one in self.blocks and other in self.blocks:
            gap.by_block = []
            for seed in sorted(self.blocks[one]):
                pairs = zip(self.blocks[one][seed], self.blocks[other][seed], strict=True)
                gap.by_block.append([x - y for x, y in pairs])
        return gap

    @property
    def main(self) -> str:
        """The protocol of the findings: sliding windows if available."""
        protocols = {protocol for _, protocol, _ in self.nats}
        return "sliding" if "sliding" in protocols else protocols.pop()

    def change(self, name: str, protocol: str) -> Gap | None:
        return self.above((name, protocol, self.lengths[-1]), (name, protocol, self.lengths[0]))

    def perplexity(self, name: str, protocol: str, length: int) -> str:
        nats = self.by_seed(name, protocol, length)
        return DASH if nats is None else number(math.exp(sum(nats) / len(nats)))

    def curve(self, kind: str, protocol: str, length: int) -> dict[float, str]:
        """Names by beta: trainings with one kind of slopes, or one model and its readings."""
        found: dict[float, str] = {}
        for row in self.of_kind("extrapolation"):
            settings = {"alibi_beta": 1.0, "alibi_slope_kind": "geometric", "alibi_trainable": "none"}
            settings |= row["fields"] | row["overrides"]
            settings.pop("training.learning_rate", None)  # the same for all variants in comparisons of betas
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
        """The betas not distinguishable from the lowest.

        The threshold is 0.12 nats for one seed, 0.02 nats and two standard errors for two, and 0.02 nats and half of
        the interval for three or more.
        """
        curve, lowest = self.curve(kind, protocol, length), self.lowest(kind, protocol, length)
        found = []
        for beta, name in curve.items():
            gaps = self.above((name, protocol, length), (curve[lowest], protocol, length)) or Gap()
            noise = 0.12
            if len(gaps) > 1:
                spread = half_width(gaps) if len(gaps) > 2 else 2 * deviation(gaps) / math.sqrt(len(gaps))
                noise = max(0.02, spread)
            if beta == lowest or abs(mean(gaps)) <= noise or min(gaps) < 0 < max(gaps):
                found.append(beta)
        return found

    def basis(self) -> str:
        ratios = sorted(r["num_train_tokens"] / r["num_parameters"] for r in self.of_kind("training"))
        ends = span(ratios)
        seeds = len({record["seed"] for record in self.of_kind("training")})
        tokens = max(row["num_tokens"] for row in self.of_kind("extrapolation") if row["num_tokens"])
        return f"{ends} tokens per parameter, {seeds} seed{'s' if seeds > 1 else ''}, {tokens:,} tokens read"


def answers_of(task: str) -> list[Record]:
    return [record for record in of_kind("recall") if record["comparison"] == task]


def shares_of(task: str, variant: str, length: int, depth: float | None = None) -> list[float]:
    """The shares of right answers of every seed, at one depth or at each; of right tokens if the task has no depth."""
    return [
        record["token_accuracy" if record["depth"] is None else "accuracy"]
        for record in answers_of(task)
        if (record["variant"], record["length_tokens"]) == (variant, length) and record["error"] is None
        if depth in (None, record["depth"])
    ]


def read(paths: list[Path]) -> list[Record]:
    return [json.loads(line) for path in paths for line in path.read_text(encoding="utf-8").splitlines()]


def sections_of(page: str) -> list[tuple[str, list[str]]]:
    """Title and lines of every section."""
    found: list[tuple[str, list[str]]] = []
    for line in page.splitlines():
        if line.startswith("## "):
            found.append((line[3:], []))
        elif found:
            found[-1][1].append(line.replace("\\*", "*"))
    return found


def tables_of(lines: list[str]) -> list[list[list[str]]]:
    """The cells of each table, starting with its header."""
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
    """Standard deviation of a sample, with n - 1."""
    centre, total = mean(values), 0.0
    for value in values:
        total += (value - centre) ** 2
    return math.sqrt(total / (len(values) - 1))


def number(value: float) -> str:
    return f"{value:,.2f}" if value < 1e6 else f"{value:.2e}"


def signed(value: float) -> str:
    return f"{value:+.3f}".replace("-", MINUS)


def half_width(gap: Gap, outside: float = 0.05) -> float:
    """Half of the 95 % interval: the variances over seeds, blocks and their residual, times a quantile of t.

    ``outside`` is the probability that the interval misses the mean.
    """
    rows = gap.by_block or [[value] for value in gap]
    num_seeds, num_blocks = len(rows), len(rows[0])
    by_seed = [mean(row) for row in rows]
    by_block = [mean([row[block] for row in rows]) for block in range(num_blocks)]
    over_seeds = deviation(by_seed) ** 2 / num_seeds
    over_blocks = deviation(by_block) ** 2 / num_blocks if num_blocks > 1 else 0.0
    left = 0.0
    for seed, row in enumerate(rows):
        for block, value in enumerate(row):
            left += (value - by_seed[seed] - by_block[block] + mean(by_seed)) ** 2
    if num_blocks > 1:
        left /= (num_seeds - 1) * (num_blocks - 1) * num_seeds * num_blocks
    if over_seeds + over_blocks == 0:
        return 0.0
    below = over_seeds**2 / (num_seeds - 1) + (over_blocks**2 / (num_blocks - 1) if num_blocks > 1 else 0.0)
    return quantile_of_t((over_seeds + over_blocks) ** 2 / below, outside) * math.sqrt(over_seeds + over_blocks + left)


def quantile_of_t(freedom: float, outside: float = 0.05) -> float:
    """What is exceeded in size with probability ``outside``, by Simpson's rule over the density and bisection."""
    scale = math.exp(math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2)) / math.sqrt(freedom * math.pi)

    def within(end: float) -> float:
        total, num_steps = 0.0, 2000
        for step in range(num_steps + 1):
            weight = 1 if step in (0, num_steps) else 4 if step % 2 else 2
            total += weight * (1 + (end * step / num_steps) ** 2 / freedom) ** (-(freedom + 1) / 2)
        return 2 * scale * total * end / num_steps / 3

    low, high = 1.0, 32.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if within(middle) < 1 - outside else (low, middle)
    return low


def full(values: Gap) -> str:
    """The mean with half of the interval for three seeds or more, or with the seeds in brackets for two."""
    if len(values) > 2:
        return f"{signed(mean(values))} {PLUS_MINUS} {half_width(values):.3f}"
    seeds = f" ({', '.join(map(signed, values))})" if len(values) > 1 else ""
    return signed(mean(values)) + seeds


def ratio(value: float) -> str:
    return f"1/{round(1 / value)}" if value < 1 and math.log2(value).is_integer() else f"{value:.4g}"


def span(values: list[float]) -> str:
    low, high = f"{min(values):.2f}", f"{max(values):.2f}"
    return low if low == high else f"{low} to {high}"


ROOT = Path(__file__).resolve().parents[2]
BETA = "\N{GREEK SMALL LETTER BETA}"
CONFIG = yaml.safe_load((ROOT / "configs" / "report" / "tables.yaml").read_text(encoding="utf-8"))
RECORDS = read([ROOT / path for path in CONFIG["records"]])
SECTIONS = sections_of((ROOT / "docs" / "results" / "tables.md").read_text(encoding="utf-8"))
GRIDS = {
    name: Grid([record for record in RECORDS if record.get("comparison") == name])
    for name in dict.fromkeys(r["comparison"] for r in RECORDS if r["kind"] == "comparison" and not r.get("series"))
}
# Numbers in nats, none of which may remain in a line after its findings are removed.
LEFT_OVER = re.compile(rf"[+{MINUS}]\d|\d\.\d")


def tokens(text: str) -> int:
    return int(text.replace(",", ""))


def of_kind(kind: str) -> list[Record]:
    return [record for record in RECORDS if record["kind"] == kind]


def grid_before(place: int) -> Grid:
    """The comparison named by the last section before ``place`` whose title is the name of a comparison."""
    for title, _ in reversed(SECTIONS[: place + 1]):
        for name, grid in GRIDS.items():
            if title == name[0].upper() + name[1:]:
                return grid
    raise AssertionError(f"section {place} belongs to no comparison")


def take_out(line: str, expected: list[str]) -> None:
    """Fail unless each text occurs in the line, and no number of nats is left after removing them."""
    for text in sorted(expected, key=len, reverse=True):
        assert text in line, f"{text!r} is not in {line!r}"
        line = line.replace(text, "", 1)
    assert not LEFT_OVER.search(line), line


def named(name: str, values: Gap | None) -> str:
    return name if values is None else f"{name} {full(values)}"


def lowest_uniform(grid: Grid, protocol: str, length: int) -> Gap:
    ends = []
    for kind in ("uniform", "geometric"):
        name = grid.curve(kind, protocol, length)[grid.lowest(kind, protocol, length)]
        ends.append((name, protocol, length))
    found = grid.above(*ends)
    assert found is not None
    return found


def lines_of(title: str) -> list[str]:
    (lines,) = (lines for other, lines in SECTIONS if other == title)
    return lines
