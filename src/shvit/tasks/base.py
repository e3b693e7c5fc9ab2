"""What a task is to the training loop and to the verbs: a loss, an evaluation, and names for outputs."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Protocol

from jaxtyping import UInt8
from torch import Tensor

from ..data.dataset import DrawnBy
from ..data.decode import MAX_PIXELS
from ..data.loader import Batch
from ..data.transforms import Preprocess

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

    @property
    def headline(self) -> str:
        """The metric by which two models are compared; more is better."""
        ...

    @staticmethod
    def open(data: str | Path, seed: int = 0, val_share: float = 0.2, drawn_by: DrawnBy = "content") -> Any:
        """The data that the task learns from: classes, `train`, `val`, fingerprint, warnings. Raises DataError."""
        ...

    def train_reader(self, preprocess: Preprocess, recipe: Any) -> Any:
        """What the loader reads training images with, augmented as the recipe says."""
        ...

    def eval_reader(self, preprocess: Preprocess, max_pixels: int = MAX_PIXELS) -> Any:
        """What the loader reads images with that are to be evaluated on."""
        ...

    def eval_batch(self, batch_size: int, processes: int) -> int:
        """Images of all processes to evaluate at once, where these are trained on at once."""
        ...

    def ready(self, network: Any) -> None:
        """Makes a network in training mode ready for the next steps."""
        ...

    def augment(self, images: Tensor, batch: Batch) -> tuple[Tensor, Any]:
        """Normalised training images, mixed among themselves perhaps, and the targets to match."""
        ...

    def loss(self, network: Any, images: Tensor, targets: Any) -> Tensor:
        """Of the network on these images: what `augment` gave."""
        ...

    def signal(self, outputs: Tensor) -> Tensor:
        """The part of the raw outputs by which two versions of a network are compared, place by place."""
        ...

    def evaluate(self, predict: Predict, batches: Iterable[Batch], gather: Gather = ...) -> Evaluation:
        """Of the images of all processes that `gather` speaks to; each has batches of its own."""
        ...
