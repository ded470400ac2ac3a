"""The figures draw the numbers of the records, on the axes that suit them."""

import math
from itertools import pairwise

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from modeling_alibi_gpt.report.bias_plots import bias_by_distance_figure, bias_figure
from modeling_alibi_gpt.report.drawing import _spread, new_axes, perplexity_axis
from modeling_alibi_gpt.report.lines import MAX_LINES, METHOD_COLORS, in_panels, method_lines
from modeling_alibi_gpt.report.plots import beta_figure, difference_figure, extrapolation_figure, position_figure
from tests.support.comparison_cases import comparison, grid_of, mixed
from tests.support.example_records import (
    CURVES,
    LENGTHS,
    beta_record,
    bias_by_distance_record,
    bias_record,
    extrapolation_record,
    trained_beta_record,
)


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for axes in figure.axes for text in axes.texts]


def tick_labels(axes: Axes) -> list[str]:
    return [axes.xaxis.get_major_formatter()(tick) for tick in axes.xaxis.get_majorticklocs()]


def curve(axes: Axes, color: str) -> list[tuple[float, float]]:
    """The points of the one curve of that color."""
    (line,) = [line for line in axes.lines if line.get_color() == color and line.get_linewidth() > 1]
    return [(float(x), float(y)) for x, y in line.get_xydata()]


def test_extrapolation_draws_each_model_in_each_protocol() -> None:
    protocols = ("nonoverlapping", "sliding")
    records = [extrapolation_record(name, protocol, n) for name in CURVES for protocol in protocols for n in LENGTHS]
    figure = extrapolation_figure.__wrapped__(records)
    assert len(figure.axes) == 2
    for axes, protocol in zip(figure.axes, protocols, strict=True):
        expected = [extrapolation_record("alibi", protocol, length)["perplexity"] for length in LENGTHS]
        assert curve(axes, METHOD_COLORS["alibi"]) == list(zip(LENGTHS, expected, strict=True))
        assert {line.get_xdata()[0] for line in axes.lines if line.get_linestyle() == "--"} == {128}
        assert tick_labels(axes) == ["128", "256", "512", "1,024", "2,048"]
    assert figure.axes[0].get_ylim() == figure.axes[1].get_ylim()
    reason = "Not drawn: learned at 256, 512, 1,024, 2,048: the learned table ends at 128 positions"
    assert figure._supxlabel.get_text().replace("\n", " ") == reason


def test_no_panel_has_more_than_six_lines_and_each_has_alibi() -> None:
    methods = list(METHOD_COLORS)
    lines = method_lines([(name, name, [1, 2], [0, place]) for place, name in enumerate(methods)])
    panels = in_panels(lines)
    assert [[line.name for line in panel] for panel in panels] == [["alibi", *methods[1:6]], ["alibi", *methods[6:]]]
    assert in_panels(lines[:MAX_LINES]) == [lines[:MAX_LINES]]
    assert [len(panel) for panel in in_panels(lines[1:])] == [5, 4]
    records = [
        extrapolation_record("alibi", "sliding", n) | {"name": name, "position_method": name}
        for name in methods
        for n in LENGTHS
    ]
    for axes in extrapolation_figure.__wrapped__(records).axes:
        assert len([line for line in axes.lines if line.get_marker() == "o"]) <= MAX_LINES
        assert curve(axes, METHOD_COLORS["alibi"])


def test_a_variant_has_one_style_whatever_else_a_figure_draws() -> None:
    def styles(*names: str) -> list[tuple[str, str, bool]]:
        curves = [(name, name.split()[0].split("-")[0].strip(","), [1], [1]) for name in (*names, "rope")]
        return [(line.dashes, line.marker, line.is_main) for line in method_lines(curves)[:-1]]

    plain, tuned, learned = styles("alibi", "alibi tuned", "alibi, learned beta")
    assert plain[2] and len({plain, tuned, learned}) == 3 and not tuned[2] and not learned[2]
    assert styles("alibi, learned beta", "alibi tuned") == styles("alibi,-learned-beta", "alibi-tuned")
    assert styles("alibi, learned beta", "alibi tuned") == [learned, tuned]
    other, *known = styles("alibi 2", "alibi tuned", "alibi")
    assert known == [tuned, plain] and other not in known


def test_only_one_of_several_curves_with_a_place_of_their_own_name_has_it() -> None:
    lines = method_lines([(name, "alibi", [1], [1]) for name in ("beta 2", "alibi", "beta 1", *["alibi"] * 6)])
    assert [line.is_main for line in lines] == [False, True, *[False] * 7]
    assert sorted(line.place for line in lines) == [*range(9)]
    assert len(in_panels(lines)) == 2


def test_differences_from_a_variant_leave_it_its_style() -> None:
    rope = {"position_method": "rope"}
    grid = grid_of(comparison({"alibi": {}, "alibi 2": {"alibi_beta": 2.0}, "rope": rope, "rope 2": rope}))
    (axes,) = difference_figure.__wrapped__(grid).axes
    drawn = {
        label: line.get_linestyle() for line in axes.lines if not (label := str(line.get_label())).startswith("_")
    }
    assert drawn == {"alibi 2": "--", "rope": "-", "rope 2": "--"}


def test_seeds_spread_around_their_mean() -> None:
    """Those of the made-up trainings lie 0.01 nats apart; differences from ALiBi of 3 seeds have their interval."""
    grid = grid_of(mixed())
    axes = extrapolation_figure.__wrapped__(grid.as_trained).axes[0]
    (band,) = [area for area in axes.collections if np.allclose(area.get_facecolor()[0, :3], rgb("alibi"))][:1]
    heights = band.get_paths()[0].vertices[:, 1]
    nats = grid.cell("alibi", "nonoverlapping", 128)["nats_per_token_by_seed"]
    assert math.log(heights.max()) == pytest.approx(max(nats)) and math.log(heights.min()) < max(nats) - 0.0199

    records = comparison({"alibi": {}, "rope": {"position_method": "rope"}})
    for record in records:
        if record["kind"] == "comparison" and record["variant"] == "rope":
            record["nats_per_token_by_seed"] = [value + 0.1 * n for n, value in enumerate((4.0, 4.0, 4.0))]
    grid = grid_of(records)
    (axes,) = difference_figure.__wrapped__(grid).axes
    difference = grid.difference("rope", "sliding", 128)
    assert difference is not None and difference.half_width == pytest.approx(0.09 * 4.303 / math.sqrt(3), rel=1e-4)
    low, high = difference.ends
    first = axes.collections[0].get_paths()[0].vertices
    assert {round(y, 6) for x, y in first if x == 128} == {round(low, 6), round(high, 6)}
    assert curve(axes, METHOD_COLORS["rope"])[0] == (128, difference.mean)


def rgb(method: str) -> tuple[float, float, float]:
    return to_rgb(METHOD_COLORS[method])


def test_position_draws_a_point_at_the_end_of_each_bin() -> None:
    record = extrapolation_record("alibi", "nonoverlapping", 512)
    record["nats_by_position"]["nats_per_token"][3] = None
    axes = position_figure.__wrapped__([record]).axes[0]
    drawn = curve(axes, METHOD_COLORS["alibi"])
    assert [x for x, _ in drawn] == [4, 16, 32, 64, 128, 256, 512]  # 4 is the first of 100 tokens
    nats = record["nats_by_position"]["nats_per_token"]
    assert [y for _, y in drawn] == [nats[2], *nats[4:]]


def test_beta_names_the_taken_and_the_trained() -> None:
    trials = [beta_record("retrain", n, beta) for n, beta in enumerate((2, 0.25, 0.5, 1))]
    trials.append(beta_record("retrain", 4, 1 / 16, "PRUNED"))
    figure = beta_figure.__wrapped__(trials, [trained_beta_record("beta", 0), trained_beta_record("slopes", 1)])
    taken = next(trial for trial in trials if trial["beta"] == 1)
    mean = np.mean(trained_beta_record("beta", 0)["beta_by_layer"])
    assert texts(figure) == [
        f"trained \u03b2 {mean:.3g} (layers 0.41 to 1.31)",
        f"\u03b2 = 1, perplexity {taken['perplexity']:.2f}; hollow: not told apart",
    ]
    axes = figure.axes[0]
    white = [line for line in axes.lines if line.get_markerfacecolor() == "white"]
    assert [list(line.get_xdata()) for line in white] == [[0.5, 1], [1]]
    points = next(line for line in axes.lines if line.get_alpha() == 0.3)
    assert len(points.get_xdata()) == 12  # three seeds of four complete trials
    assert list(points.get_ydata()[:3]) == [math.exp(nats) for nats in trials[1]["nats_per_token_by_seed"]]
    assert tick_labels(axes) == ["1/16", "1/8", "1/4", "1/2", "1", "2"]


def test_a_beta_that_is_told_apart_from_all_others_is_the_best() -> None:
    trials = [beta_record("posthoc", n, beta) for n, beta in enumerate((0.5, 1, 2))]
    assert texts(beta_figure.__wrapped__(trials, [])) == [
        f"best: \u03b2 = 1, perplexity {trials[1]['perplexity']:.2f}"
    ]


@pytest.mark.parametrize("num_heads", [1, 6, 12])
def test_bias_has_a_panel_for_each_head_on_one_scale(num_heads: int) -> None:
    record = bias_record(num_heads, 8)
    figure = bias_figure.__wrapped__(record)
    panels = [axes for axes in figure.axes if axes.images]
    assert [axes.get_title().splitlines()[0] for axes in panels] == [f"head {h + 1}" for h in range(num_heads)]
    assert len({axes.images[0].get_clim() for axes in panels}) == 1
    for axes, expected in zip(panels, record["bias"], strict=True):
        drawn = axes.images[0].get_array()
        future = np.triu(np.ones((8, 8), dtype=bool), k=1)
        assert np.array_equal(np.ma.getmaskarray(drawn), future)
        assert np.array_equal(-drawn[~future].data, np.array(expected, dtype=float)[~future])


@pytest.mark.parametrize(("num_layers", "num_heads"), [(1, 1), (2, 6), (3, 4)])
def test_bias_by_distance_has_a_line_for_each_layer_before_and_after(num_layers: int, num_heads: int) -> None:
    record = bias_by_distance_record("kerple", num_layers, num_heads)
    figure = bias_by_distance_figure.__wrapped__(record)
    panels = [axes for axes in figure.axes if axes.get_title()]
    assert [axes.get_title() for axes in panels] == [f"head {head + 1}" for head in range(num_heads)]
    for head, axes in enumerate(panels):
        *curves, training_length = axes.lines
        assert set(training_length.get_xdata()) == {128}
        assert len(curves) == 2 * num_layers
        for curve, layer in zip(curves, record["bias_before"] + record["bias_after"], strict=True):
            assert list(curve.get_xdata()) == record["distances_tokens"][1:]
            assert list(curve.get_ydata()) == [bias - layer[head][0] for bias in layer[head][1:]]


@pytest.mark.parametrize(("values", "scale"), [([50.0, 199.0], "linear"), ([50.0, 201.0], "log")])
def test_perplexity_axis_is_logarithmic_beyond_a_factor_of_four(values: list[float], scale: str) -> None:
    _, axes = new_axes()
    perplexity_axis(axes, values)
    assert axes.get_yscale() == scale


@pytest.mark.parametrize("heights", [[0.5], [0.1, 0.1, 0.1], [0.0, 0.97, 0.98, 0.99], [0.2, 0.5, 0.9], [0.95] * 4])
def test_names_keep_their_order_and_their_distance(heights: list[float]) -> None:
    spread = _spread(heights, 0.06)
    assert all(high - low >= 0.06 - 1e-12 for low, high in pairwise(spread))
    assert max(spread) <= 1
    if all(high - low >= 0.06 for low, high in pairwise(heights)):
        assert spread == heights
