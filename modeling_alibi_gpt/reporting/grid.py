"""The ``comparison`` records of one comparison, found by variant, reading, protocol and length."""

from collections.abc import Sequence

from modeling_alibi_gpt.reporting.records import Record


AS_TRAINED = "as trained"
# Differences between trainings of this size that are smaller say nothing, nor do those on which seeds disagree.
NOISE_NATS = 0.02


class Grid:
    """A comparison as a table of any number of dimensions.

    Attributes:
        records: Its ``comparison`` records.
        name: Of the comparison, ``what on corpus``.
        reference: Name of the variant that the others are compared with.
        lengths: Window lengths in tokens, ascending.
        protocols: In the order of the records.
    """

    def __init__(self, records: Sequence[Record]) -> None:
        self.records = list(records)
        self.name: str = self.records[0]["comparison"]
        self.reference: str = self.records[0]["reference"]
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
    def is_sweep(self) -> bool:
        """Whether its variants differ in beta rather than in the position method."""
        return any("alibi_beta" in record["fields"] for record in self.records)

    @property
    def as_trained(self) -> list[Record]:
        """The records of models as they were trained."""
        return [record for record in self.records if record["reading"] == AS_TRAINED]

    @property
    def variants(self) -> list[str]:
        """Names of what was trained, in order."""
        return list(dict.fromkeys(record["variant"] for record in self.records))

    def readings(self, variant: str) -> list[str]:
        """The ways in which a variant was read, as trained first."""
        return list(dict.fromkeys(record["reading"] for record in self.records if record["variant"] == variant))

    def cell(self, variant: str, protocol: str, length: int, reading: str = AS_TRAINED) -> Record:
        return self._cells[variant, reading, protocol, length]

    def change(self, variant: str, protocol: str, length: int) -> list[float] | None:
        """Nats by seed from the shortest length to ``length``, as trained; None where the variant fails at either."""
        near, far = self.cell(variant, protocol, self.lengths[0]), self.cell(variant, protocol, length)
        return None if near["error"] or far["error"] else paired(far, near)


def sign(differences: Sequence[float]) -> int:
    """1 or -1 where every difference lies on that side and their mean is beyond the noise, else 0."""
    mean = sum(differences) / len(differences)
    if abs(mean) <= NOISE_NATS or min(differences) < 0 < max(differences):
        return 0
    return 1 if mean > 0 else -1


def paired(record: Record, other: Record) -> list[float]:
    """Nats of one cell above another, by seed."""
    pairs = zip(record["nats_per_token_by_seed"], other["nats_per_token_by_seed"], strict=True)
    return [one - two for one, two in pairs]


def format_mean(differences: Sequence[float]) -> str:
    """``+0.031``: the mean in nats."""
    return with_minus(f"{sum(differences) / len(differences):+.3f}")


def format_change(differences: Sequence[float] | None) -> str:
    """``+0.031 (+0.028, +0.034)``: the mean in nats, and each seed's where there are several; a dash for None."""
    if differences is None:
        return "\N{EN DASH}"
    seeds = ", ".join(f"{difference:+.3f}" for difference in differences)
    return format_mean(differences) + (with_minus(f" ({seeds})") if len(differences) > 1 else "")


def with_minus(number: str) -> str:
    """A number whose hyphens are minus signs."""
    return number.replace("-", "\N{MINUS SIGN}")
