"""Shared style of all figures. matplotlib is imported inside the functions, because it is slow to import."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .files import writing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

DPI = 120
OURS, PEER, REFERENCE_LINE = "#c2255c", "#3b5b7a", "#777777"
GRAYS = ("#c9ced6", "#aab3be", "#8a95a1")
SERIES = (PEER, "#d9780f", "#2b8a3e", "#6741d9", "#1098ad", "#7a5c3b", "#868e96", "#a61e9d", "#5c940d")
"""Colors of series without an assigned color. `OURS` is not among them."""


@contextmanager
def literal_text() -> Iterator[None]:
    """Draw dollar signs literally. By default, matplotlib draws the text between two dollar signs as a formula.

    Use it both where text is added and where the figure is saved, because matplotlib creates some text only on saving.
    Also works as a decorator.
    """
    from matplotlib import rc_context

    with rc_context({"text.parse_math": False}):
        yield


def new_figure(width: float, height: float, rows: int = 1, columns: int = 1, **options: Any) -> "tuple[Figure, Any]":
    """Create an empty figure of this size in inches. Returns the figure and an array of its axes (rows, columns).

    `options` are passed to matplotlib's `Figure.subplots`.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, squeeze=False, **options)


def plot_style(axes: "Axes", x: str = "", y: str = "") -> None:
    """Apply the shared style: a light grid, no top or right border, the shared colors, and axis labels."""
    axes.grid(alpha=0.25)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_prop_cycle(color=SERIES)
    axes.tick_params(labelsize=9, labelbottom=True, labelleft=True)
    axes.set_xlabel(x)
    axes.set_ylabel(y)


def legend_beside(axes: "Axes") -> None:
    """Add a legend to the right of the plot."""
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False, fontsize=9)


def plain_ticks(axis: "Axis") -> None:
    """Label the ticks of a logarithmic axis with numbers such as 3,000, even if they span less than a factor of ten."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

    low, high = axis.get_view_interval()
    axis.set_major_locator(LogLocator(subs=(1, 2, 3, 5, 7)) if high > 4 * low else MaxNLocator(6))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axis.set_minor_locator(NullLocator())


@literal_text()
def save_png(figure: "Figure", path: Path) -> None:
    """Write the figure. Raises Failure if no space is left."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with writing(path):
        figure.savefig(path)
