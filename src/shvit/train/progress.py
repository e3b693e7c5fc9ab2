"""Progress of a training run, and the reporter that prints it."""

import contextlib
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from rich import progress as bars
from rich.console import Console

from ..confidence import Calibration
from ..console import BESIDE, METRICS, metric_text, say, takes_all
from ..errors import counted
from .budget import Choice
from .remaining import TimeLeft

LINE_SECONDS = 60.0
"""Seconds between two progress lines if the output is not a terminal."""
LONG_SECONDS = 2 * 3600.0
"""Estimated time of a run from which on the reporter names faster settings."""
CURVE_STEPS = 20
"""Steps between two points of a TensorBoard curve."""


@dataclass(frozen=True)
class Progress:
    """Position in a run. Loss, throughput and data wait are averages over the current epoch."""

    epoch: int
    """Completed epochs."""
    step: int
    """Completed steps of the current epoch."""
    epochs: int
    """Epochs of the whole run."""
    steps: int
    """Steps per epoch."""
    loss: float
    lr: float
    """The current learning rate."""
    bad_images: int
    """Number of unusable images found so far."""
    images_per_second: float = 0.0
    data_wait: float = 0.0
    """Fraction of the time spent waiting for data."""

    @property
    def steps_done(self) -> int:
        """Completed steps of the whole run."""
        return self.epoch * self.steps + self.step


@dataclass(frozen=True)
class TrainResult:
    """How a run ended."""

    out: Path
    epochs: int
    """Completed epochs, including those before the run was resumed."""
    best: dict[str, Any]
    """Metrics of best.safetensors. Empty before the first evaluation. `test` has the metrics on the test images."""
    stopped_by: signal.Signals | None
    """The signal that stopped the run: SIGINT (Ctrl-C) or SIGTERM. None if the run was not stopped."""
    seconds: float
    images_per_second: float
    """Training throughput over all processes since the run was started or resumed. Includes waiting for data."""
    selected_by: str
    """Key of `best`: the metric that decides which epoch is the best."""
    stopped_early: bool = False
    """Whether the run ended before its last epoch because of `Recipe.patience`."""
    trained: bool = False
    """Whether a stopped run was stopped after its last epoch."""
    calibration: Calibration | None = None
    """The temperature of best.safetensors. None for detectors, and if the run is not finished."""
    choices: tuple[Choice, ...] = ()
    """Settings that were adapted to the dataset or the number of epochs."""

    @property
    def interrupted(self) -> bool:
        """Whether a signal stopped the run. If so, the run can be resumed."""
        return self.stopped_by is not None

    def to_dict(self) -> dict[str, Any]:
        """The result as a dictionary for JSON, without the folder."""
        return {
            **self.best,
            "selected_by": self.selected_by,
            "test": self.best.get("test"),
            "calibration": self.calibration and self.calibration.to_dict(),
            "epochs": self.epochs,
            "stopped_early": self.stopped_early,
            "interrupted": self.interrupted,
            "stopped_by": self.stopped_by and self.stopped_by.name,
            "seconds": self.seconds,
            "images_per_second": self.images_per_second,
            "choices": [asdict(choice) for choice in self.choices],
        }


class Reporter:
    """Prints a line per epoch. On terminals, also shows a progress bar; elsewhere, also prints a line per minute.

    Without a console, the reporter prints nothing.
    """

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(quiet=True)
        takes_all(self.console.file)
        self.curves: Path | None = None
        """Folder for TensorBoard curves. None: do not write curves."""
        self._curves: Any = None
        self._bar: bars.Progress | None = None
        self._last_line = 0.0
        self._left: TimeLeft | None = None
        self._faster: Sequence[str] = ()
        self.estimated_seconds: float | None = None
        """Estimated duration of the run, from its first measured steps. None before they are measured."""

    @contextlib.contextmanager
    def training(
        self, plan: Sequence[str], progress: Progress, left: TimeLeft, faster: Sequence[str] = ()
    ) -> Iterator[None]:
        """Print the plan of the run, and show its progress while the context is open.

        The estimated time follows after the first measured steps, and `faster` (settings that would need less time) if
        it is long.
        """
        for line in plan:
            say(self.console, line)
        self._left, self._faster, self._curves = left, faster, None
        columns = (
            bars.TextColumn("{task.description}"),
            bars.BarColumn(),
            bars.TextColumn("{task.fields[speed]:.0f} images/s · data wait {task.fields[data_wait]:.0%}"),
            bars.TextColumn("· loss {task.fields[loss]:.3f} ·"),
            bars.TimeElapsedColumn(),
            bars.TextColumn("{task.fields[left]}"),
        )
        hidden = not self.console.is_terminal
        with contextlib.ExitStack() as stack:
            if self.curves is not None:
                from torch.utils.tensorboard.writer import SummaryWriter

                # hides the points of steps that a resumed run repeats
                self._curves = stack.enter_context(SummaryWriter(self.curves, purge_step=progress.steps_done + 1))
            self._bar = stack.enter_context(
                bars.Progress(*columns, console=self.console, disable=hidden, transient=True)
            )
            self._last_line = time.monotonic()
            values = {"completed": progress.steps_done, "speed": 0.0, "data_wait": 0.0, "loss": 0.0, "left": ""}
            self._bar.add_task("", total=progress.epochs * progress.steps, **values)
            yield

    def step(self, progress: Progress) -> None:
        """Called after each step."""
        left = ""
        if self._left is not None:
            self._left.step()
            left = self._time_left(progress)
            self._estimate(progress)
        epoch = f"epoch {progress.epoch + 1}/{progress.epochs}"
        speed, data_wait = progress.images_per_second, progress.data_wait
        if self._bar is not None:
            values = {"speed": speed, "data_wait": data_wait, "loss": progress.loss, "left": left}
            self._bar.update(self._bar.task_ids[0], completed=progress.steps_done, description=epoch, **values)
        if not self.console.is_terminal and time.monotonic() - self._last_line > LINE_SECONDS:
            self._last_line = time.monotonic()
            say(
                self.console,
                f"{epoch}, step {progress.step}/{progress.steps} · loss {progress.loss:.3f} · "
                f"{speed:.0f} images/s · data wait {data_wait:.0%}" + (left and f" · {left}"),
            )
        if progress.step % CURVE_STEPS == 0:
            keys = "loss", "lr", "images_per_second", "data_wait"
            self._add_points("step", {key: getattr(progress, key) for key in keys}, progress)

    def epoch(self, progress: Progress, row: dict[str, Any], *metrics: str) -> None:
        """Called after each epoch. `row` is the epoch's line of metrics.jsonl, with each of `metrics` for all weights.

        The last of `metrics` is the one by which models are compared.
        """
        names = {f"{of}_{key}": key for key in metrics for of in ("model", "ema")}
        names |= {key: key for key in BESIDE.get(metrics[-1], ())[:1] if key not in metrics}
        weights = {f"ema_{key}": " of the EMA weights" for key in metrics}
        if self._left is not None:
            self._left.end(row["epoch"])
            self._estimate(progress)
        parts = [
            f"epoch {row['epoch']}/{progress.epochs}",
            f"training loss {row['train_loss']:.3f}",
            *(metric_text(name, row[key], weights.get(key, "")) for key, name in names.items() if key in row),
            f"{row['images_per_second']:.0f} images/s",
            f"data wait {row['data_wait']:.0%}",
            ", ".join(filter(None, [_duration(row["seconds"]), self._time_left(progress)])),
            *([counted(progress.bad_images, "bad image")] if progress.bad_images else []),
        ]
        say(self.console, " · ".join(parts))
        self._add_points("epoch", {key: value for key, value in row.items() if key != "epoch"}, progress)

    def _add_points(self, group: str, values: Mapping[str, Any], progress: Progress) -> None:
        """Add a point to the TensorBoard curve of each number."""
        if self._curves is not None:
            for key, value in values.items():
                if isinstance(value, int | float):
                    self._curves.add_scalar(f"{group}/{key}", value, progress.steps_done)
            self._curves.flush()

    def _time_left(self, progress: Progress) -> str:
        if self._left is None or not self._left.measured:
            return ""
        return f"{_duration(self._left.seconds(progress.epoch, progress.step))} left"

    def _estimate(self, progress: Progress) -> None:
        """Print the estimated time of the run, once enough steps are measured. For a long run, also what is faster."""
        left = self._left
        if self.estimated_seconds is not None or left is None or not left.enough:
            return
        self.estimated_seconds = left.total(progress.epoch, progress.step)
        compilation = f", compilation {_duration(left.compile_seconds)}" if left.compile_seconds else ""
        text = f"  estimated time {_duration(self.estimated_seconds)}: {left.step_seconds:.2g} s per step{compilation}"
        say(self.console, text)
        if self.estimated_seconds > LONG_SECONDS and self._faster:
            say(self.console, f"  faster: {'; '.join(self._faster)}")

    def warn(self, message: str) -> None:
        """Print a warning."""
        say(self.console, message, style="yellow")

    def finished(self, out: Path, epoch: int, epochs: int) -> None:
        """Called if a resumed run is already complete."""
        say(self.console, f"nothing to resume: the run in {out} is complete ({epoch} of {epochs} epochs)")

    def stopped_early(self, metric: str, patience: int, best: int) -> None:
        """Called at the end of a run that ends before its last epoch. `best` is the best epoch."""
        name, evaluations = METRICS.get(metric, metric), counted(patience, "evaluation")
        say(self.console, f"stopped early: no improvement of {name} in {evaluations} (best in epoch {best})")

    def result(self, line: str) -> None:
        """Print a result of the finished run."""
        say(self.console, line)

    def fitted(self, choices: Sequence[Choice], images: int, epochs: int) -> None:
        """Print the settings that differ from the published ones, grouped by reason."""
        if not choices:
            return
        budget = f"{counted(images, 'image')} x {counted(epochs, 'epoch')}"
        say(self.console, f"settings for {budget} (published values in parentheses; flags override these settings):")
        for reason, group in groupby(choices, lambda choice: choice.reason):
            shown = (f"{each.field.replace('_', ' ')} {_value(each.used)} ({_value(each.published)})" for each in group)
            say(self.console, f"  {', '.join(shown)}: {reason}")


def _value(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02}m" if hours else f"{minutes}m{rest:02}s"
