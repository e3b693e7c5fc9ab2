"""Trackers: TensorBoard."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..errors import InputError
from .progress import Progress, Reporter

EVERY = 20
"""Steps between two points of a curve."""


class TensorBoard:
    """Writes curves to `out/tensorboard`. Show them with `tensorboard --logdir`."""

    def __init__(self, out: Path) -> None:
        self._folder = out / "tensorboard"
        self._writer: Any = None

    def begin(self, progress: Progress) -> None:
        """Hide the points that an interrupted run wrote for steps that this run repeats."""
        from torch.utils.tensorboard.writer import SummaryWriter

        self._writer = SummaryWriter(self._folder, purge_step=progress.steps_done)

    def step(self, progress: Progress) -> None:
        """Write the averages of the epoch so far."""
        if progress.step % EVERY == 0:
            for key in ("loss", "lr", "images_per_second", "data_wait"):
                self._writer.add_scalar(f"step/{key}", getattr(progress, key), progress.steps_done)

    def epoch(self, progress: Progress, row: dict[str, Any]) -> None:
        """Write the numbers of a row of metrics.jsonl."""
        for key, value in row.items():
            if isinstance(value, int | float) and key != "epoch":
                self._writer.add_scalar(f"epoch/{key}", value, progress.steps_done)
        self._writer.flush()

    def close(self) -> None:
        """Close the file."""
        if self._writer is not None:
            self._writer.close()


TRACKERS = {"tensorboard": TensorBoard}


def check_tracker(name: str | None) -> None:
    """Raises InputError if the tracker is unknown or not installed."""
    if name not in (None, *TRACKERS):
        raise InputError(f"track must be one of {', '.join(TRACKERS)}, got {name!r}")
    if name and not find_spec(name):
        raise InputError(f"--track {name} needs the package {name}: pip install 'shvit[{name}]'")


@contextmanager
def tracking(reporter: Reporter, name: str | None, out: Path) -> Iterator[None]:
    """Add the tracker of this name to the reporter inside the context."""
    if name is None:
        yield
        return
    tracker = TRACKERS[name](out)
    reporter.trackers.append(tracker)
    try:
        yield
    finally:
        tracker.close()
