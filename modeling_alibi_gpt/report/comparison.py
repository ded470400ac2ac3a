"""One comparison, or a part of one: its cells, what lies between two of them, and its curves over beta."""

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
# Their tables start at 0 and must move by several nats.
SLOW_METHODS = ("t5", "shared_offset")
Differences = dict[str, Difference | None]


class Comparison:
    """Cells by variant, reading, protocol and length.

    Attributes:
        frame: Its ``comparison`` records, as ``frame_of`` gives them.
        name, corpus: Of the comparison and of its text.
        reference: Name of the variant that the others are compared with.
        lengths: Window lengths in tokens, ascending.
        protocols, variants, seeds: In the order of the records.
    """

    def __init__(self, frame: pd.DataFrame, reference: str | None = None) -> None:
        first = frame.iloc[0]
        self.frame = frame
        self.name, self.corpus = str(first["comparison"]), str(first["corpus"])
        self.reference = reference or str(first["reference"])
        self.seeds: list[int] = first["seeds"]
        self.lengths: list[int] = sorted(frame["length_tokens"].unique().tolist())
        self.protocols: list[str] = frame["protocol"].unique().tolist()
        self.variants: list[str] = frame["variant"].unique().tolist()
        self._cells = {
            (row["variant"], row["reading"], row["protocol"], row["length_tokens"]): row for row in rows_of(frame)
        }

    @property
    def main_protocol(self) -> str:
        """Sliding windows where they were used: every scored token has most of a window behind it."""
        return "sliding" if "sliding" in self.protocols else self.protocols[0]

    @property
    def as_trained(self) -> pd.DataFrame:
        """The cells of models as they were trained."""
        return self.frame[self.frame["is_trained"]]

    @property
    def alibi(self) -> str | None:
        """The variant that is ALiBi as its paper has it: the reference, if it is one; None without any."""
        plain = pick(self.frame, varies="nothing")["variant"].unique().tolist()
        return self.reference if self.reference in plain else next(iter(plain), None)

    @property
    def scaled(self) -> list[str]:
        """The variants that were read in other ways than they were trained in."""
        return [variant for variant in self.variants if len(self.readings(variant)) > 1]

    @property
    def learned(self) -> list[str]:
        """The variants whose beta or slopes learn."""
        return list(self.as_trained.loc[self.as_trained["learns"], "variant"].unique())

    @property
    def withdrawn(self) -> list[str]:
        """The variants that no verdict is given on: a table of theirs, beta or slopes learned at the base rate alone.

        At that rate such a parameter cannot get where it should: Adam moves it at most about the sum of the rates.
        """
        slow = self.as_trained["position_method"].isin(SLOW_METHODS) | self.as_trained["learns"]
        is_given = self.as_trained["fields"].map(lambda fields: POSITION_RATE in fields)
        return list(self.as_trained.loc[slow & ~is_given, "variant"].unique())

    def judged(self, variants: Iterable[str]) -> list[str]:
        """Those variants that a verdict can be given on."""
        return [variant for variant in variants if variant not in self.withdrawn]

    @property
    def own_beta(self) -> float:
        """The beta that the reference was trained with."""
        return float(pick(self.as_trained, variant=self.reference)["beta"].iloc[0])

    @property
    def has_blocks(self) -> bool:
        """Whether every cell that was measured has its loss by block of the text."""
        return bool(self.frame.loc[self.frame["error"].isna(), "blocks"].notna().all())

    def method(self, variant: str) -> str:
        """The position method of a variant."""
        return str(pick(self.frame, variant=variant)["position_method"].iloc[0])

    def readings(self, variant: str) -> list[str]:
        """The ways in which a variant was read, as trained first."""
        return list(pick(self.frame, variant=variant)["reading"].unique())

    def cell(self, variant: str, protocol: str, length: int, reading: str = AS_TRAINED) -> Record:
        return self._cells[variant, reading, protocol, length]

    def change(self, variant: str, protocol: str, length: int, reading: str = AS_TRAINED) -> Difference | None:
        """From a variant as trained at the shortest length to ``length``; None where it fails at either."""
        return paired(self.cell(variant, protocol, length, reading), self.cell(variant, protocol, self.lengths[0]))

    def changes(self, protocol: str, variants: Iterable[str] | None = None) -> Differences:
        """From the shortest length to the longest, of all variants or of some."""
        chosen = self.variants if variants is None else variants
        return {variant: self.change(variant, protocol, self.lengths[-1]) for variant in chosen}

    def difference(
        self, variant: str, protocol: str, length: int, reading: str = AS_TRAINED, *, against: str | None = None
    ) -> Difference | None:
        """From the reference, or ``against`` another variant, as trained; None where either of them fails."""
        beside = self.cell(against or self.reference, protocol, length)
        return paired(self.cell(variant, protocol, length, reading), beside)

    def differences(
        self, length: int, variants: Iterable[str] | None = None, *, against: str | None = None
    ) -> Differences:
        """Of all variants but the reference, or of some, with the main protocol."""
        others = [variant for variant in self.variants if variant != self.reference] if variants is None else variants
        return {v: self.difference(v, self.main_protocol, length, against=against) for v in others}

    def gains(self, variant: str, length: int, field: str | None = None) -> Differences:
        """From a variant as trained to its other readings, of those that set ``field`` if it is given."""
        rows = pick(self.frame, variant=variant, is_trained=False)
        readings = {row["reading"] for row in rows_of(rows) if field is None or field in row["reading_fields"]}
        return {
            reading: self.difference(variant, self.main_protocol, length, reading, against=variant)
            for reading in self.readings(variant)
            if reading in readings
        }

    def curve(self, kind: str, length: int, protocol: str | None = None) -> "Curve":
        """A training for each beta with one kind of slopes, or the reference with other betas set after training."""
        cells = pick(self.frame, protocol=protocol or self.main_protocol, length_tokens=length, reads_beta=True)
        cells = cells[(cells["varies"] != "method") & ~cells["learns"] & cells["error"].isna()]
        if kind == AFTER_TRAINING:
            cells = pick(cells, slope_kind="geometric", variant=self.reference)
        else:
            cells = pick(cells, slope_kind=kind, is_trained=True)
        return Curve({row["beta"]: row for row in rows_of(cells.sort_values("beta", kind="stable"))})

    def curves(self, kind: str) -> dict[int, "Curve"]:
        """By length; none unless there is one at every length."""
        found = {length: self.curve(kind, length) for length in self.lengths}
        return found if all(found.values()) else {}

    def split(self) -> "tuple[Comparison | None, Comparison | None]":
        """The part whose variants differ in their position method, and the part whose variants differ in beta.

        Where no variant sets a beta, everything belongs to the first part. Where some do, the second part has every
        ALiBi that differs from the paper's in nothing but beta, the kind of its slopes or what learns. The first has
        all variants, but not the readings of the second; there is none where all variants are of the second.
        """
        frame = self.frame
        is_of_betas = frame["varies"] != "method"
        if not any("alibi_beta" in fields for fields in frame.loc[is_of_betas, "fields"]):
            return self, None
        by_beta = Comparison(frame[is_of_betas & frame["reads_beta"]])
        if by_beta.reference not in by_beta.variants:
            by_beta.reference = by_beta.alibi or by_beta.variants[0]
        if is_of_betas.all():
            return None, by_beta
        return Comparison(frame[frame["is_trained"] | ~frame["reads_beta"]]), by_beta


class Curve(dict[float, Record]):
    """Cells by beta, ascending, none of which failed."""

    @property
    def lowest(self) -> float:
        """The beta of the lowest loss."""
        return min((row["nats_per_token"], beta) for beta, row in self.items())[1]

    @property
    def choice(self) -> BetaChoice:
        """The beta to take, and between which the curve cannot tell."""
        return choose_beta({beta: self.between(beta, self.lowest) for beta in self}, self.lowest)

    def between(self, beta: float, other: float) -> Difference:
        """The loss at one beta above that at another."""
        found = paired(self[beta], self[other])
        assert found is not None  # no cell of a curve failed
        return found

    def above(self, beta: float) -> dict[float, Difference]:
        """Every other beta above ``beta``; nothing where that was not measured."""
        return {other: self.between(other, beta) for other in self if other != beta} if beta in self else {}

    def lowest_above(self, other: "Curve") -> Difference | None:
        """The lowest of this curve above the lowest of another."""
        return paired(self[self.lowest], other[other.lowest])


def best_moves(curves: Iterable[Curve]) -> bool:
    """Whether the best beta of one curve is worse than the best of another curve on that other curve."""
    curves = list(curves)
    return any(one.lowest in other and one.lowest not in other.choice.level for one in curves for other in curves)


def paired(row: Record, other: Record) -> Difference | None:
    """One cell above another, seed by seed; None where one of them failed."""
    if row["error"] or other["error"]:
        return None
    pairs = zip(row["nats_per_token_by_seed"], other["nats_per_token_by_seed"], strict=True)
    by_seed = [one - two for one, two in pairs]
    rule = within_a_model if row["variant"] == other["variant"] else between_trainings
    return rule(by_seed, block_differences(row["blocks"], other["blocks"]))
