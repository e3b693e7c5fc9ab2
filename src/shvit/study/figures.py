"""Draw the figures of the studies. Each function returns a finished figure."""

from collections.abc import Mapping, Sequence
from itertools import cycle
from math import ceil

import numpy as np
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from .. import figures as style
from ..console import visible
from .head_study import AttentionMaps

KIND_COLORS = ("#3b5b7a", "#1098ad", "#e8590c", "#f2a65a", "#f6c453", "#c2255c", "#d8a7c0", "#c9ced6")
"""Colors of `breakdown.KINDS`, in the same order: cool for compute-bound, warm for memory-bound, gray for overhead."""


@style.literal_text()
def bars(groups: Sequence[str], series: Mapping[str, Sequence[float | None]], label: str, line: float | None) -> Figure:
    """Draw groups of horizontal bars, each bar labelled with its value. The paper's series are gray.

    Each series has one value per group. `label` describes the x axis. `line` is the position of a reference line.
    """
    height = 0.8 / len(series)
    figure, [[axes]] = style.new_figure(8.2, 1.3 + len(groups) * (0.2 + 0.24 * len(series)))
    style.plot_style(axes, label)
    colors, grays = cycle(style.SERIES), cycle(style.GRAYS)
    for number, (name, values) in enumerate(series.items()):
        color = next(grays if name.startswith("paper") else colors)
        positions = [index + (number - (len(series) - 1) / 2) * height for index in range(len(groups))]
        axes.barh(positions, [value or 0.0 for value in values], 0.9 * height, color=color, label=visible(name))
        for position, value in zip(positions, values, strict=True):
            axes.text(value or 0.0, position, f" {value:.2f}" if value else " –", va="center", fontsize=8)
    if line is not None:
        axes.axvline(line, color=style.REFERENCE_LINE, linewidth=0.8, linestyle=":")
    axes.set_yticks(range(len(groups)), [visible(name) for name in groups])
    axes.invert_yaxis()
    axes.margins(x=0.1)
    style.legend_beside(axes)
    return figure


@style.literal_text()
def stacks(rows: Sequence[str], parts: Mapping[str, Sequence[float]], label: str, percent: bool = False) -> Figure:
    """Draw one stacked horizontal bar per row. With `percent`, values (0 to 1) are shown in % with KIND_COLORS."""
    figure, [[axes]] = style.new_figure(9.2, 1.4 + 0.42 * len(rows))
    style.plot_style(axes, label)
    left = np.zeros(len(rows))
    longest = 1 if percent else max(map(sum, zip(*parts.values(), strict=True)))
    for color, (name, values) in zip(KIND_COLORS if percent else cycle(style.SERIES), parts.items(), strict=False):
        lengths = np.asarray(values)
        if not lengths.any():
            continue
        axes.barh(rows, lengths, 0.72, left=left, color=color, label=visible(name))
        for index, length in enumerate(lengths):
            if length > 0.055 * longest:
                text = f"{length:.0%}" if percent else f"{length:.2g}"
                ink = "white" if sum(to_rgb(color)) < 1.9 else "#1a1a1a"  # black would follow a dark page
                axes.text(left[index] + length / 2, index, text, ha="center", va="center", color=ink, fontsize=8)
        left += lengths
    axes.invert_yaxis()
    if percent:
        axes.xaxis.set_major_formatter(PercentFormatter(1.0))
        axes.set_xlim(0, 1)
    style.legend_beside(axes)
    return figure


@style.literal_text()
def points(series: Mapping[str, Sequence[tuple[float, float, str]]], x: str, y: str) -> Figure:
    """Draw labelled points (x, y, label), with a line through each series. The x axis is logarithmic."""
    figure, [[axes]] = style.new_figure(8.2, 5.0)
    style.plot_style(axes, x, y)
    for color, (name, values) in zip(cycle((style.OURS, *style.SERIES)), series.items(), strict=False):
        xs, ys, _ = zip(*values, strict=True)
        axes.plot(xs, ys, "o-", color=color, label=visible(name), markersize=6, linewidth=1.2)
        for across, up, text in values:
            axes.annotate(text, (across, up), (6, 4), textcoords="offset points", fontsize=8.5, color=color)
    axes.set_xscale("log")
    axes.margins(0.14)
    style.plain_ticks(axes.xaxis)
    style.legend_beside(axes)
    return figure


@style.literal_text()
def lines(series: Mapping[str, Sequence[tuple[float, float]]], x: str, y: str, log: bool = False) -> Figure:
    """Draw one line per series. The paper's series are gray. `log` makes the y axis logarithmic."""
    figure, [[axes]] = style.new_figure(8.2, 4.2)
    style.plot_style(axes, x, y)
    colors = cycle((style.OURS, *style.SERIES))
    for name, values in series.items():
        paper = name.startswith("paper")
        axes.plot(
            *zip(*values, strict=True),
            "s--" if paper else "o-",
            color="#9aa3ad" if paper else next(colors),
            label=visible(name),
            markersize=5,
            linewidth=1.6,
        )
    if log:
        axes.set_yscale("log")
        style.plain_ticks(axes.yaxis)
    axes.set_xticks(sorted({across for values in series.values() for across, _ in values}))
    style.legend_beside(axes)
    return figure


@style.literal_text()
def attention_over_images(shown: AttentionMaps) -> Figure:
    """Draw one row per image: the image with its query point, then each attention map over a gray copy of the image."""
    rows, columns = len(shown.images), len(shown.columns) + 1
    figure, grid = style.new_figure(1.9 * columns, 2.0 * rows + 0.5, rows, columns)
    for line, image, (x, y), maps in zip(grid, shown.images, shown.queries, shown.maps, strict=True):
        whole = line[0].imshow(image).get_extent()
        for axes, one in zip(line[1:], maps, strict=True):
            axes.imshow(image.mean(2), cmap="gray", vmin=0, vmax=255)
            axes.imshow(one, cmap="magma", alpha=0.7, extent=whole, interpolation="nearest")
        for axes in line:
            axes.plot(x, y, "s", color="#2ee6a6", markersize=7, markeredgecolor="black", markeredgewidth=0.8)
            axes.set_axis_off()
    for axes, title in zip(grid[0], ("image and query", *shown.columns), strict=True):
        axes.set_title(title, fontsize=10.5)
    return figure


@style.literal_text()
def heads(layers: Sequence[str], scores: Mapping[str, Sequence[Sequence[float]]], whole: float) -> Figure:
    """Draw top-1 with heads of one layer off: a panel per ablation, a dot per head. Each layer's best head is colored.

    `scores` holds the top-1 of each head, by ablation and layer. `whole` is the top-1 with all heads.
    """
    columns = len(scores)
    width = max(4.4, 0.36 * len(layers) + 1.6)
    figure, [grid] = style.new_figure(min(14.0, width * columns), 3.8 * ceil(columns / 2), 1, columns, sharey=True)
    for axes, (ablation, tops) in zip(grid, scores.items(), strict=True):
        style.plot_style(axes, "layer", "top-1, %")
        axes.grid(visible=False, axis="x")
        axes.axhline(100 * whole, color=style.REFERENCE_LINE, linewidth=0.8, linestyle=":")
        for index, values in enumerate(tops, 1):
            if values:
                axes.plot([index] * len(values), [100 * value for value in values], "o", color="#9fb3c8", markersize=4)
                axes.plot(index, 100 * max(values), "o", color=style.OURS, markersize=6)
        axes.set_title(ablation, fontsize=10)
        axes.set_xticks(range(1, len(layers) + 1))
        axes.tick_params(labelsize=8)
    return figure
