"""Which differences count: a rule between trainings, a rule within one model, and what follows for a claim."""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

from modeling_alibi_gpt.report.intervals import half_width
from modeling_alibi_gpt.runtime.records import Record


Blocks = Sequence[Sequence[float]]


# Differences between trainings of this size that are smaller say nothing.
NOISE_NATS = 0.02
# The same of one seed, whose spread is not known: two standard deviations over seeds of such a difference. The four
# comparisons with two seeds had 0.023, 0.032, 0.034 and 0.059 nats; the largest counts.
LONE_SEED_NATS = 0.12
# How far a change of one model depends on the text, for records that do not hold their blocks: the standard error over
# blocks of 16 thousand tokens, which was 0.0007 to 0.0021 in eight changes of ALiBi with length (the demo's records).
BLOCK_ERROR_NATS = 0.002
# What is shown to rise by less than this, one per cent of perplexity, stays level.
LEVEL_NATS = 0.01
NUM_STANDARD_ERRORS = 2
# Fewer say too little of what another seed does: differences between such trainings prove and refute no claim.
MIN_SEEDS = 3


class Verdict(Enum):
    """What records say of a claim."""

    HOLDS = "holds"
    DOES_NOT_HOLD = "does not hold"
    NOT_SHOWN = "not shown"


@dataclass(frozen=True)
class Difference:
    """Nats of one measurement above another.

    Attributes:
        by_seed: One number for each seed that both have.
        noise: What their mean must exceed to count, in nats.
        half_width: Half of the 95 % interval of their mean; None of fewer than ``MIN_SEEDS`` seeds.
        is_proof: Whether a claim may rest on it.
    """

    by_seed: tuple[float, ...]
    noise: float
    half_width: float | None = None
    is_proof: bool = True

    @property
    def mean(self) -> float:
        return statistics.fmean(self.by_seed)

    @property
    def ends(self) -> tuple[float, float]:
        """Of its 95 % interval, or of its seeds where there are too few for one."""
        if self.half_width is None:
            return min(self.by_seed), max(self.by_seed)
        return self.mean - self.half_width, self.mean + self.half_width

    @property
    def sign(self) -> int:
        """1 or -1 where every seed lies on that side and the mean is beyond the noise, else 0: undetected."""
        if abs(self.mean) <= self.noise or min(self.by_seed) < 0 < max(self.by_seed):
            return 0
        return 1 if self.mean > 0 else -1

    @property
    def shown(self) -> int:
        """``sign`` where a claim may rest on it, else 0."""
        return self.sign if self.is_proof else 0

    @property
    def rise(self) -> int:
        """1 where it is shown to rise, -1 where it is shown to stay level or to fall, else 0."""
        return 1 if self.sign > 0 else -int(self.is_level)

    @property
    def is_level(self) -> bool:
        """Whether it is shown, not merely undetected, that no seed rises by more than ``LEVEL_NATS``."""
        return self.sign <= 0 and max(self.by_seed) + self.noise <= LEVEL_NATS


def between_trainings(by_seed: Iterable[float], by_block: Blocks | None = None) -> Difference:
    """A difference of models trained apart.

    Noise is half of the 95 % interval over seeds and blocks of text, but at least ``NOISE_NATS``. Of two seeds it is
    ``NOISE_NATS`` or two standard errors over them, of one seed ``LONE_SEED_NATS``: enough to choose by, not to prove.

    Args:
        by_seed: Nats per token of the one above the other, for each seed.
        by_block: The same for each seed and each block of the text; None where the records hold none.
    """
    differences = tuple(by_seed)
    if len(differences) >= MIN_SEEDS:
        half = half_width(by_block if by_block is not None else [[each] for each in differences])
        return Difference(differences, max(NOISE_NATS, half), half)
    noise = LONE_SEED_NATS
    if len(differences) > 1:
        noise = max(NOISE_NATS, NUM_STANDARD_ERRORS * _standard_error(differences))
    return Difference(differences, noise, is_proof=False)


def within_a_model(by_seed: Iterable[float], by_block: Blocks | None = None) -> Difference:
    """A difference of two readings of one text by the same models.

    Noise is half of the 95 % interval over seeds and blocks. Of fewer than ``MIN_SEEDS`` seeds it is two standard
    errors over the blocks, and the difference speaks of these models alone.

    Args:
        by_seed: Nats per token of the one reading above the other, for each seed.
        by_block: The same for each seed, or for their mean, and each block; None where the records hold none.
    """
    differences = tuple(by_seed)
    if by_block is None:
        return Difference(differences, NUM_STANDARD_ERRORS * BLOCK_ERROR_NATS)
    if len(by_block) >= MIN_SEEDS:
        half = half_width(by_block)
        return Difference(differences, half, half)
    means = [statistics.fmean(block) for block in zip(*by_block, strict=True)]
    return Difference(differences, NUM_STANDARD_ERRORS * _standard_error(means))


def block_differences(one: Blocks | None, other: Blocks | None) -> list[list[float]] | None:
    """Seed by seed and block by block, the one above the other; None where either has no blocks."""
    if one is None or other is None:
        return None
    return [[x - y for x, y in zip(*rows, strict=True)] for rows in zip(one, other, strict=True)]


def judge(signs: Iterable[int], claimed: int, *, each: bool = True) -> Verdict:
    """What detected signs say of a claim; what is undetected, 0, refutes and proves nothing.

    Args:
        signs: 1, -1 or 0 for each thing that the claim is about; a claim about nothing is not shown.
        claimed: The sign that is claimed, 1 or -1.
        each: Whether it is claimed of each of them, or of at least one.
    """
    found = list(signs)
    proven, refuted = (all, any) if each else (any, all)
    if found and proven(sign == claimed for sign in found):
        return Verdict.HOLDS
    if found and refuted(sign == -claimed for sign in found):
        return Verdict.DOES_NOT_HOLD
    return Verdict.NOT_SHOWN


@dataclass(frozen=True)
class BetaChoice:
    """Which beta a sweep takes, and between which it cannot tell.

    Attributes:
        lowest: That of the lowest loss.
        level: Those whose loss is not told apart from the lowest, ascending; the lowest is among them.
    """

    lowest: float
    level: tuple[float, ...]

    @property
    def taken(self) -> float:
        """Of those that are level the one nearest 1, the paper's, on a log scale; of two as near the lower loss's."""
        return min(self.level, key=lambda beta: (round(abs(math.log(beta)), 12), beta != self.lowest))


def choose_beta(above_lowest: Mapping[float, Difference], lowest: float) -> BetaChoice:
    """The choice among betas, from the difference of each from that of the lowest loss."""
    level = sorted(beta for beta, difference in above_lowest.items() if beta == lowest or not difference.sign)
    return BetaChoice(lowest, tuple(level))


def choose_trial(trials: Sequence[Record]) -> tuple[Record, BetaChoice] | None:
    """The trial that a sweep takes, and how it was chosen; None where none is complete.

    Args:
        trials: ``beta_trial`` records of one study.
    """
    complete = [trial for trial in trials if trial["state"] == "COMPLETE"]
    if not complete:
        return None
    lowest = min(complete, key=lambda trial: trial["nats_per_token"])
    by_beta = {trial["beta"]: trial for trial in reversed(complete)}
    by_beta[lowest["beta"]] = lowest
    choice = choose_beta({beta: trial_difference(trial, lowest) for beta, trial in by_beta.items()}, lowest["beta"])
    return by_beta[choice.taken], choice


def trial_difference(trial: Record, lowest: Record) -> Difference:
    """Nats of one complete trial above those of another of the same study."""
    by_seed = [trial["nats_per_token"] - lowest["nats_per_token"]]
    if trial["mode"] == "retrain":
        one, other = (
            dict(zip(record["seeds"], record["nats_per_token_by_seed"], strict=True)) for record in (trial, lowest)
        )
        return between_trainings([one[seed] - other[seed] for seed in one if seed in other] or by_seed)
    blocks = [record.get("nats_per_token_by_block") for record in (trial, lowest)]
    return within_a_model(by_seed, block_differences(*(None if row is None else [row] for row in blocks)))


def _standard_error(values: Sequence[float]) -> float:
    """Of their mean; 0 for fewer than two, which have no spread."""
    return statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else 0.0
