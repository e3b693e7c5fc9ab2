"""Measures whether data loading or computing limits the training speed on this machine."""

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any, Literal

import torch

from ..data.loader import Batch
from .bad_images import TrainError
from .loop import Trainer

STEPS = 10
"""Number of timed steps. Two warm-up steps before them are not timed."""


@dataclass(frozen=True)
class Profile:
    """Throughput in training images per second over all processes, at the recipe's batch size and augmentation."""

    data: float
    """Data loading alone."""
    compute: float
    """Training steps alone."""
    together: float
    """Data loading and training steps together, as in training."""
    data_wait: float
    """Fraction of the training time spent waiting for data."""
    workers: int
    batch_size: int
    compiled: bool
    precision: str

    @property
    def bottleneck(self) -> Literal["data", "compute"]:
        """The slower of data loading and computing."""
        return "data" if self.data < self.compute else "compute"

    def to_dict(self) -> dict[str, Any]:
        """The profile as a dictionary for JSON."""
        return {**asdict(self), "bottleneck": self.bottleneck}


def time_steps(trainer: Trainer, workers: int) -> Profile:
    """Time a few training steps. These steps change the trainer's network. No files are written."""
    trainer.task.ready(trainer.model.train())
    size, pieces = trainer.recipe.batch_size, trainer.recipe.accumulate
    steps = _steps(trainer, pieces)
    waits: list[float] = []

    def compute_step(step: list[Batch]) -> None:
        trainer.train_step(step)
        if trainer.device.type == "cuda":
            torch.cuda.synchronize(trainer.device)

    def both() -> None:
        started = time.perf_counter()
        step = next(steps)
        waits.append(time.perf_counter() - started)
        compute_step(step)

    step = next(steps)
    compute = _seconds(lambda: compute_step(step))
    for _ in range(2 * workers):  # discard the prefetched batches
        next(steps)
    data = _seconds(lambda: next(steps))
    together = _seconds(both)
    return Profile(
        STEPS * size / data,
        STEPS * size / compute,
        STEPS * size / together,
        sum(waits[-STEPS:]) / together,
        workers,
        size,
        trainer.compiled,
        trainer.precision,
    )


def _steps(trainer: Trainer, pieces: int) -> Iterator[list[Batch]]:
    """Yield the micro-batches of each step, endlessly. Skips steps with an empty micro-batch."""
    epoch = 0
    while True:
        batches, usable = trainer.train_loader.epoch(epoch), 0
        while step := list(islice(batches, pieces)):
            if all(map(len, step)):
                usable += 1
                yield step
        if not usable:
            raise TrainError("a whole epoch has no training step with usable images")
        epoch += 1


def _seconds(work: Any) -> float:
    """Seconds for `STEPS` calls, after two warm-up calls."""
    for _ in range(2):
        work()
    started = time.perf_counter()
    for _ in range(STEPS):
        work()
    return time.perf_counter() - started
