"""What a person sees of a run: progress while it goes on, curves afterwards. Only this file of `train` formats."""

import contextlib
import json
import time
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
)

from ..console import BESIDE, say, takes_all
from ..files import writing
from .budget import Choice
from .remaining import TimeLeft

if TYPE_CHECKING:
    from .loop import Trainer


LINE_SECONDS = 60.0
"""From one line about an epoch in progress to the next, where no terminal shows a bar."""


class Tracker(Protocol):
    """Keeps what it is told for people to look at elsewhere."""

    def begin(self, trainer: "Trainer") -> None: ...

    def step(self, trainer: "Trainer", images_per_second: float, waited: float) -> None: ...

    def epoch(self, trainer: "Trainer", row: dict[str, Any]) -> None: ...


class Reporter:
    """Prints a bar while a terminal watches, a line each minute where none does, and one for each epoch everywhere.

    Args:
        console: Where to; None for silence.
    """

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(quiet=True)
        takes_all(self.console.file)
        self.trackers: list[Tracker] = []
        self._progress: Progress | None = None
        self._bar: Any = None
        self._said = 0.0
        self._left: TimeLeft | None = None

    @contextlib.contextmanager
    def training(self, trainer: "Trainer") -> Iterator[None]:
        """Announces the run, shows its progress, and says at its end what matters."""
        self._announce(trainer)
        for tracker in self.trackers:
            tracker.begin(trainer)
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[speed]:.0f} images/s · data wait {task.fields[waited]:.0%}"),
            TextColumn("· loss {task.fields[loss]:.3f} ·"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}"),
        )
        recipe, steps = trainer.recipe, len(trainer.train_loader)
        forwards = len(trainer.source.val) / recipe.batch_size  # a step costs three of so many images
        self._left = TimeLeft(recipe.epochs, steps, recipe.eval_every, forwards / 3)
        with Progress(
            *columns, console=self.console, disable=not self.console.is_terminal, transient=True
        ) as self._progress:
            self._said = time.monotonic()
            values = {"completed": trainer.steps_done, "speed": 0.0, "waited": 0.0, "loss": 0.0, "left": ""}
            self._bar = self._progress.add_task("", total=recipe.epochs * steps, **values)
            yield

    def step(self, trainer: "Trainer", images_per_second: float, waited: float) -> None:
        """After each step; `waited` is the share of this epoch's time that went by waiting for data."""
        loss, left = trainer.mean_loss, ""
        if self._left is not None:
            self._left.step()
            left = self._time_left(trainer) if self._left.measured else ""
        if self._progress is not None:
            self._progress.update(
                self._bar,
                completed=trainer.steps_done,
                description=f"epoch {trainer.epoch + 1}/{trainer.recipe.epochs}",
                speed=images_per_second,
                waited=waited,
                loss=loss,
                left=left,
            )
        if not self.console.is_terminal and time.monotonic() - self._said > LINE_SECONDS:
            self._said = time.monotonic()
            steps = len(trainer.train_loader)
            say(
                self.console,
                f"epoch {trainer.epoch + 1}/{trainer.recipe.epochs}, step {trainer.step}/{steps} · loss {loss:.3f} · "
                f"{images_per_second:.0f} images/s · data wait {waited:.0%}" + (left and f" · {left}"),
            )
        for tracker in self.trackers:
            tracker.step(trainer, images_per_second, waited)

    def epoch(self, trainer: "Trainer", row: dict[str, Any]) -> None:
        headline = trainer.task.headline
        names = {f"model_{headline}": headline, f"ema_{headline}": f"{headline} of averaged weights"}
        names |= {key: key for key in BESIDE.get(headline, ())}
        scores = [f"{name} {row[key]:.2%}" for key, name in names.items() if key in row]
        if self._left is not None:
            self._left.end(row["epoch"])
        facts = [
            f"epoch {row['epoch']}/{trainer.recipe.epochs}",
            f"loss {row['train_loss']:.3f}",
            *scores,
            f"{row['images_per_second']:.0f} images/s",
            f"data wait {row['data_wait']:.0%}",
            f"{_duration(row['seconds'])}, {self._time_left(trainer)}",
            *([f"{len(trainer.bad)} bad images"] if trainer.bad else []),
        ]
        say(self.console, " · ".join(facts))
        for tracker in self.trackers:
            tracker.epoch(trainer, row)

    def _time_left(self, trainer: "Trainer") -> str:
        """Of the run from here, at the end of an epoch or after a step."""
        return f"{_duration(self._left.seconds(trainer.epoch, trainer.step))} left" if self._left else ""

    def warn(self, message: str) -> None:
        say(self.console, message, style="yellow")

    def finished(self, trainer: "Trainer") -> None:
        """Instead of training, where a run that is resumed has nothing left to do."""
        epochs = trainer.recipe.epochs
        say(
            self.console,
            f"nothing to resume: the run in {trainer.out} is finished, all of its {epochs} epochs are done",
        )

    def fitted(self, choices: Sequence[Choice], images: int, epochs: int) -> None:
        """What is not as published, by reason."""
        if not choices:
            return
        about = f"{images:,} images x {epochs} epochs"
        say(self.console, f"fitted to {about}; published values in parentheses; a flag sets a value:")
        for reason, group in groupby(choices, lambda choice: choice.reason):
            shown = (f"{each.field.replace('_', ' ')} {_value(each.used)} ({_value(each.published)})" for each in group)
            say(self.console, f"  {', '.join(shown)}: {reason}")

    def _announce(self, trainer: "Trainer") -> None:
        recipe, source = trainer.recipe, trainer.source
        recipe_of = f"recipe {recipe.name}" + (f", taught by {recipe.teacher}" if recipe.teacher else "")
        where = f"{trainer.device}" + (f" by {trainer.world.size} processes" if trainer.world.size > 1 else "")
        compiled = "compiled (the first step takes minutes)" if trainer.compiled else "not compiled"
        say(
            self.console,
            f"{len(source.train)} training and {len(source.val)} validation images of {len(source.classes)} classes"
            + (f"; {len(trainer.bad)} bad ones found so far, see bad_images.csv" if trainer.bad else ""),
        )
        say(
            self.console,
            f"{trainer.start.architecture.name} at {trainer.start.preprocess.image_size} pixels on {where}, "
            f"{trainer.precision}, channels_last, {compiled}; {recipe_of}: {recipe.epochs} epochs, batch "
            f"{recipe.batch_size}, effective rate {recipe.effective_rate:.2g}, weight decay {recipe.weight_decay:g}",
        )


def read_metrics(out: Path) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl, the last of each epoch; a line that a crash cut short is passed over."""
    rows: dict[int, dict[str, Any]] = {}
    for line in (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
        with contextlib.suppress(json.JSONDecodeError):
            row = json.loads(line)
            rows[row["epoch"]] = row
    return list(rows.values())


def draw_curves(out: Path, headline: str) -> None:
    """curves.png: loss and headline metric against epochs."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    rows = read_metrics(out)
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    loss_axis, metric_axis = figure.subplots(1, 2)
    _curve(loss_axis, rows, "train_loss", "training (augmented)")
    _curve(loss_axis, rows, "loss", "validation")
    loss_axis.set_ylabel("loss")
    _curve(metric_axis, rows, f"model_{headline}", "weights")
    _curve(metric_axis, rows, f"ema_{headline}", "averaged weights")
    metric_axis.set_ylabel(f"validation {headline}")
    metric_axis.yaxis.set_major_formatter(PercentFormatter(1.0))
    for axis in (loss_axis, metric_axis):
        axis.set_xlabel("epoch")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
        if axis.get_legend_handles_labels()[0]:
            axis.legend(frameon=False)
    with writing(out / "curves.png"):
        figure.savefig(out / "curves.png", dpi=120)


def _curve(axis: Any, rows: list[dict[str, Any]], key: str, label: str) -> None:
    points = [(row["epoch"], row[key]) for row in rows if key in row]
    if points:
        axis.plot(*zip(*points, strict=True), marker="o", markersize=3, label=label)


def _value(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02}m" if hours else f"{minutes}m{rest:02}s"
