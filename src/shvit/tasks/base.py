"""What a task is to the training loop and to the verbs: a loss, an evaluation, and names for outputs."""

from collections.abc import Callable, Iterable
from typing import Any, Protocol

from jaxtyping import UInt8
from torch import Tensor

from ..data.loader import Batch

Predict = Callable[[UInt8[Tensor, "b 3 h w"]], Any]
"""Any callable from uint8 images to the task's raw outputs: an engine, or a network still in training."""


Gather = Callable[[Any], list[Any]]
"""From one process's counts to those of all."""


def alone(counts: Any) -> list[Any]:
    """The gather of a single process."""
    return [counts]


class Evaluation(Protocol):
    """What was measured on a set of images."""

    @property
    def bad(self) -> dict[int, str]:
        """Place of each image that could not be used, and why."""
        ...

    def metrics(self) -> dict[str, Any]:
        """Plain numbers, for JSON."""
        ...


class Task(Protocol):
    """One thing that can be learnt from labelled images."""

    headline: str
    """The metric by which two models are compared; more is better."""

    def augment(self, images: Tensor, batch: Batch) -> tuple[Tensor, Any]:
        """Normalised training images, mixed among themselves perhaps, and the targets to match."""
        ...

    def loss(self, outputs: Any, targets: Any) -> Tensor: ...

    def evaluate(self, predict: Predict, batches: Iterable[Batch], gather: Gather = ...) -> Evaluation:
        """Of the images of all processes that `gather` speaks to; each has batches of its own."""
        ...

    def decode(self, outputs: Tensor) -> list[Any]:
        """One result for each image."""
        ...
