"""The figures of a benchmark: accuracy against speed, and latency against resolution."""

from collections import defaultdict
from collections.abc import Callable
from itertools import cycle, product
from math import ceil
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.patheffects import withStroke
from matplotlib.text import Annotation, Text
from matplotlib.transforms import Bbox

from ..console import visible
from ..errors import counted
from ..figures import OURS, PEER, SERIES, literal_text, new_figure, plain_ticks, plot_style, save_png
from ..model.architecture import TIMM_PREFIX
from .report import mark
from .run import Result, Row

FONT_SIZE = 8.5
PANEL = (7.2, 4.8)
"""Width and height in inches."""

DIRECTIONS = ((1, 0), (-1, 0), (0, 1), (0, -1), (0.8, 0.7), (-0.8, 0.7), (0.8, -0.7), (-0.8, -0.7))
DISTANCES = (7, 12, 18, 26, 36, 48, 62)
"""Candidate positions of a label relative to its data point: directions, and distances in units of 1/72 inch."""


class Point(NamedTuple):
    """The data point of a model, in the units of the axes."""

    x: float
    y: float
    name: str
    color: str


@literal_text()
def draw_result(result: Result, path: Path) -> bool:
    """Write a PNG with one panel for each combination of engine, precision and batch size.

    If a model ran at several sizes, the panels show latency against resolution; otherwise, accuracy against speed.
    Returns False, without writing a file, if there is nothing to draw.
    """
    sizes = {(row.case.model, row.case.image_size) for row in result.rows}
    if len(sizes) > len({model for model, _ in sizes}):
        title, rows, draw_panel = "Latency against resolution", list(result.rows), _latency
    else:
        title, rows, draw_panel = "Top-1 against speed", [row for row in result.rows if row.top1], _scatter
    panels: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        panels[f"{row.case.engine} {row.case.precision}, batch {row.case.batch_size}"].append(row)
    if not panels:
        return False
    columns = min(2, len(panels))
    lines = ceil(len(panels) / columns)
    figure, grid = new_figure(PANEL[0] * columns, PANEL[1] * lines, lines, columns, sharex=True, sharey=True)
    grid = list(grid.flat)
    put_names = [draw_panel(axes, *panel) for axes, panel in zip(grid, panels.items(), strict=False)]
    for axes in grid[len(panels) :]:
        axes.remove()
    hardware, threads = result.about["hardware"], result.request.threads
    said = counted(threads, "thread") if threads else "each engine's default threads"
    figure.suptitle(f"{title} · {hardware.get('gpu', hardware['processor'])}, {said}", fontsize=11)
    figure.draw_without_rendering()  # the space for labels depends on the final layout
    for put in put_names:
        put()
    save_png(figure, path)
    return True


def _scatter(axes: Axes, title: str, rows: list[Row]) -> Callable[[], None]:
    points = []
    for row in rows:
        assert row.top1
        name, ours = _name(row)
        name += mark(row.top1)
        points.append(Point(row.images_per_second, row.top1.percent, name, OURS if ours else PEER))
    ours = sorted((point.x, point.y) for point in points if point.color == OURS)
    if ours:
        axes.plot(*zip(*ours, strict=True), color=OURS, linewidth=1.2, alpha=0.5)
    for x, y, _, color in points:
        axes.plot(x, y, "o", color=color, markersize=8 if color == OURS else 6)
    axes.set_title(title, fontsize=10)
    plot_style(axes, "images/s", "top-1, %: published on ImageNet-1K († distilled), or from the file (‡)")
    axes.set_xscale("log")
    axes.margins(0.12)
    plain_ticks(axes.xaxis)
    return lambda: _name_around(axes, points)


def _latency(axes: Axes, title: str, rows: list[Row]) -> Callable[[], None]:
    series: dict[tuple[str, bool], list[tuple[int, float]]] = defaultdict(list)
    for row in rows:
        series[_name(row)].append((row.case.image_size, 1e3 / row.images_per_second))
    ends, peer_colors = [], cycle(SERIES)
    for (name, ours), values in series.items():
        sides, milliseconds = zip(*sorted(values), strict=True)
        color, width = (OURS, 2.2) if ours else (next(peer_colors), 1.2)
        axes.plot(sides, milliseconds, "o-", markersize=4, color=color, linewidth=width)
        ends.append(Point(sides[-1], milliseconds[-1], name, color))
    axes.set_title(title, fontsize=10)
    plot_style(axes, "image size, pixels", "ms/image")
    axes.set_yscale("log")
    plain_ticks(axes.yaxis)
    shown = sorted({row.case.image_size for row in rows})
    span = shown[-1] - shown[0] or 1
    axes.set_xticks(shown)
    axes.set_xlim(shown[0] - 0.05 * span, shown[-1] + 0.4 * span)  # space for the labels at the line ends
    return lambda: _name_beside(axes, ends)


def _name_around(axes: Axes, points: list[Point]) -> None:
    """Label each point, as close to it as possible without covering another label, a point or the border."""
    renderer: Any = axes.figure.canvas.get_renderer()  # pyright: ignore[reportAttributeAccessIssue]
    centers = (axes.transData.transform((point.x, point.y)) for point in points)
    taken = [Bbox.from_extents(x - 6, y - 6, x + 6, y + 6) for x, y in centers]
    for point in sorted(points, key=lambda point: point.color != OURS):
        label = _annotate(axes, point)
        for distance, (right, up) in product(DISTANCES, DIRECTIONS):
            label.set_position((right * distance, up * distance))
            label.set_horizontalalignment("left" if right > 0 else "right" if right < 0 else "center")
            label.set_verticalalignment("center" if right else "bottom" if up > 0 else "top")
            label.update_positions(renderer)
            box = Text.get_window_extent(label, renderer)
            inside = axes.bbox.contains(box.x0, box.y0) and axes.bbox.contains(box.x1, box.y1)
            if inside and not any(box.overlaps(other) for other in taken):
                taken.append(box)
                break


def _name_beside(axes: Axes, ends: list[Point]) -> None:
    """Label each line, in a column to the right of the line ends."""
    pixels_a_point = axes.figure.dpi / 72  # pyright: ignore[reportAttributeAccessIssue]
    gap = 1.5 * FONT_SIZE
    free = float("inf")
    for end in sorted(ends, key=lambda end: -end.y):
        height = axes.transData.transform((end.x, end.y))[1] / pixels_a_point
        free = min(height, free - gap)
        label = _annotate(axes, end, (0, 0.5))
        label.set_position((12, free - height))
        label.set_verticalalignment("center")


def _annotate(axes: Axes, point: Point, line_from: tuple[float, float] = (0.5, 0.5)) -> Annotation:
    return axes.annotate(
        visible(point.name),
        (point.x, point.y),
        (0, 0),
        textcoords="offset points",
        fontsize=FONT_SIZE,
        color=point.color,
        fontweight="bold" if point.color == OURS else "normal",
        path_effects=[withStroke(linewidth=2.5, foreground="white")],
        arrowprops={"arrowstyle": "-", "linewidth": 0.5, "color": "#999999", "relpos": line_from},
    )


def _name(row: Row) -> tuple[str, bool]:
    """The label of a point, and whether it is highlighted. SHViT and the user's own models are highlighted."""
    model = row.case.model
    return Path(model.removeprefix(TIMM_PREFIX)).name, not model.startswith(TIMM_PREFIX)
