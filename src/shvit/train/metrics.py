"""Writes metrics.jsonl, with one line per epoch, and curves.png."""

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..console import LOSSES, METRICS
from ..figures import new_figure, plot_style, save_png
from ..files import replacing, writing
from .recipe import with_current_names


def append_row(out: Path, row: dict[str, Any], metric: str | None) -> None:
    """Add a line to metrics.jsonl and, with `metric`, redraw curves.png."""
    path = out / "metrics.jsonl"
    with writing(path), path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")
    if metric:
        draw_curves(out, metric)


def read_metrics(out: Path) -> list[dict[str, Any]]:
    """The last row of each epoch in metrics.jsonl. Skips a line that a crash cut short."""
    rows: dict[int, dict[str, Any]] = {}
    for line in (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
        with suppress(json.JSONDecodeError):
            row = with_current_names(json.loads(line))
            rows[row["epoch"]] = row
    return list(rows.values())


def remove_rows_after(out: Path, epoch: int) -> None:
    """Remove the rows of epochs after `epoch`. These epochs have no checkpoint, so a resumed run repeats them."""
    path = out / "metrics.jsonl"
    if path.exists():
        rows = [row for row in read_metrics(out) if row["epoch"] <= epoch]
        with replacing(path) as temporary:
            temporary.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def draw_curves(out: Path, metric: str) -> None:
    """Draw curves.png: the losses, and the metric that decides which epoch is the best, by epoch."""
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    rows = read_metrics(out)
    figure, [[loss_axis, metric_axis]] = new_figure(9, 3.6, 1, 2)
    plot_style(loss_axis, "epoch", "loss")
    plot_style(metric_axis, "epoch", f"validation {METRICS.get(metric, metric)}")
    for axis, key, label in (
        (loss_axis, "train_loss", "training (augmented)"),
        (loss_axis, "loss", "validation"),
        (metric_axis, f"model_{metric}", "weights"),
        (metric_axis, f"ema_{metric}", "EMA weights"),
    ):
        if points := [(row["epoch"], row[key]) for row in rows if key in row]:
            axis.plot(*zip(*points, strict=True), marker="o", markersize=3, label=label)
    if metric not in LOSSES:
        metric_axis.yaxis.set_major_formatter(PercentFormatter(1.0))
    for axis in (loss_axis, metric_axis):
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        if axis.get_legend_handles_labels()[0]:
            axis.legend(frameon=False)
    save_png(figure, out / "curves.png")
