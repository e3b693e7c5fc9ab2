"""The studies' figures. Each function gives a figure that is ready to be saved."""

from collections.abc import Mapping, Sequence
from itertools import cycle
from math import ceil

import numpy as np
from jaxtyping import Float, UInt8
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator, PercentFormatter, ScalarFormatter

from ..console import literal_text, visible

OURS, PEER, PAPER = "#c2255c", "#3b5b7a", "#c9ced6"
SERIES = ("#3b5b7a", "#d9780f", "#2b8a3e", "#6741d9", "#1098ad", "#7a5c3b", "#868e96", "#a61e9d", "#5c940d")
KIND_COLORS = ("#3b5b7a", "#1098ad", "#e8590c", "#f2a65a", "#f6c453", "#c2255c", "#d8a7c0", "#c9ced6")
"""Of kinds of operations: blue for arithmetic, warm for what is bound by memory."""


@literal_text()
def bars(groups: Sequence[str], series: Mapping[str, Sequence[float | None]], axis: str, line: float | None) -> Figure:
    """For each group a bar of each series, with its number; those of the paper are grey.

    Args:
        groups: From top to bottom.
        series: Values by name, a value for each group.
        axis: What the values are.
        line: Where a reference stands.
    """
    height = 0.8 / len(series)
    figure, axes = _figure(8.2, 1.3 + len(groups) * (0.2 + 0.24 * len(series)))
    colors = cycle(SERIES)
    for number, (name, values) in enumerate(series.items()):
        color = PAPER if name.startswith("paper") else next(colors)
        places = [index + (number - (len(series) - 1) / 2) * height for index in range(len(groups))]
        axes.barh(places, [value or 0.0 for value in values], 0.9 * height, color=color, label=visible(name))
        for place, value in zip(places, values, strict=True):
            axes.text(value or 0.0, place, f" {value:.2f}" if value else " –", va="center", fontsize=8)
    if line is not None:
        axes.axvline(line, color="#777777", linewidth=0.8, linestyle=":")
    axes.set_yticks(range(len(groups)), [visible(name) for name in groups])
    axes.invert_yaxis()
    axes.set_xlabel(axis)
    axes.margins(x=0.1)
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False, fontsize=9)
    return figure


@literal_text()
def stacks(rows: Sequence[str], parts: Mapping[str, Sequence[float]], axis: str, percent: bool = False) -> Figure:
    """A bar of several parts for each row, the rows from top to bottom."""
    figure, axes = _figure(9.2, 1.4 + 0.42 * len(rows))
    left = np.zeros(len(rows))
    colors = KIND_COLORS if percent else cycle(SERIES)
    for color, (name, values) in zip(colors, parts.items(), strict=False):
        lengths = np.asarray(values)
        if not lengths.any():
            continue
        axes.barh(rows, lengths, 0.72, left=left, color=color, label=visible(name))
        for index, length in enumerate(lengths):
            if length > 0.055 * (1 if percent else max(sum(v[i] for v in parts.values()) for i in range(len(rows)))):
                text = f"{length:.0%}" if percent else f"{length:.2g}"
                axes.text(left[index] + length / 2, index, text, ha="center", va="center", color="white", fontsize=8)
        left += lengths
    axes.invert_yaxis()
    axes.set_xlabel(axis)
    if percent:
        axes.xaxis.set_major_formatter(PercentFormatter(1.0))
        axes.set_xlim(0, 1)
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False, fontsize=9)
    return figure


@literal_text()
def points(series: Mapping[str, Sequence[tuple[float, float, str]]], x: str, y: str) -> Figure:
    """Lines through points (x, y, name) with their names; the x axis is logarithmic."""
    figure, axes = _figure(8.2, 5.0)
    for color, (name, found) in zip(cycle((OURS, *SERIES)), series.items(), strict=False):
        xs, ys, _ = zip(*found, strict=True)
        axes.plot(
            xs, ys, "o-" if len(series) > 1 else "o", color=color, label=visible(name), markersize=6, linewidth=1.2
        )
        for across, up, text in found:
            axes.annotate(text, (across, up), (6, 4), textcoords="offset points", fontsize=8.5, color=color)
    axes.set_xscale("log")
    _plain(axes, x=True)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.margins(0.14)
    if len(series) > 1:
        axes.legend(frameon=False, fontsize=9)
    return figure


@literal_text()
def lines(series: Mapping[str, Sequence[tuple[float, float]]], x: str, y: str, log: bool = False) -> Figure:
    """A line for each series; those of the paper are grey."""
    figure, axes = _figure(8.2, 4.2)
    colors = cycle((OURS, *SERIES))
    for name, found in series.items():
        paper = name.startswith("paper")
        axes.plot(
            *zip(*found, strict=True),
            "s--" if paper else "o-",
            color="#9aa3ad" if paper else next(colors),
            label=visible(name),
            markersize=5,
            linewidth=1.6,
        )
    if log:
        axes.set_yscale("log")
        _plain(axes, x=False)
    axes.set_xticks(sorted({across for found in series.values() for across, _ in found}))
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False, fontsize=9)
    return figure


@literal_text()
def attention_over_images(
    images: Sequence[UInt8[np.ndarray, "h w 3"]],
    queries: Sequence[tuple[int, int]],
    columns: Sequence[str],
    maps: Sequence[Sequence[Float[np.ndarray, "h w"]]],
) -> Figure:
    """A row for each image: with its query marked, then each map over it.

    Args:
        images: Of pixels.
        queries: The pixel (x, y) whose attention is shown, of each image.
        columns: What the maps of each column are.
        maps: Of each image one for each column; at the pixels' size, NaN where the query cannot look.
    """
    figure = Figure(figsize=(1.9 * (len(columns) + 1), 2.0 * len(images) + 0.5), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(len(images), len(columns) + 1, squeeze=False)
    for line, image, (x, y), row in zip(grid, images, queries, maps, strict=True):
        line[0].imshow(image)
        for axes, found in zip(line[1:], row, strict=True):
            axes.imshow(image.mean(2), cmap="gray", vmin=0, vmax=255)
            axes.imshow(found, cmap="magma", alpha=0.7)
        for axes in line:
            axes.plot(x, y, "s", color="#2ee6a6", markersize=7, markeredgecolor="black", markeredgewidth=0.8)
            axes.set_axis_off()
    for axes, title in zip(grid[0], ("image and query", *columns), strict=True):
        axes.set_title(title, fontsize=10.5)
    return figure


@literal_text()
def heads(layers: Sequence[str], scores: Mapping[str, Sequence[Sequence[float]]], whole: float) -> Figure:
    """Top-1 with heads of one layer switched off, a panel for each way: every head's a dot, the best one filled.

    Args:
        layers: Names.
        scores: By way, of each layer the score of each head.
        whole: With all heads.
    """
    columns = len(scores)
    width = max(4.4, 0.36 * len(layers) + 1.6)
    figure = Figure(figsize=(min(14.0, width * columns), 3.8 * ceil(columns / 2)), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (way, found) in zip(
        figure.subplots(1, columns, sharey=True, squeeze=False)[0], scores.items(), strict=True
    ):
        axes.axhline(100 * whole, color="#777777", linewidth=0.8, linestyle=":")
        for place, values in enumerate(found, 1):
            if values:
                axes.plot([place] * len(values), [100 * value for value in values], "o", color="#9fb3c8", markersize=4)
                axes.plot(place, 100 * max(values), "o", color=OURS, markersize=6)
        axes.set_title(way, fontsize=10)
        axes.set_xlabel("layer")
        axes.set_xticks(range(1, len(layers) + 1))
        axes.tick_params(labelsize=8, labelleft=True)
        axes.grid(alpha=0.25, axis="y")
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_ylabel("top-1, %")
    return figure


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.grid(alpha=0.25)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=9)
    return figure, axes


def _plain(axes: Axes, x: bool) -> None:
    """Numbers in digits on a logarithmic axis."""
    axis = axes.xaxis if x else axes.yaxis
    low, high = axis.get_view_interval()
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(ScalarFormatter())
    ticks = [base * 10**power for power in range(-4, 7) for base in (1, 2, 3, 5)]
    axis.set_ticks([tick for tick in ticks if low <= tick <= high], [f"{t:,g}" for t in ticks if low <= t <= high])
