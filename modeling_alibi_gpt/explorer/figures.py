"""Figures of the explorer, in the style of the report; each function returns a drawing."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from torch import Tensor

from modeling_alibi_gpt.explorer.probes import NextToken
from modeling_alibi_gpt.report.drawing import as_drawing, new_axes
from modeling_alibi_gpt.report.lines import ALIBI_COLOR, GREY, SECOND_COLOR


LEAST_WEIGHT = 1e-6
WEIGHT_COLORS = "viridis"  # large weights are visible on light and dark backgrounds


@as_drawing
def attention_figure(with_bias: Tensor, without_bias: Tensor, num_tokens: int) -> Figure:
    """Two heat maps of pooled attention ``(N, N)`` over a text of ``num_tokens``."""
    figure = Figure(figsize=(6.4, 2.9))
    both = figure.subplots(1, 2, sharey=True)
    norm = LogNorm(LEAST_WEIGHT, 1.0)
    for axes, weights, title in zip(
        both, (with_bias, without_bias), ("with the bias", "without the bias"), strict=True
    ):
        drawn = np.ma.masked_where(np.triu(np.ones(weights.shape, bool), 1), weights.clamp(min=LEAST_WEIGHT).numpy())
        image = axes.imshow(
            drawn, norm=norm, cmap=WEIGHT_COLORS, interpolation="nearest", extent=(0, num_tokens, num_tokens, 0)
        )
        axes.set(title=title, xlabel="key, tokens")
        axes.grid(False)
    both[0].set_ylabel("query, tokens")
    figure.colorbar(image, ax=both, label="attention weight", shrink=0.85, format="{x:g}")
    return figure


@as_drawing
def loss_figure(curves: Mapping[str, Sequence[tuple[int, int, float]]], train_lengths: Mapping[str, int]) -> Figure:
    """Loss of models by position, with a vertical line at each training length."""
    figure, axes = new_axes(3.4)
    for (name, bins), color, style in zip(curves.items(), (ALIBI_COLOR, SECOND_COLOR), ("-", "--"), strict=False):
        edges = [start + 1 for start, _, _ in bins] + [bins[-1][1]]
        axes.stairs([nats for _, _, nats in bins], edges, baseline=None, color=color, ls=style, lw=2.5, label=name)
    for length in sorted(set(train_lengths.values())):
        axes.axvline(length, color=GREY, lw=1, ls=":", label=f"training length, {length:,} tokens")
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.set(xlabel="tokens read before the prediction", ylabel="nats per token")
    axes.legend()
    return figure


@as_drawing
def next_token_figure(tokens: Sequence[NextToken], own_beta: float, beta: float) -> Figure:
    """Bar chart of next-token probabilities with the model's own beta and with another."""
    figure, axes = new_axes(0.36 * len(tokens) + 1.2)
    places = np.arange(len(tokens))
    axes.barh(places - 0.2, [t.changed_probability for t in tokens], 0.4, color=ALIBI_COLOR, label=f"β = {beta:.4g}")
    axes.barh(places + 0.2, [t.probability for t in tokens], 0.4, color=GREY, label=f"β = {own_beta:.4g}, the model's")
    axes.set_yticks(places, [repr(token.text) for token in tokens])
    axes.invert_yaxis()
    axes.set(xlabel="probability")
    axes.legend(loc="lower right")  # the bars are shortest there
    return figure
