"""Beta against the training budget: the best beta of each budget, its worth, and a power-law prediction of both.

The best beta is the minimum of a parabola in log beta, fitted to the losses around the lowest one. Its worth is the
loss at beta 1, the paper's value, minus the loss at that minimum. Intervals come from a bootstrap that resamples
blocks of text, the same for all betas, and independently of them the effects of seeds (the pigeonhole bootstrap: Owen
2007, Annals of Applied Statistics 1(2), doi:10.1214/07-AOAS122). Two or three seeds are too few to estimate the spread
of a single beta. The effect that a seed has on all betas alike moves neither number, so it is removed; the rest is
resampled from the pooled residuals of all betas, which are assumed independent and of equal variance (Efron and
Tibshirani 1993, An Introduction to the Bootstrap, chapter 9), and stretched to the quantiles of Student's t.

The lowest of several losses is lower than most of them by chance, so a worth above 0 is expected even where no beta
is better than another. The lower end of its interval is therefore the measured worth minus what chance alone exceeds
in 2.5 % of resamples of equal losses (the reality check: White 2000, Econometrica 68(5),
doi:10.1111/1468-0262.00152).

Blocks are consecutive parts of one text and not independent of each other, so an interval is about more of such text.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from modeling_alibi_gpt.report.comparison import Comparison
from modeling_alibi_gpt.report.frames import frame_of
from modeling_alibi_gpt.report.intervals import t_quantile
from modeling_alibi_gpt.runtime.records import Record, provenance


NUM_RESAMPLES = 2000
INTERVAL_PERCENT = (2.5, 97.5)
NUM_NEIGHBOURS = 2  # points on each side of the lowest loss that the parabola is fitted to
MIN_BUDGETS = 3  # to fit a power law
Numbers = NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """A value and the ends of its 95 % interval."""

    value: float
    ends: tuple[float, float]


@dataclass(frozen=True)
class Budget:
    """The losses after one training budget.

    Attributes:
        tokens: Number of training tokens.
        betas: ``(V,)``, ascending, including 1.
        nats: ``(V, S, B)``, nats per token by beta, seed and block of text.
    """

    tokens: int
    betas: Numbers
    nats: Numbers

    @property
    def is_bracketed(self) -> bool:
        """Whether the best beta is inside the range that was tried."""
        return fit_minimum(self.betas, self.nats.mean(axis=(1, 2)))[2]


@dataclass(frozen=True)
class Best:
    """The best beta of a budget, and its worth in nats per token."""

    beta: Estimate
    worth: Estimate


def fit_minimum(betas: ArrayLike, nats: ArrayLike) -> tuple[float, float, bool]:
    """Minimum of the loss over beta, from a parabola in log beta fitted around the lowest loss.

    Args:
        betas: ``(V,)``, at least 3, ascending.
        nats: ``(V,)``, nats per token.

    Returns:
        log2 of the best beta, the nats there, and True. If the lowest loss is at the end of the range that was tried,
        or the parabola has no minimum inside it: log2 of the beta of the lowest loss, that loss, and False.
    """
    xs, ys = np.log2(np.asarray(betas, dtype=float)), np.asarray(nats, dtype=float)
    lowest = int(ys.argmin())
    outside = float(xs[lowest]), float(ys[lowest]), False
    if lowest in (0, len(xs) - 1):
        return outside
    near = slice(max(0, lowest - NUM_NEIGHBOURS), lowest + NUM_NEIGHBOURS + 1)
    curvature, slope, height = np.polyfit(xs[near] - xs[lowest], ys[near], 2)
    if curvature <= 0 or not xs[0] <= (best := xs[lowest] - slope / (2 * curvature)) <= xs[-1]:
        return outside
    return float(best), float(height - slope**2 / (4 * curvature)), True


def best_of(budget: Budget) -> Best:
    """The best beta of a budget and its worth, with intervals."""
    found, by_chance = _resampled(budget)
    log_betas, worth = found.T
    low = worth[0] - np.percentile(by_chance, INTERVAL_PERCENT[1])
    return Best(_estimate(2.0**log_betas), Estimate(float(worth[0]), (float(low), _estimate(worth).ends[1])))


def trend(budgets: Sequence[Budget]) -> Best | None:
    """The factors by which the best beta and its worth change with twice the tokens, by power laws.

    None unless at least ``MIN_BUDGETS`` budgets have their best beta inside the range tried and a positive worth.
    """
    used = _usable(budgets)
    if len(used) < MIN_BUDGETS:
        return None
    exponents, _ = _power_laws(used)
    return Best(*(_estimate(2.0**each) for each in exponents.T))


def predict(budgets: Sequence[Budget], tokens: int) -> Best | None:
    """Extrapolate power laws through the best betas and their worth to a budget of ``tokens``.

    None unless at least ``MIN_BUDGETS`` budgets have their best beta inside the range tried and a positive worth. The
    interval comes from the same fit to resampled seeds and blocks; it does not cover a wrong choice of power law.
    """
    used = _usable(budgets)
    if len(used) < MIN_BUDGETS:
        return None
    exponents, heights = _power_laws(used)
    return Best(*(_estimate(2.0**each) for each in (exponents * np.log2(tokens) + heights).T))


def predict_budget(records: Sequence[Record], budget_tokens: int) -> Record | None:
    """The ``prediction`` record of a budget from all smaller budgets, or None if there are too few of them.

    Args:
        records: Records of one series of comparisons.
        budget_tokens: The budget to predict, in tokens.

    Raises:
        ValueError: A budget of that size or larger has already been evaluated.
    """
    cells = [record for record in records if record["kind"] == "comparison"]
    read = sorted({cell["budget_tokens"] for cell in cells})
    if read and read[-1] >= budget_tokens:
        raise ValueError(
            f"a budget of {budget_tokens:,} tokens cannot be predicted: one of {read[-1]:,} was already evaluated"
        )
    budgets = beta_budgets(frame_of(cells)) if cells else []
    prediction = predict(budgets, budget_tokens)
    if prediction is None:
        return None
    return {
        "kind": "prediction",
        "comparison": cells[0]["series"],
        "budget_tokens": budget_tokens,
        "from_budgets_tokens": [budget.tokens for budget in _usable(budgets)],
        "beta": prediction.beta.value,
        "beta_ends": list(prediction.beta.ends),
        "worth_nats": prediction.worth.value,
        "worth_ends_nats": list(prediction.worth.ends),
        "provenance": provenance(data_fingerprint=cells[0]["provenance"]["data_fingerprint"]),
    }


def beta_budgets(cells: pd.DataFrame) -> list[Budget]:
    """The budgets of one series in ascending order, for geometric slopes.

    The losses are those at the training length or, if it was not evaluated, at the shortest length. Budgets without
    beta 1, or with fewer than three betas, are left out.
    """
    budgets = []
    for tokens, frame in cells.groupby("budget_tokens"):
        grid = Comparison(frame)
        curve = grid.curve("geometric", grid.train_length or grid.lengths[0])
        if len(curve) >= 3 and 1.0 in curve:
            nats = np.array([_by_seed_and_block(row) for row in curve.values()])
            budgets.append(Budget(int(tokens), np.array(list(curve)), nats))
    return budgets


def _usable(budgets: Sequence[Budget]) -> list[Budget]:
    """The budgets that a power law can be fitted to: the best beta is bracketed and better than 1.

    Leaving out the others makes the worth of the rest too large where most budgets have none.
    """
    return [budget for budget in budgets if budget.is_bracketed and best_of(budget).worth.value > 0]


def _power_laws(budgets: Sequence[Budget]) -> tuple[Numbers, Numbers]:
    """Least squares of the logarithms, as measured and for every resample.

    Returns:
        The exponents and log2 of the factors, each ``(R + 1, 2)``: of the best beta and of its worth.
    """
    draws = np.stack([_resampled(budget)[0] for budget in budgets])  # (budgets, resamples, 2)
    # A resample in which tuning is worth nothing has no logarithm, so clip it to a small positive worth.
    logs = np.stack([draws[..., 0], np.log2(draws[..., 1].clip(min=1e-6))], axis=-1)
    xs = np.log2([budget.tokens for budget in budgets])
    exponents, heights = np.polyfit(xs, logs.reshape(len(budgets), -1), 1).reshape(2, -1, 2)
    return exponents, heights


def _by_seed_and_block(row: Record) -> list[list[float]]:
    """Losses by seed and block. A row without blocks counts as one block, so intervals lack the spread over blocks."""
    return row.get("nats_per_token_by_seed_and_block") or [[nats] for nats in row["nats_per_token_by_seed"]]


def _resampled(budget: Budget) -> tuple[Numbers, Numbers]:
    """The best beta and its worth in resamples, and the worth by chance where all losses are equal.

    Budgets of one series share seeds and text, so they use the same random draws. With one seed, only the spread over
    blocks is sampled.

    Returns:
        ``(R + 1, 2)``, log2 of the best beta and its worth, first as measured, then for every resample; and ``(R,)``,
        the worth of each resample without what was measured.
    """
    num_betas, num_seeds, num_blocks = budget.nats.shape
    means = budget.nats.mean(axis=1)  # (V, B)
    residuals = budget.nats - means[:, None]
    residuals -= residuals.mean(axis=0)
    # Subtracting the two means has removed part of the spread.
    residuals *= np.sqrt(num_seeds / max(1, num_seeds - 1) * num_betas / (num_betas - 1))
    # Few residuals: stretch the quantiles of a normal distribution to those of Student's t.
    residuals *= t_quantile(max(1, num_seeds - 1) * (num_betas - 1)) / t_quantile(1e6)
    residuals = residuals.reshape(-1, num_blocks)
    draws = np.random.default_rng(0)
    equal = np.full(len(residuals), 1 / len(residuals))
    chosen = draws.multinomial(num_seeds, equal, size=(NUM_RESAMPLES + 1, num_betas)) / num_seeds
    chosen[0] = 0  # as measured
    blocks = _shares(draws, num_blocks)
    drawn = np.einsum("rvk,kb,rb->rv", chosen, residuals, blocks, optimize=True)
    losses = blocks @ means.T + drawn
    at_one = int(np.flatnonzero(budget.betas == 1.0)[0])
    fits = [fit_minimum(budget.betas, nats)[:2] for nats in losses]
    found = np.array([(best, nats[at_one] - lowest) for (best, lowest), nats in zip(fits, losses, strict=True)])
    noise = losses[1:] - losses[0]
    return found, np.array([nats[at_one] - fit_minimum(budget.betas, nats)[1] for nats in noise])


def _shares(draws: np.random.Generator, size: int) -> Numbers:
    """``(R + 1, size)``: equal weights, then the weights of R resamples of ``size - 1`` draws with replacement.

    Drawing ``size - 1`` corrects the variance of the bootstrap, which is otherwise too small by ``(size - 1) / size``.
    """
    num_drawn = max(1, size - 1)
    equal = np.full(size, 1 / size)
    return np.vstack([equal, draws.multinomial(num_drawn, equal, size=NUM_RESAMPLES) / num_drawn])


def _estimate(values: Numbers) -> Estimate:
    """The first value, with the percentile interval of the others."""
    low, high = np.percentile(values[1:], INTERVAL_PERCENT)
    return Estimate(float(values[0]), (float(low), float(high)))
