"""Recompute the section about beta and the training budget, without code of the report.

The ends of an interval are compared loosely, because they come from other random numbers here.
"""

import math
import random
import re

import numpy as np

from tests.support.recomputation import BETA, MINUS, Record, mean, of_kind, quantile_of_t, tokens


TITLE = f"The best {BETA} by training budget"
# With a normal distribution, the end of an interval has a standard error of 0.085 standard deviations with the 1,000
# resamples here and 0.06 with the report's 2,000, together 0.104. Ends may differ by 3.2 of these: 0.085 of the width.
NUM_RESAMPLES = 1000
SHARE_OF_WIDTH = 0.085
Losses = dict[float, dict[int, list[float]]]  # nats per block by beta and seed
ESTIMATE = re.compile(r"([\d.]+) \(([-\d.]+) to ([-\d.]+)\)")


def losses(series: str, budget_tokens: int) -> Losses:
    found: Losses = {}
    for row in of_kind("extrapolation"):
        if (row.get("series"), row.get("budget_tokens")) == (series, budget_tokens):
            beta = float(row["fields"].get("alibi_beta", 1.0))
            found.setdefault(beta, {})[row["seed"]] = row["nats_per_token_by_block"]
    return {beta: found[beta] for beta in sorted(found)}


def lowest(curve: dict[float, float]) -> tuple[float, float]:
    """Beta and loss at the lowest point of a parabola through the five points around the lowest loss."""
    betas = list(curve)
    place = betas.index(min(betas, key=lambda beta: curve[beta]))
    if place in (0, len(betas) - 1):
        return betas[place], curve[betas[place]]
    near = betas[max(0, place - 2) : place + 3]
    xs = [math.log(beta) for beta in near]
    (height, slope, bend), *_ = np.linalg.lstsq(
        np.array([[1.0, x, x * x] for x in xs]), np.array([curve[beta] for beta in near]), rcond=None
    )
    best = -slope / (2 * bend)
    if bend <= 0 or not math.log(betas[0]) <= best <= math.log(betas[-1]):
        return betas[place], curve[betas[place]]
    return math.exp(best), height + slope * best + bend * best * best


def best_and_worth(table: Losses) -> tuple[float, float]:
    curve = {beta: mean([mean(blocks) for blocks in seeds.values()]) for beta, seeds in table.items()}
    beta, loss = lowest(curve)
    return beta, curve[1.0] - loss


def ends_of_worth(table: Losses) -> tuple[float, float]:
    """Ends of the 95 % interval over blocks of text, shared by all betas, and over what a seed changes in one beta.

    The lower end is the worth minus what chance alone exceeds in 2.5 % of draws.
    """
    draw, betas, seeds = random.Random(1), list(table), list(table[1.0])
    num_blocks = len(table[1.0][seeds[0]])
    middle = {beta: [mean([table[beta][s][b] for s in seeds]) for b in range(num_blocks)] for beta in betas}
    of_seed = {
        (s, b): mean([table[beta][s][b] - middle[beta][b] for beta in betas]) for s in seeds for b in range(num_blocks)
    }
    scale = math.sqrt(len(seeds) / (len(seeds) - 1) * len(betas) / (len(betas) - 1))
    scale *= quantile_of_t((len(seeds) - 1) * (len(betas) - 1)) / 1.96
    left = [
        [scale * (table[beta][s][b] - middle[beta][b] - of_seed[s, b]) for b in range(num_blocks)]
        for beta in betas
        for s in seeds
    ]
    found, by_chance, mean_of = [], [], {beta: mean(middle[beta]) for beta in betas}
    for _ in range(NUM_RESAMPLES):
        blocks = draw.choices(range(num_blocks), k=num_blocks - 1)
        curve = {}
        for beta in betas:
            chosen = draw.choices(left, k=len(seeds))
            curve[beta] = mean([middle[beta][b] + mean([row[b] for row in chosen]) for b in blocks])
        found.append(curve[1.0] - lowest(curve)[1])
        noise = {beta: curve[beta] - mean_of[beta] for beta in betas}
        by_chance.append(noise[1.0] - lowest(noise)[1])
    high = round(0.975 * NUM_RESAMPLES)
    return best_and_worth(table)[1] - sorted(by_chance)[high], sorted(found)[high]


def digits(value: float) -> str:
    return f"{value:.3g}"


def check_budgets(rows: list[list[str]]) -> None:
    header, *body = rows
    if header[2] == f"{BETA} predicted":
        check_predictions(body)
        return
    for series, budget, beta, nats in body:
        table = losses(series, tokens(budget))
        best, worth = best_and_worth(table)
        assert len(table) == 8 and beta.startswith(f"{digits(best)} (")
        match = ESTIMATE.fullmatch(nats.replace(MINUS, "-"))
        assert match is not None and match[1] == f"{worth:.3f}"
        low, high = (float(printed) for printed in match.groups()[1:])
        for printed, end in zip((low, high), ends_of_worth(table), strict=True):
            assert abs(printed - end) <= SHARE_OF_WIDTH * (high - low)


def straight_line(xs: list[float], ys: list[float]) -> tuple[float, float]:
    """Slope and height of the line of least squares."""
    slope = sum((x - mean(xs)) * (y - mean(ys)) for x, y in zip(xs, ys, strict=True))
    slope /= sum((x - mean(xs)) ** 2 for x in xs)
    return slope, mean(ys) - slope * mean(xs)


def check_predictions(body: list[list[str]]) -> None:
    """A prediction is a power law through all smaller budgets, and older than any record of its own budget."""
    for series, budget, beta, beta_found, nats, worth_found, when in body:
        (told,) = (
            r for r in of_kind("prediction") if (r["comparison"], r["budget_tokens"]) == (series, tokens(budget))
        )
        smaller = told["from_budgets_tokens"]
        found = [best_and_worth(losses(series, each)) for each in smaller]
        xs = [math.log(each) for each in smaller]
        for printed, column, places in ((beta, 0, digits), (nats, 1, "{:.3f}".format)):
            slope, height = straight_line(xs, [math.log(each[column]) for each in found])
            assert printed.startswith(places(math.exp(height + slope * math.log(tokens(budget)))) + " (")
        assert when.startswith(told["provenance"]["time_utc"])
        later = [row["provenance"]["time_utc"] for row in of_budget(series, tokens(budget))]
        assert (beta_found == worth_found == "–") == (not later), "a dash where the budget was not evaluated"
        assert all(told["provenance"]["time_utc"] < each for each in later)


def of_budget(series: str, budget_tokens: int) -> list[Record]:
    return [
        row
        for row in of_kind("extrapolation")
        if (row.get("series"), row.get("budget_tokens")) == (series, budget_tokens)
    ]
