"""The section on beta against the training budget: one figure and one table for all series of comparisons."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from modeling_alibi_gpt.report.beta_budgets import Best, Budget, Estimate, best_of, beta_budgets, trend
from modeling_alibi_gpt.report.drawing import WIDTH_INCHES, as_drawing, draw_lines, log2_axis, name_below
from modeling_alibi_gpt.report.formats import BETA, MISSING_CELL, format_count, format_ratio, with_minus
from modeling_alibi_gpt.report.frames import pick, rows_of
from modeling_alibi_gpt.report.lines import ALIBI_COLOR, VARIANT_COLORS, Line
from modeling_alibi_gpt.report.page import Picture, Section, make_section
from modeling_alibi_gpt.report.tables import Table
from modeling_alibi_gpt.runtime.records import Record


BESIDE = 1.06  # a prediction is drawn to the right of the value that was found
APART = 1.14  # and one series to the right of another


@dataclass(frozen=True)
class Series:
    """One training setup at several budgets.

    Attributes:
        name: Name of the series.
        budgets, best: In ascending order of tokens.
        predictions: ``prediction`` records by tokens.
        num_parameters: Parameters of the largest model.
        num_seeds: Number of seeds.
    """

    name: str
    budgets: list[Budget]
    best: list[Best]
    predictions: dict[int, Record]
    num_parameters: int
    num_seeds: int

    @property
    def trend(self) -> Best | None:
        """The factors by which the best beta and its worth change with twice the tokens; None with too few budgets."""
        return trend(self.budgets)

    def __iter__(self) -> Iterator[tuple[Budget, Best]]:
        return iter(zip(self.budgets, self.best, strict=True))


def series_of(name: str, by_kind: Mapping[str, pd.DataFrame]) -> Series | None:
    """The budgets of a series with this name; None if it varies no beta."""
    budgets = beta_budgets(pick(by_kind["comparison"], series=name))
    if not budgets:
        return None
    told = pick(by_kind["prediction"], comparison=name) if "prediction" in by_kind else pd.DataFrame()
    predictions = {row["budget_tokens"]: row for row in rows_of(told)}
    training = pick(by_kind["training"], series=name)
    sizes = {"num_parameters": int(training["num_parameters"].max()), "num_seeds": training["seed"].nunique()}
    return Series(name, budgets, [best_of(budget) for budget in budgets], predictions, **sizes)


def budget_section(by_kind: Mapping[str, pd.DataFrame]) -> tuple[list[Section], list[str]]:
    """The section, if any series varies beta, and the names of the comparisons of which it shows every cell."""
    series, covered = [], []
    for name, cells in by_kind["comparison"].groupby("series", sort=False):
        one = series_of(str(name), by_kind)
        if one is not None:
            num_shown = {budget.tokens: len(budget.betas) for budget in one.budgets}
            for (comparison, tokens), of_budget in cells.groupby(["comparison", "budget_tokens"], sort=False):
                covered += [comparison] if len(of_budget) == num_shown.get(tokens) else []
            series.append(one)
    if not series:
        return [], []
    alt = f"The best {BETA} and what it is worth, against tokens of training"
    pictures = [Picture("beta_budgets.png", budget_figure(series), alt)]
    tables = [budget_table(series), *_prediction_tables(series)]
    return [make_section("budgets.j2", "budgets", pictures=pictures, tables=tables, series=series)], covered


def budget_table(series: Sequence[Series]) -> Table:
    """One row per series and budget: the best beta and its worth, with intervals."""
    rows = [
        [one.name, format_count(budget.tokens), _beta(best.beta, budget), _worth(best.worth)]
        for one in series
        for budget, best in one
    ]
    return Table(["training", "tokens", f"best {BETA}", f"nats above it at {BETA} 1"], rows)


def _prediction_tables(series: Sequence[Series]) -> list[Table]:
    """Predicted and measured values; a dash for a budget that has not been evaluated yet."""
    rows = []
    for one in series:
        found = {budget.tokens: (_beta(best.beta, budget), _worth(best.worth)) for budget, best in one}
        for tokens, row in sorted(one.predictions.items()):
            beta, worth = found.get(tokens, (MISSING_CELL, MISSING_CELL))
            told = _range(row["beta"], row["beta_ends"], 3), _nats(row["worth_nats"], row["worth_ends_nats"])
            source = row["provenance"]
            when = f"{source.get('time_utc')}, {str(source.get('git_commit'))[:12]}"
            rows.append([one.name, format_count(tokens), told[0], beta, told[1], worth, when])
    header = ["training", "tokens", f"{BETA} predicted", "found", "nats predicted", "found", "predicted at, commit"]
    return [Table(header, rows)] if rows else []


@as_drawing
def budget_figure(series: Sequence[Series]) -> Figure:
    """The best beta (top, log scale) and its worth (bottom) against tokens.

    White diamonds, to the right of what was found, are predictions.
    """
    figure = Figure(figsize=(WIDTH_INCHES, 6.0))
    above, below = figure.subplots(2, sharex=True)
    tokens = [t for one in series for t in [*(budget.tokens for budget in one.budgets), *one.predictions]]
    colors, labels = [ALIBI_COLOR, *VARIANT_COLORS], _labels(series)
    predicted = {"beta": ("beta", "beta_ends"), "worth": ("worth_nats", "worth_ends_nats")}
    for axes, (name, (value, ends)) in zip((above, below), predicted.items(), strict=True):
        lines = []
        for number, (color, one) in enumerate(zip(colors, series, strict=False)):
            shift = APART**number
            told = [(t * shift * BESIDE, Estimate(row[value], row[ends])) for t, row in one.predictions.items()]
            _bars(axes, told, color=color, marker="D", markersize=7, mfc="white", zorder=3)
            found = [(budget.tokens * shift, getattr(best, name)) for budget, best in one]
            _bars(axes, found, color=color, marker="o", markersize=5)
            xs, ys = [tokens / 1e6 for tokens, _ in found], [each.value for _, each in found]
            lines.append(Line(labels[number], color, xs, ys))
        log2_axis(axes, [each / 1e6 for each in tokens], lambda tick: f"{tick:g}")
        if name == "worth":
            axes.axhline(0, color="black", linewidth=0.8, linestyle=":")
        draw_lines(axes, lines, markers=False)
    above.set(yscale="log", ylabel=f"best {BETA} (log scale)")
    _beta_ticks(above)
    below.set(xlabel="million tokens of training (log scale)", ylabel=f"nats gained over {BETA} = 1")
    if len(series) > 1:
        name_below(below, lines)  # predictions stand where curves end
    return figure


def _labels(series: Sequence[Series]) -> list[str]:
    """The sizes of the models, or names where these do not differ."""
    sizes = [f"{one.num_parameters / 1e6:.1f} M parameters" for one in series]
    return sizes if len({*sizes}) == len(sizes) else [one.name for one in series]


def _bars(axes: Axes, points: Sequence[tuple[float, Estimate]], **style: Any) -> None:
    """Points with their intervals."""
    for tokens, each in points:
        ends = [[max(0.0, each.value - each.ends[0])], [max(0.0, each.ends[1] - each.value)]]
        axes.errorbar([tokens / 1e6], [each.value], yerr=ends, linestyle="none", **style)


def _beta_ticks(axes: Axes) -> None:
    axes.yaxis.set(major_locator=FixedLocator([2.0**n for n in range(-3, 9)]), minor_locator=NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda tick, _: format_ratio(tick)))


def _beta(best: Estimate, budget: Budget) -> str:
    if not budget.is_bracketed:
        return f"{format_ratio(best.value, 3)}, at the end of those tried"
    return _range(best.value, best.ends, 3)


def _worth(worth: Estimate) -> str:
    return _nats(worth.value, worth.ends)


def _range(value: float, ends: Sequence[float], num_digits: int) -> str:
    low, high = (format_ratio(end, num_digits) for end in ends)
    return f"{format_ratio(value, num_digits)} ({low} to {high})"


def _nats(value: float, ends: Sequence[float]) -> str:
    return with_minus(f"{value:.3f} ({ends[0]:.3f} to {ends[1]:.3f})")
