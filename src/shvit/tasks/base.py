"""What a task is to the training loop and to the verbs: a loss, an evaluation, and names for outputs."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol

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
    """What depends on the task: facts, data, loss, evaluation and output formats.

    The facts are class attributes, so `kind_of("detect").output` works without an instance.
    """

    name: ClassVar[str]
    headline: ClassVar[str]
    """The metric that models are compared by. Higher is better."""
    output: ClassVar[str]
    """Name of the output in exported files."""
    labels_images: ClassVar[bool]
    """Whether the model gives one score per class for the whole image."""
    has_masks: ClassVar[bool]
    """Whether objects have masks."""
    detector: ClassVar[str | None]
    """Kind of detector that the architecture must have; None for a classifier."""
    fits: ClassVar[tuple[str, ...]]
    """Values of `Preprocess.fit` that its models can have."""
    any_size: ClassVar[bool]
    """Whether exported files may take images of any height and width."""
    eval_batch_size: ClassVar[int]
    """Default batch size of `shvit eval`."""
    predict_batch_size: ClassVar[int]
    """Default batch size of `shvit predict`."""
    parity_images: ClassVar[int]
    """Images that an exported file and PyTorch are compared on."""
    ranking_images: ClassVar[int]
    """Calibration images that layers are ranked on for int8."""

    @classmethod
    def from_recipe(cls, classes: Sequence[str], recipe: Any, device: str) -> "Task":
        """The task to train: its loss as the recipe says, with training images on this device."""
        ...

    @staticmethod
    def new_fit(fit: str) -> str:
        """`Preprocess.fit` of a model after its image size is changed."""
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
