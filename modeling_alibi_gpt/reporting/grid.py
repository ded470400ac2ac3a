"""The ``comparison`` records of one comparison, found by variant, reading, protocol and length."""

from collections.abc import Mapping, Sequence
from typing import Any

from modeling_alibi_gpt.reporting.records import Record
from modeling_alibi_gpt.reporting.statistics import Difference, between_trainings, within_a_model


AS_TRAINED = "as trained"
# The fields of a sweep of beta at their defaults: a variant that leaves them there is the paper's ALiBi.
BETA_DEFAULTS: dict[str, Any] = {"alibi_beta": 1.0, "alibi_slope_kind": "geometric", "alibi_trainable": "none"}


class Grid:
    """A comparison, or a part of one, as a table of any number of dimensions.

    Attributes:
        records: Its ``comparison`` records.
        name: Of the comparison, ``what on corpus``.
        reference: Name of the variant that the others are compared with.
        lengths: Window lengths in tokens, ascending.
        protocols: In the order of the records.
    """

    def __init__(self, records: Sequence[Record], reference: str | None = None) -> None:
        self.records = list(records)
        self.name: str = self.records[0]["comparison"]
        self.reference: str = reference or self.records[0]["reference"]
        self.lengths: list[int] = sorted({record["length_tokens"] for record in self.records})
        self.protocols = list(dict.fromkeys(record["protocol"] for record in self.records))
        self._cells = {
            (record["variant"], record["reading"], record["protocol"], record["length_tokens"]): record
            for record in self.records
        }

    @property
    def corpus(self) -> str:
        """What follows ``on`` in the name."""
        return self.name.split(" on ")[-1]

    @property
    def reach(self) -> str:
        """``from 128 to 4,096``, in tokens."""
        return f"from {self.lengths[0]:,} to {self.lengths[-1]:,}"

    @property
    def main_protocol(self) -> str:
        """Sliding windows where they were used: every scored token has most of a window behind it."""
        return "sliding" if "sliding" in self.protocols else self.protocols[0]

    @property
    def as_trained(self) -> list[Record]:
        """The records of models as they were trained."""
        return [record for record in self.records if record["reading"] == AS_TRAINED]

    @property
    def variants(self) -> list[str]:
        """Names of what was trained, in order."""
        return list(dict.fromkeys(record["variant"] for record in self.records))

    @property
    def alibi(self) -> str | None:
        """The variant that is ALiBi as its paper has it: the reference, if it is one; None without any."""
        plain = {record["variant"] for record in self.records if is_plain_alibi(record)}
        return self.reference if self.reference in plain else min(plain, key=self.variants.index, default=None)

    def method(self, variant: str) -> str:
        """The position method of a variant."""
        return str(next(record["position_method"] for record in self.records if record["variant"] == variant))

    def readings(self, variant: str) -> list[str]:
        """The ways in which a variant was read, as trained first."""
        return list(dict.fromkeys(record["reading"] for record in self.records if record["variant"] == variant))

    def cell(self, variant: str, protocol: str, length: int, reading: str = AS_TRAINED) -> Record:
        return self._cells[variant, reading, protocol, length]

    def change(self, variant: str, protocol: str, length: int) -> Difference | None:
        """From the shortest length to ``length``, as trained; None where the variant fails at either."""
        near, far = self.cell(variant, protocol, self.lengths[0]), self.cell(variant, protocol, length)
        return paired(far, near)

    def difference(
        self, variant: str, protocol: str, length: int, reading: str = AS_TRAINED, *, against: str | None = None
    ) -> Difference | None:
        """From the reference, or ``against`` another variant, as trained; None where either of them fails."""
        beside = self.cell(against or self.reference, protocol, length)
        return paired(self.cell(variant, protocol, length, reading), beside)

    def split(self) -> "tuple[Grid | None, Grid | None]":
        """The part whose variants differ in their position method, and the part whose variants differ in beta.

        Where no variant sets a beta, everything belongs to the first part. Where some do, the second part has every
        ALiBi that differs from the paper's in beta, in the kind of its slopes or in what learns, and the first what
        is left; the paper's ALiBi belongs to both, and so does the reference if its kind allows.
        """
        if not any(is_of_betas(record) and "alibi_beta" in record["fields"] for record in self.records):
            return self, None
        betas = [r for r in self.records if is_of_betas(r) and r["reading_fields"].keys() <= BETA_DEFAULTS.keys()]
        by_beta = Grid(betas)
        if by_beta.reference not in by_beta.variants:
            by_beta.reference = by_beta.alibi or by_beta.variants[0]
        if all(map(is_of_betas, self.records)):
            return None, by_beta
        methods = [
            record
            for record in self.records
            if record["variant"] == self.reference or is_plain_alibi(record) or not is_of_betas(record)
            if record["reading"] == AS_TRAINED or not record["reading_fields"].keys() <= BETA_DEFAULTS.keys()
        ]
        return Grid(methods), by_beta


def is_of_betas(record: Record) -> bool:
    """Whether a variant is ALiBi that differs from the paper's at most in what a sweep of beta varies."""
    fields = record["fields"].keys() - {"position_method"}
    return bool(record["position_method"] == "alibi" and fields <= BETA_DEFAULTS.keys())


def is_plain_alibi(record: Record) -> bool:
    """Whether a variant is ALiBi as its paper has it."""
    return is_of_betas(record) and all(
        record["fields"].get(field, default) == default for field, default in BETA_DEFAULTS.items()
    )


def paired(record: Record, other: Record) -> Difference | None:
    """One cell above another, seed by seed; None where one of them failed."""
    if record["error"] or other["error"]:
        return None
    pairs = zip(record["nats_per_token_by_seed"], other["nats_per_token_by_seed"], strict=True)
    by_seed = [one - two for one, two in pairs]
    if record["variant"] != other["variant"]:
        return between_trainings(by_seed)
    return within_a_model(by_seed, record.get("nats_per_token_by_block"), other.get("nats_per_token_by_block"))


def format_mean(difference: Difference) -> str:
    """``+0.031``: the mean in nats."""
    return with_minus(f"{difference.mean:+.3f}")


def format_change(difference: Difference | None) -> str:
    """``+0.031 (+0.028, +0.034)``: the mean in nats, and each seed's where there are several; a dash for None."""
    if difference is None:
        return "\N{EN DASH}"
    seeds = ", ".join(f"{value:+.3f}" for value in difference.by_seed)
    return format_mean(difference) + (with_minus(f" ({seeds})") if len(difference.by_seed) > 1 else "")


def listed(differences: Mapping[str, Difference]) -> str:
    """``one +0.031, other -0.002``: means in nats."""
    return ", ".join(f"{name} {format_mean(difference)}" for name, difference in differences.items())


def with_minus(number: str) -> str:
    """A number whose hyphens are minus signs."""
    return number.replace("-", "\N{MINUS SIGN}")
