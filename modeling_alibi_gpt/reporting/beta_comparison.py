"""The sections of a report about comparisons whose variants differ in beta."""

from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure

from modeling_alibi_gpt.reporting.drawing import (
    ALIBI_COLOUR,
    GREY,
    SECOND_COLOUR,
    Line,
    as_png,
    log2_axis,
    name_lines,
    new_axes,
    perplexity_axis,
)
from modeling_alibi_gpt.reporting.findings import beta_curve, beta_findings, choose_of_curve, learned_variants
from modeling_alibi_gpt.reporting.grid import Grid
from modeling_alibi_gpt.reporting.page import Picture, Section
from modeling_alibi_gpt.reporting.records import Record
from modeling_alibi_gpt.reporting.tables import (
    BETA,
    NOTHING,
    Table,
    differences_table,
    format_count,
    format_perplexity,
    format_ratio,
    protocol_name,
    trained_beta_table,
    trained_slopes_table,
)


AFTER_TRAINING = "set after training"
KINDS = {
    "geometric": "geometric slopes are the paper's",
    "uniform": "uniform is one slope in every head",
    AFTER_TRAINING: f"{AFTER_TRAINING} is one trained model that is given another {BETA}",
}
COLOURS = {"geometric": ALIBI_COLOUR, "uniform": SECOND_COLOUR, AFTER_TRAINING: GREY}
# Around a point that lies in the same place they can still be seen.
RINGS: Any = {"linestyle": "none", "marker": "o", "markersize": 8, "fillstyle": "none"}


def beta_sections(grid: Grid, trained: Sequence[Record], figure: str) -> list[Section]:
    """Perplexity against beta, and what was learned where beta or the slopes were.

    Args:
        grid: Of the comparison.
        trained: Its ``trained_beta`` records.
        figure: Name of the figure's file, without suffix.
    """
    protocol = grid.main_protocol
    alt = f"Perplexity against {BETA}, {grid.corpus}"
    pictures = []
    if kinds := dict.fromkeys(kind for kind, _ in _beta_curves(grid, protocol)):
        pictures.append(Picture(f"{figure}.png", beta_comparison_figure(grid, protocol), alt))
    learned = [record for record in grid.as_trained if record["variant"] in learned_variants(grid)]
    tables = [beta_comparison_table(grid, protocol) for protocol in grid.protocols]
    tables += [differences_table(grid, learned)] if learned else []
    sentence = (
        f"A training for every {BETA}: {', '.join(KINDS[kind] for kind in kinds)}. The figure and the findings are of "
        f"{protocol_name(protocol)} windows; stars mark what is not told apart from the lowest of its column, the "
        f"tables are of {' and of '.join(map(protocol_name, grid.protocols))} windows."
    )
    sections = [Section(f"Perplexity against {BETA}, {grid.corpus}", sentence, pictures, tables, beta_findings(grid))]
    if trained:
        tables = [table for table in (trained_beta_table(trained), trained_slopes_table(trained)) if table]
        sentence = (
            "What each layer ended with where it was learned, and the perplexity on the validation text of training. "
            f"The {BETA} of layers starts at 1, slopes start at those of {BETA} 1."
        )
        sections.append(Section(f"Learned {BETA} and slopes, {grid.corpus}", sentence, tables=tables))
    return sections


def beta_comparison_table(grid: Grid, protocol: str) -> Table:
    """One row a beta; perplexity of each kind of slopes at each length; stars mark what is level with the lowest."""
    by_column = _beta_curves(grid, protocol)
    curves = list(by_column.values())
    betas = sorted({beta for curve in curves for beta in curve})
    rows = []
    for beta in betas:
        cells = [format_perplexity(curve[beta]["perplexity"]) if beta in curve else NOTHING for curve in curves]
        level = [beta in choose_of_curve(curve).level for curve in curves]
        rows.append([format_ratio(beta), *(f"{c} *" if star else c for c, star in zip(cells, level, strict=True))])
    return Table([BETA, *(f"{kind}, {format_count(length)}" for kind, length in by_column)], rows)


@as_png
def beta_comparison_figure(grid: Grid, protocol: str) -> Figure:
    """Perplexity against beta for each kind of slopes: a line at the shortest length, rings at the longest."""
    figure, axes = new_axes(4.4)
    curves = _beta_curves(grid, protocol)
    log2_axis(axes, [beta for curve in curves.values() for beta in curve], format_ratio)
    perplexity_axis(axes, [record["perplexity"] for curve in curves.values() for record in curve.values()])
    axes.set_xlabel(f"{BETA} (log scale)")
    lines = []
    for (kind, length), curve in curves.items():
        if length not in (grid.lengths[0], grid.lengths[-1]):
            continue
        name = f"{kind}, read at {format_count(length)} tokens"
        line = Line(name, kind, list(curve), [record["perplexity"] for record in curve.values()])
        style = {"marker": "o", "markersize": 3.5} if length == grid.lengths[0] else RINGS
        axes.plot(line.xs, line.ys, color=COLOURS[kind], **style)
        lines.append(line)
    name_lines(axes, lines)
    return figure


def _beta_curves(grid: Grid, protocol: str) -> dict[tuple[str, int], dict[float, Record]]:
    """By kind of slopes and length, those that were measured."""
    curves = {
        (AFTER_TRAINING if after else kind, length): beta_curve(grid, kind, protocol, length, after_training=after)
        for kind, after in (("geometric", False), ("uniform", False), ("geometric", True))
        for length in grid.lengths
    }
    return {key: curve for key, curve in curves.items() if len(curve) > 1}
