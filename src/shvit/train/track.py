"""What a run tells a tracker that was asked for: TensorBoard."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError
from .report import Reporter

if TYPE_CHECKING:
    from .loop import Trainer

EVERY = 20
"""Steps from one point of a curve to the next."""


class TensorBoard:
    """Curves over steps in `out/tensorboard`; look at them with `tensorboard --logdir`."""

    def __init__(self, out: Path) -> None:
        self._folder = out / "tensorboard"
        self._writer: Any = None

    def begin(self, trainer: "Trainer") -> None:
        """What an earlier sitting wrote of steps that come again is hidden."""
        from torch.utils.tensorboard.writer import SummaryWriter

        self._writer = SummaryWriter(self._folder, purge_step=trainer.steps_done)

    def step(self, trainer: "Trainer", images_per_second: float, waited: float) -> None:
        if trainer.step % EVERY == 0:
            at = trainer.steps_done
            self._writer.add_scalar("step/loss", trainer.mean_loss, at)
            self._writer.add_scalar("step/rate", trainer.optimizer.param_groups[0]["lr"], at)
            self._writer.add_scalar("step/images_per_second", images_per_second, at)
            self._writer.add_scalar("step/data_wait", waited, at)

    def epoch(self, trainer: "Trainer", row: dict[str, Any]) -> None:
        for key, value in row.items():
            if isinstance(value, int | float) and key != "epoch":
                self._writer.add_scalar(f"epoch/{key}", value, trainer.steps_done)
        self._writer.flush()

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


TRACKERS = {"tensorboard": TensorBoard}


def check_tracker(name: str | None) -> None:
    """Raises InputError for an unknown tracker, or one that is not installed."""
    if name not in (None, *TRACKERS):
        raise InputError(f"track must be one of {', '.join(TRACKERS)}, got {name!r}")
    if name and not find_spec(name):
        raise InputError(f"--track {name} needs the package {name}: pip install 'shvit[{name}]'")


@contextmanager
def tracking(reporter: Reporter, name: str | None, out: Path) -> Iterator[None]:
    """The reporter also tells the tracker of this name, inside."""
    if name is None:
        yield
        return
    tracker = TRACKERS[name](out)
    reporter.trackers.append(tracker)
    try:
        yield
    finally:
        tracker.close()
