"""Decide which differences count: a rule between training runs, a rule within one model, and verdicts on claims."""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

from modeling_alibi_gpt.report.intervals import half_width
from modeling_alibi_gpt.runtime.records import Record


Blocks = Sequence[Sequence[float]]


# Smaller differences between training runs of this size are treated as noise.
NOISE_NATS = 0.02
# The same for one seed, whose spread is unknown: two standard deviations over seeds of a difference from the
# reference. Their root mean square over variants was 0.012 to 0.059 nats in the six comparisons with two seeds; the
# largest is used.
LONE_SEED_NATS = 0.12
# Standard error over blocks of a difference within one model, for records without blocks: so many nats, and this
# share of the difference. It covers how the loss of seven methods changes with length in sliding windows, according to
# the blocks of results/main_gutenberg_128_cpu2_20261127.jsonl. Scaled to 20 thousand tokens, the errors there are
# 0.0006 nats for KERPLE, 0.0011 for ALiBi, and 6 to 15 % of the rises of the other five.
BLOCK_ERROR_NATS = 0.002
BLOCK_ERROR_SHARE = 0.15
# A loss that is shown to rise by less than this, one per cent of perplexity, counts as level. A gain from distant text
# counts if it is shown to be more.
LEVEL_NATS = 0.01
NUM_STANDARD_ERRORS = 2
# With fewer seeds the spread is too uncertain: differences between such trainings neither prove nor refute a claim.
MIN_SEEDS = 3


class Verdict(Enum):
    """The verdict of the records on a claim."""

    HOLDS = "holds"
    DOES_NOT_HOLD = "does not hold"
    NOT_SHOWN = "not shown"


@dataclass(frozen=True)
class Difference:
    """Nats per token of one measurement minus those of another.

    Attributes:
        by_seed: One difference per seed that both measurements share.
        noise: Threshold in nats that the mean must exceed to count.
        half_width: Half of the 95 % interval of the mean; None with fewer than ``MIN_SEEDS`` seeds.
        is_proof: Whether the difference can prove or refute a claim.
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
        """Ends of the 95 % interval, or the lowest and highest seed if there are too few for an interval."""
        if self.half_width is None:
            return min(self.by_seed), max(self.by_seed)
        return self.mean - self.half_width, self.mean + self.half_width

    @property
    def sign(self) -> int:
        """1 or -1 if all seeds agree on the sign and the mean exceeds the noise, else 0 (undetected)."""
        return self.sign_above(0.0)

    def sign_above(self, nats: float) -> int:
        """``sign`` of the difference minus ``nats``: 1 if it is shown to be above, -1 if below, else 0."""
        above = [each - nats for each in self.by_seed]
        mean = statistics.fmean(above)
        if abs(mean) <= self.noise or min(above) < 0 < max(above):
            return 0
        return 1 if mean > 0 else -1

    @property
    def shown(self) -> int:
        """``sign`` if the difference can prove or refute a claim, else 0."""
        return self.sign if self.is_proof else 0

    @property
    def rise(self) -> int:
        """1 if the loss is shown to rise by more than ``LEVEL_NATS``, -1 if by less or not at all, else 0."""
        return self.sign_above(LEVEL_NATS)

    @property
    def is_level(self) -> bool:
        """Whether the loss is shown to rise by less than ``LEVEL_NATS``, or to fall."""
        return self.rise < 0


def between_trainings(by_seed: Iterable[float], by_block: Blocks | None = None) -> Difference:
    """A difference between models that were trained separately.

    The noise is half of the 95 % interval over seeds and blocks of text, but at least ``NOISE_NATS``. For two seeds it
    is two standard errors over seeds, but at least ``NOISE_NATS``; for one seed it is ``LONE_SEED_NATS``. Both are
    good enough to choose a model, but prove nothing.

    Args:
        by_seed: Difference in nats per token for each seed.
        by_block: The same for each seed and block of text; None if the records have no blocks. Means over seeds,
            as in old records, are not used.
    """
    differences = tuple(by_seed)
    if len(differences) >= MIN_SEEDS:
        if by_block is None or len(by_block) != len(differences):
            by_block = [[each] for each in differences]
        half = half_width(by_block)
        return Difference(differences, max(NOISE_NATS, half), half)
    noise = LONE_SEED_NATS
    if len(differences) > 1:
        noise = max(NOISE_NATS, NUM_STANDARD_ERRORS * _standard_error(differences))
    return Difference(differences, noise, is_proof=False)


def within_a_model(by_seed: Iterable[float], by_block: Blocks | None = None) -> Difference:
    """A difference between two readings of one text by the same models.

    The noise is half of the 95 % interval over seeds and blocks. With fewer than ``MIN_SEEDS`` seeds it is two
    standard errors over the blocks, and the difference holds for these models only.

    Args:
        by_seed: Difference in nats per token for each seed.
        by_block: The same for each block, by seed or averaged over seeds; None if the records have no blocks. A single
            block says nothing about noise either, unless there are ``MIN_SEEDS`` seeds.
    """
    differences = tuple(by_seed)
    if by_block is None or (len(by_block[0]) < 2 and len(by_block) < MIN_SEEDS):
        error = BLOCK_ERROR_NATS + BLOCK_ERROR_SHARE * abs(statistics.fmean(differences))
        return Difference(differences, NUM_STANDARD_ERRORS * error)
    if len(by_block) >= MIN_SEEDS:
        half = half_width(by_block)
        return Difference(differences, half, half)
    means = [statistics.fmean(block) for block in zip(*by_block, strict=True)]
    return Difference(differences, NUM_STANDARD_ERRORS * _standard_error(means))


def block_differences(one: Blocks | None, other: Blocks | None) -> list[list[float]] | None:
    """Differences by seed and block; None if either has no blocks."""
    if one is None or other is None:
        return None
    return [[x - y for x, y in zip(*rows, strict=True)] for rows in zip(one, other, strict=True)]


def judge(signs: Iterable[int], claimed: int, *, each: bool = True) -> Verdict:
    """Verdict on a claim from detected signs; 0 (undetected) neither proves nor refutes.

    Args:
        signs: 1, -1 or 0 for each subject of the claim; without subjects the claim is not shown.
        claimed: The claimed sign, 1 or -1.
        each: Whether the claim is about every subject, rather than at least one.
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
    """The beta that a sweep chooses, and the betas that it cannot distinguish.

    Attributes:
        lowest: The beta of the lowest loss.
        level: The betas whose loss is not distinguishable from the lowest, including it, ascending.
    """

    lowest: float
    level: tuple[float, ...]

    @property
    def taken(self) -> float:
        """The level beta nearest to 1, the paper's value, on a log scale; ``lowest`` wins a tie."""
        return min(self.level, key=lambda beta: (round(abs(math.log(beta)), 12), beta != self.lowest))


def choose_beta(above_lowest: Mapping[float, Difference], lowest: float) -> BetaChoice:
    """Choose among betas, given the difference of each from the beta of the lowest loss."""
    level = sorted(beta for beta, difference in above_lowest.items() if beta == lowest or not difference.sign)
    return BetaChoice(lowest, tuple(level))


def choose_trial(trials: Sequence[Record]) -> tuple[Record, BetaChoice] | None:
    """The trial that a sweep chooses, and the choice among betas; None if no trial is complete.

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
    """Difference between two complete trials of one study."""
    by_seed = [trial["nats_per_token"] - lowest["nats_per_token"]]
    if trial["mode"] == "retrain":
        one, other = (
            dict(zip(record["seeds"], record["nats_per_token_by_seed"], strict=True)) for record in (trial, lowest)
        )
        return between_trainings([one[seed] - other[seed] for seed in one if seed in other] or by_seed)
    blocks = [record.get("nats_per_token_by_block") for record in (trial, lowest)]
    return within_a_model(by_seed, block_differences(*(None if row is None else [row] for row in blocks)))


def _standard_error(values: Sequence[float]) -> float:
    """Standard error of the mean; 0 for fewer than two values."""
    return statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else 0.0
