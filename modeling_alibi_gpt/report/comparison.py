"""One comparison or a part of it: its cells, the differences between cells, and its curves over beta."""

from collections.abc import Iterable

import pandas as pd

from modeling_alibi_gpt.report.frames import pick, rows_of
from modeling_alibi_gpt.report.statistics import (
    BetaChoice,
    Difference,
    between_trainings,
    block_differences,
    choose_beta,
    within_a_model,
)
from modeling_alibi_gpt.runtime.record_types import AS_TRAINED
from modeling_alibi_gpt.runtime.records import Record
from modeling_alibi_gpt.runtime.variants import POSITION_RATE


AFTER_TRAINING = "set after training"
# Their tables start at 0 and have to move by several nats.
SLOW_METHODS = ("t5", "shared_offset")
Differences = dict[str, Difference | None]


class Comparison:
    """Cells by variant, reading, protocol and length.

    Attributes:
        frame: ``comparison`` records, as returned by ``frame_of``.
        name: Name of the comparison.
        corpus: Name of its text.
        series, budget_tokens: The series of budgets that it belongs to and its budget; None without.
        reference: Variant that the others are compared with.
        lengths: Window lengths in tokens, ascending.
        protocols, variants, seeds: In the order of the records.
    """

    def __init__(self, frame: pd.DataFrame, reference: str | None = None) -> None:
        first = frame.iloc[0]
        self.frame = frame
        self.name, self.corpus = str(first["comparison"]), str(first["corpus"])
        self.series: str | None = first["series"]
        self.budget_tokens: int | None = None if pd.isna(first["budget_tokens"]) else int(first["budget_tokens"])
        self.reference = reference or str(first["reference"])
        self.seeds: list[int] = first["seeds"]
        self.lengths: list[int] = sorted(frame["length_tokens"].unique().tolist())
        self.protocols: list[str] = frame["protocol"].unique().tolist()
        self.variants: list[str] = frame["variant"].unique().tolist()
        self._cells = {
            (row["variant"], row["reading"], row["protocol"], row["length_tokens"]): row for row in rows_of(frame)
        }

    @property
    def train_length(self) -> int | None:
        """The training length, if all variants have the same and were evaluated at it; None otherwise."""
        known = self.frame["train_context_length"].dropna().unique().tolist()
        return known[0] if len(known) == 1 and known[0] in self.lengths else None

    @property
    def main_protocol(self) -> str:
        """Sliding windows if they were used, since they give every scored token most of a window as context."""
        return "sliding" if "sliding" in self.protocols else self.protocols[0]

    @property
    def as_trained(self) -> pd.DataFrame:
        """The cells of models that are evaluated as trained."""
        return self.frame[self.frame["is_trained"]]

    @property
    def alibi(self) -> str | None:
        """A variant that is ALiBi as in the paper, preferably the reference; None if there is none."""
        plain = pick(self.frame, varies="nothing")["variant"].unique().tolist()
        return self.reference if self.reference in plain else next(iter(plain), None)

    @property
    def scaled(self) -> list[str]:
        """The variants that were also evaluated with settings other than those of training."""
        return [variant for variant in self.variants if len(self.readings(variant)) > 1]

    @property
    def learned(self) -> dict[str, float]:
        """The variants that learn beta or slopes, and the beta, or the beta of the slopes, that they start from."""
        rows = self.as_trained[self.as_trained["learns"]]
        return dict(zip(rows["variant"], rows["beta"], strict=True))

    @property
    def withdrawn(self) -> list[str]:
        """The variants that get no verdict: they train a bias table, beta or slopes at the base learning rate.

        That rate is too low for such parameters, since Adam moves an entry by at most about the sum of its rates.
        """
        slow = self.as_trained["position_method"].isin(SLOW_METHODS) | self.as_trained["learns"]
        is_given = self.as_trained["fields"].map(lambda fields: POSITION_RATE in fields)
        return list(self.as_trained.loc[slow & ~is_given, "variant"].unique())

    def judged(self, variants: Iterable[str]) -> list[str]:
        """The variants that can get a verdict."""
        return [variant for variant in variants if variant not in self.withdrawn]

    @property
    def own_beta(self) -> float:
        """The beta that the reference was trained with."""
        return float(pick(self.as_trained, variant=self.reference)["beta"].iloc[0])

    @property
    def has_blocks(self) -> bool:
        """Whether every cell without an error has its loss by block of text."""
        return bool(self.frame.loc[self.frame["error"].isna(), "blocks"].notna().all())

    def method(self, variant: str) -> str:
        """The position method of a variant."""
        return str(pick(self.frame, variant=variant)["position_method"].iloc[0])

    def readings(self, variant: str) -> list[str]:
        """The settings that a variant was evaluated with, in the order of the records."""
        return list(pick(self.frame, variant=variant)["reading"].unique())

    def cell(self, variant: str, protocol: str, length: int, reading: str = AS_TRAINED) -> Record:
        return self._cells[variant, reading, protocol, length]

    def change(self, variant: str, protocol: str, length: int, reading: str = AS_TRAINED) -> Difference | None:
        """Change from a variant as trained at the shortest length to ``length``; None if either cell failed."""
        return paired(self.cell(variant, protocol, length, reading), self.cell(variant, protocol, self.lengths[0]))

    def changes(self, protocol: str, variants: Iterable[str] | None = None) -> Differences:
        """Changes from the shortest to the longest length, for all variants or the given ones."""
        chosen = self.variants if variants is None else variants
        return {variant: self.change(variant, protocol, self.lengths[-1]) for variant in chosen}

    def difference(
        self, variant: str, protocol: str, length: int, reading: str = AS_TRAINED, *, against: str | None = None
    ) -> Difference | None:
        """Difference from the reference as trained, or from the variant ``against``; None if either cell failed."""
        beside = self.cell(against or self.reference, protocol, length)
        return paired(self.cell(variant, protocol, length, reading), beside)

    def differences(
        self, length: int, variants: Iterable[str] | None = None, *, against: str | None = None
    ) -> Differences:
        """Differences with the main protocol, for all variants but the reference or for the given ones."""
        others = [variant for variant in self.variants if variant != self.reference] if variants is None else variants
        return {v: self.difference(v, self.main_protocol, length, against=against) for v in others}

    def gains(self, variant: str, length: int, field: str | None = None) -> Differences:
        """Differences of a variant's other readings, or those that set ``field``, from the variant as trained."""
        rows = pick(self.frame, variant=variant, is_trained=False)
        readings = {row["reading"] for row in rows_of(rows) if field is None or field in row["reading_fields"]}
        return {
            reading: self.difference(variant, self.main_protocol, length, reading, against=variant)
            for reading in self.readings(variant)
            if reading in readings
        }

    def curve(self, kind: str, length: int, protocol: str | None = None) -> "Curve":
        """Cells by beta: trainings with one kind of slopes, or the reference with beta set after training."""
        cells = pick(self.frame, protocol=protocol or self.main_protocol, length_tokens=length, reads_beta=True)
        cells = cells[(cells["varies"] != "method") & ~cells["learns"] & cells["error"].isna()]
        if kind == AFTER_TRAINING:
            cells = pick(cells, slope_kind="geometric", variant=self.reference)
        else:
            cells = pick(cells, slope_kind=kind, is_trained=True)
        return Curve({row["beta"]: row for row in rows_of(cells.sort_values("beta", kind="stable"))})

    def curves(self, kind: str) -> dict[int, "Curve"]:
        """Curves by length; empty unless every length has one."""
        found = {length: self.curve(kind, length) for length in self.lengths}
        return found if all(found.values()) else {}

    def from_training_length(self) -> "Comparison | None":
        """The part at the training length and beyond; None if that length was not evaluated."""
        if self.train_length is None:
            return None
        return Comparison(self.frame[self.frame["length_tokens"] >= self.train_length], self.reference)

    def split(self) -> "tuple[Comparison | None, Comparison | None]":
        """Split into the part that compares position methods and the part that compares betas.

        If the variants have one beta, everything is in the first part. Otherwise the second part has every ALiBi
        variant that differs from the paper's only in beta, in the kind of slopes or in what is learned. The first part
        has all variants as trained, and the readings that change something other than beta; it is None if all variants
        are in the second part.
        """
        frame = self.frame
        is_of_betas = frame["varies"] != "method"
        if frame.loc[is_of_betas & frame["is_trained"], "beta"].nunique() < 2:
            return self, None
        by_beta = Comparison(frame[is_of_betas & frame["reads_beta"]])
        if by_beta.reference not in by_beta.variants:
            by_beta.reference = by_beta.alibi or by_beta.variants[0]
        if is_of_betas.all():
            return None, by_beta
        return Comparison(frame[frame["is_trained"] | ~frame["reads_beta"]]), by_beta


class Curve(dict[float, Record]):
    """Cells by beta, ascending; none of them failed."""

    @property
    def lowest(self) -> float:
        """The beta of the lowest loss."""
        return min((row["nats_per_token"], beta) for beta, row in self.items())[1]

    @property
    def choice(self) -> BetaChoice:
        """The beta to choose, and the betas that the curve cannot distinguish."""
        return choose_beta({beta: self.between(beta, self.lowest) for beta in self}, self.lowest)

    def between(self, beta: float, other: float) -> Difference:
        """Loss at ``beta`` minus loss at ``other``."""
        found = paired(self[beta], self[other])
        assert found is not None  # no cell of a curve failed
        return found

    def above(self, beta: float) -> dict[float, Difference]:
        """Differences of all other betas from ``beta``; empty if ``beta`` was not measured."""
        return {other: self.between(other, beta) for other in self if other != beta} if beta in self else {}

    def lowest_above(self, other: "Curve") -> Difference | None:
        """Lowest loss of this curve minus the lowest loss of ``other``."""
        return paired(self[self.lowest], other[other.lowest])


def best_moves(curves: Iterable[Curve]) -> bool:
    """Whether the best beta of some curve is distinguishably worse than the best of another curve, on that curve."""
    curves = list(curves)
    return any(one.lowest in other and one.lowest not in other.choice.level for one in curves for other in curves)


def paired(row: Record, other: Record) -> Difference | None:
    """Difference of two cells, seed by seed; None if either failed."""
    if row["error"] or other["error"]:
        return None
    pairs = zip(row["nats_per_token_by_seed"], other["nats_per_token_by_seed"], strict=True)
    by_seed = [one - two for one, two in pairs]
    rule = within_a_model if row["variant"] == other["variant"] else between_trainings
    return rule(by_seed, block_differences(row["blocks"], other["blocks"]))
