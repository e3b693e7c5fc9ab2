"""What holds training back on this machine: reading images, or computing with them."""

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
"""Timed; two more before them are not."""


@dataclass(frozen=True)
class Profile:
    """Training images a second, of all processes, at the recipe's batch and augmentation."""

    data: float
    """That the loader gives while nothing is computed."""
    compute: float
    """That the network learns from while nothing is read."""
    together: float
    """As they are in training."""
    data_wait: float
    """Share of the time in training that goes by waiting for data."""
    workers: int
    batch_size: int
    compiled: bool
    precision: str

    @property
    def bottleneck(self) -> Literal["data", "compute"]:
        """The slower of the two."""
        return "data" if self.data < self.compute else "compute"

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "bottleneck": self.bottleneck}


def profile(trainer: Trainer, workers: int) -> Profile:
    """Times some steps. The trainer's network is changed by them; nothing is written."""
    trainer.task.ready(trainer.model.train())
    size, pieces = trainer.recipe.batch_size, trainer.recipe.accumulate
    steps = _steps(trainer, pieces)
    waited = 0.0

    def learn(step: list[Batch]) -> None:
        trainer.train_step(step)
        if trainer.device.type == "cuda":
            torch.cuda.synchronize(trainer.device)

    def both() -> None:
        nonlocal waited
        asked = time.perf_counter()
        step = next(steps)
        waited += time.perf_counter() - asked
        learn(step)

    step = next(steps)
    compute = _seconds(lambda: learn(step))
    for _ in range(2 * workers):  # what was read ahead meanwhile
        next(steps)
    data = _seconds(lambda: next(steps))
    for _ in range(2):
        both()
    waited = 0.0
    together = _seconds(both, warm_up=0)
    return Profile(
        STEPS * size / data,
        STEPS * size / compute,
        STEPS * size / together,
        waited / together,
        workers,
        size,
        trainer.compiled,
        trainer.precision,
    )


def _steps(trainer: Trainer, pieces: int) -> Iterator[list[Batch]]:
    """Without end. Steps without usable images are left out."""
    epoch = 0
    while True:
        batches, usable = trainer.train_loader.epoch(epoch), 0
        while step := list(islice(batches, pieces)):
            if all(map(len, step)):
                usable += 1
                yield step
        if not usable:
            raise TrainError("no step of an epoch has images that can be used")
        epoch += 1


def _seconds(work: Any, warm_up: int = 2) -> float:
    """Of so many calls."""
    for _ in range(warm_up):
        work()
    started = time.perf_counter()
    for _ in range(STEPS):
        work()
    return time.perf_counter() - started
