"""The interface of a task: its properties, data, loss, evaluation and results."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
from jaxtyping import Int64, UInt8
from torch import Tensor

from ..confidence import Calibration
from ..data.dataset import DrawnBy
from ..data.decode import MAX_PIXELS, ImageInput
from ..data.letterbox import Letterbox
from ..data.loader import Batch
from ..data.transforms import Preprocess
from ..report.blocks import Card, Section

Predict = Callable[[UInt8[Tensor, "b 3 h w"]], Any]
"""A function from uint8 images to the raw outputs of the task: an engine, or a network during training."""
Gather = Callable[[Any], list[Any]]
"""Takes the counts of this process and returns a list of the counts of all processes."""
TextTable = tuple[Sequence[str], Sequence[Sequence[str]]]
"""The header and the rows of a table."""
Results = Mapping[str, np.ndarray]
"""The results of an end-to-end file for one image, by name: `Task.result_names`."""
RunLengths = dict[str, Any]
"""A mask in COCO's compressed run-length encoding: `size` and `counts`."""


def alone(counts: Any) -> list[Any]:
    """The `Gather` of a single process."""
    return [counts]


@dataclass(frozen=True)
class Prediction:
    """The result for one image."""

    path: str
    """The path as given; empty for an image in memory."""
    labels: tuple[str, ...]
    """Classifiers: the most probable classes, best first. Detectors: the class of each object. Empty for an image that
    could not be used."""
    scores: tuple[float, ...]
    """Probability of each label, from 0 to 1."""
    error: str | None = None
    """Why the image could not be used; None if it was used."""
    boxes: tuple[tuple[float, ...], ...] | None = None
    """For each object: left, top, right, bottom in pixels of the upright image. None for a classifier."""
    masks: tuple[RunLengths, ...] | None = None
    """The mask of each object; None if the model has no masks."""
    uncertain: bool = False
    """Whether the score of a classifier's most probable class is below the minimum score. Always false without one."""

    def to_dict(self) -> dict[str, Any]:
        """A dict of path, labels, scores and error. Boxes and masks are included if they are not None, and `uncertain`
        for images that a classifier could use."""
        found = {key: value for key, value in asdict(self).items() if value is not None or key == "error"}
        if self.boxes is not None or self.error is not None:
            del found["uncertain"]
        return found

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Prediction":
        """Inverse of `to_dict`. Also accepts its result after a round trip through JSON."""
        boxes, masks = data.get("boxes"), data.get("masks")
        return cls(
            data["path"],
            tuple(data["labels"]),
            tuple(data["scores"]),
            data["error"],
            None if boxes is None else tuple(tuple(box) for box in boxes),
            None if masks is None else tuple(masks),
            data.get("uncertain", False),
        )


@dataclass(frozen=True)
class GraphText:
    """An ONNX graph: the text of its inputs, outputs and nodes, and its constants by name."""

    inputs: str
    outputs: str
    steps: str
    constants: Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Criterion:
    """A metric by which weights are compared."""

    metric: str
    """A key of `Evaluation.metrics`."""
    lower: bool = False
    """Whether lower is better."""

    def score(self, metrics: Mapping[str, Any]) -> float:
        """The metric, or its negative if lower is better. -infinity if it is NaN or missing."""
        value = float(metrics.get(self.metric, math.nan))
        return -math.inf if math.isnan(value) else -value if self.lower else value


class Evaluation(Protocol):
    """The results of an evaluation on a set of images."""

    @property
    def images(self) -> int:
        """Number of images that were used."""
        ...

    @property
    def bad(self) -> dict[int, str]:
        """The reason why an image could not be used, by image index."""
        ...

    @property
    def outputs(self) -> Any:
        """The results of each image, in the form of the task; None if they were not kept."""
        ...

    def metrics(self) -> dict[str, Any]:
        """The metrics as plain numbers, for JSON."""
        ...

    def per_class(self) -> dict[str, Any]:
        """The accuracy of each class; None for a class that does not occur."""
        ...

    def summary(self) -> str:
        """The most important metrics as text: "top-1 93.10%"."""
        ...

    def tables(self) -> list[TextTable]:
        """Tables for the console."""
        ...

    def write(self, out: Path, raw_cells: bool) -> list[Path]:
        """Write the tables and figures of the report into a folder, and return their paths."""
        ...


@dataclass(frozen=True)
class ReportSubject:
    """What the report of an evaluation is about."""

    model: Any
    """The model file, or the exported file."""
    images: Any
    """The evaluated split. Its labels are indices of the model's classes."""
    path: str
    """Path of the model as the user gave it, for commands to copy."""


@dataclass(frozen=True)
class TaskReport:
    """A task's part of a report."""

    cards: tuple[Card, ...] = ()
    """Headline numbers."""
    findings: tuple[str, ...] = ()
    sections: tuple[Section, ...] = ()


class Task(Protocol):
    """The base class of tasks. Properties are class attributes, so `kind_of("detect").output` needs no instance."""

    name: ClassVar[str]
    recipe_family: ClassVar[str]
    """Name of the task whose recipes and training flags are used."""
    headline: ClassVar[str]
    """The metric that models are compared by. Higher is better."""
    criteria: ClassVar[Mapping[str, Criterion]] = {}
    """The values of `--select-by`. Without the flag, the criterion is `headline`."""
    output: ClassVar[str]
    """Name of the output in exported files."""
    result_names: ClassVar[tuple[str, ...]]
    """Names of the outputs of end-to-end files."""
    labels_images: ClassVar[bool]
    """Whether the model gives one score per class for the whole image."""
    has_masks: ClassVar[bool] = False
    """Whether objects have masks."""
    detector: ClassVar[str | None] = None
    """Kind of detector that the architecture must have; None for a classifier."""
    head: ClassVar[str | None] = None
    """The value of `--head` for which this variant of the task is trained; None for classifiers."""
    fits: ClassVar[tuple[str, ...]]
    """Values of `Preprocess.fit` that models of this task can have."""
    any_size: ClassVar[bool]
    """Whether exported files may take images of any height and width."""
    min_score: ClassVar[float] = 0.0
    """Objects below this score are not in the outputs, unless the network's `set_min_score` lowers the limit."""
    eval_batch_size: ClassVar[int]
    """Default batch size of `shvit eval`."""
    predict_batch_size: ClassVar[int]
    """Default batch size of `shvit predict`."""
    parity_images: ClassVar[int]
    """Number of images for comparing an exported file with PyTorch."""
    ranking_images: ClassVar[int]
    """Number of calibration images on which layers are ranked by their sensitivity to int8."""
    predict_flags: ClassVar[tuple[str, ...]]
    """Flags of `shvit predict` that have an effect for this task, but not for every task."""
    classes: tuple[str, ...]

    @classmethod
    def from_recipe(cls, classes: Sequence[str], recipe: Any, device: str) -> "Task":
        """The task for training with this recipe on this device."""
        ...

    @classmethod
    def criterion(cls, select_by: str | None) -> Criterion:
        """How to compare the epochs of a run, for a value of `--select-by`."""
        return cls.criteria[select_by] if select_by else Criterion(cls.headline)

    @classmethod
    def threshold(cls, metrics: Mapping[str, Any]) -> float:
        """The default minimum score of objects, given the metrics of a model. By default, there is no minimum."""
        return 0.0

    @staticmethod
    def new_fit(fit: str) -> str:
        """The `Preprocess.fit` of a model after its image size is changed. By default, it stays the same."""
        return fit

    @staticmethod
    def open(data: str | Path, seed: int = 0, val_share: float = 0.2, drawn_by: DrawnBy = "hash") -> Any:
        """Open a dataset: its classes, splits, fingerprint and warnings. Raises DataError if it cannot be used."""
        ...

    @staticmethod
    def advice(source: Any) -> str | None:
        """A setting that this dataset may need, as one line; None if there is none. By default None."""

    def strata(self, split: Any) -> Int64[np.ndarray, " n"] | None:
        """The group of each training image, if the recipe draws each group equally often. By default None."""

    def weigh(self, split: Any, usable: Int64[np.ndarray, " m"]) -> None:
        """Weight the loss, given the indices of the usable training images. By default, nothing is done."""

    def train_reader(self, preprocess: Preprocess, recipe: Any) -> Any:
        """A reader of training images for the loader, with the recipe's augmentation."""
        ...

    def eval_reader(self, preprocess: Preprocess, max_pixels: int = MAX_PIXELS) -> Any:
        """A reader of evaluation images for the loader."""
        ...

    def fast_reader(
        self, preprocess: Preprocess
    ) -> Callable[[ImageInput], tuple[UInt8[Tensor, "3 h w"], Letterbox | None]]:
        """A function that reads an image for `Predictor`. Returns the pixels and, for detectors, the letterbox."""
        ...

    def eval_batch(self, batch_size: int, processes: int) -> int:
        """Total batch size of all processes for evaluation, given the batch size for training."""
        ...

    def ready(self, network: Any) -> None:
        """Prepare a network in training mode for training steps. By default, nothing is done."""

    def augment(self, images: Tensor, batch: Batch) -> tuple[Tensor, Any]:
        """Augment a batch of normalized training images. Returns the images and their targets."""
        ...

    def loss(self, network: Any, images: Tensor, targets: Any) -> Tensor:
        """The loss for images and targets from `augment`."""
        ...

    def signal(self, outputs: Tensor) -> Tensor:
        """The part of the raw outputs that is compared between two versions of a network. By default, all outputs."""
        return outputs

    def evaluate(
        self, predict: Predict, batches: Iterable[Batch], gather: Gather = ..., keep: bool = False
    ) -> Evaluation:
        """Evaluate on the batches of all processes. Each usable image is counted once.

        With `keep`, the evaluation has the results of each image in `outputs`.

        Raises:
            Failure: No image can be used.
        """
        ...

    def predictions(
        self,
        outputs: Tensor,
        letterboxes: Sequence[Letterbox | None],
        top_k: int,
        threshold: float,
        calibration: Calibration = ...,
    ) -> Iterator[Prediction]:
        """The results of a batch, without paths: `top_k` labels per image with calibrated probabilities, or the objects
        with scores of at least `threshold`."""
        ...

    def results_graph(self) -> GraphText:
        """The graph from the raw outputs of a network with temperature 1 to the results of one image.

        Its inputs are the raw outputs, and, if needed, `size` and `resized`: the height and width of the image before
        and after resizing, int64. Its outputs are `result_names`.
        """
        ...

    def to_results(self, outputs: Tensor, letterbox: Letterbox | None) -> Results:
        """The results of one image, from the raw outputs of a network with temperature 1 (a batch of one)."""
        ...

    def best(self, results: Results, count: int) -> tuple[tuple[int, ...], Any]:
        """The class indices of the `count` highest scores, and, for detectors, the boxes of these objects."""
        ...

    def scores_of(self, results: Results, classes: Sequence[int], boxes: Any) -> list[float]:
        """The score that the results give to each of these classes or objects."""
        ...

    def from_results(
        self, results: Results, height: int, width: int, top_k: int, threshold: float, calibration: Calibration = ...
    ) -> Prediction:
        """The prediction, without a path, for the results of an end-to-end file. See `predictions`."""
        ...

    def compare_results(
        self, found: Sequence[Results], outputs: Tensor, letterboxes: Sequence[Any], precision: str
    ) -> tuple[dict[str, Any], str | None]:
        """Compare the results of an end-to-end file with the raw outputs of PyTorch (at temperature 1) for the same
        images. Returns the same as `compare`."""
        ...

    def compare(
        self, outputs: Tensor, expected: Tensor, precision: str, side: int
    ) -> tuple[dict[str, Any], str | None]:
        """Compare the raw outputs of an exported file with PyTorch's fp32 outputs (`expected`) for the same images.

        Args:
            precision: Precision of the file.
            side: Side of the images, in pixels.

        Returns:
            Numbers for the report, and a message if the difference exceeds the rounding error, otherwise None.
        """
        ...

    @staticmethod
    def compared(numbers: Mapping[str, Any]) -> str:
        """The numbers of `compare` as text."""
        ...

    @staticmethod
    def csv_header(top_k: int, judged: bool = False) -> list[str]:
        """The columns of predictions in a CSV file. `judged`: a classifier's images can be uncertain."""
        ...

    @staticmethod
    def csv_rows(prediction: Prediction, judged: bool = False) -> Iterator[list[str]]:
        """The rows of one image in a CSV file. A row may be shorter than the header; missing cells are empty."""
        ...

    @staticmethod
    def line(prediction: Prediction) -> str:
        """One line of text for a successful prediction (`error` is None)."""
        ...

    @staticmethod
    def class_counts(split: Any, classes: int) -> tuple[str, Int64[np.ndarray, " classes"]]:
        """What is counted in a split (`images` or `objects`), and how many there are of each class."""
        ...

    def cards(self, metrics: Mapping[str, Any]) -> tuple[Card, ...]:
        """Headline numbers of a report, from the metrics of a model file. By default, there are none."""
        return ()

    def report(self, evaluation: Any, subject: ReportSubject) -> TaskReport:
        """The task's part of the report of an evaluation. By default, the headline numbers alone.

        Sections about single images need an evaluation with `outputs`.
        """
        return TaskReport(self.cards(evaluation.metrics()))
