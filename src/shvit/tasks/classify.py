"""Classification: one label per image."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from timm.data import Mixup
from timm.data.random_erasing import RandomErasing
from torch import Tensor
from torch.nn import functional as F

from ..classnames import unique_names
from ..console import visible
from ..data.dataset import Dataset, DrawnBy
from ..data.decode import MAX_PIXELS, ImageInput
from ..data.letterbox import Letterbox
from ..data.loader import Batch
from ..data.sources import open_source
from ..data.transforms import EvalReader, Preprocess, TrainReader, fast_eval_decoder
from ..errors import Failure, counted
from ..figures import literal_text, new_figure, save_png
from ..files import write_csv
from .base import Gather, Predict, Prediction, Task, TextTable, alone

BOUNDS = {"fp32": 1e-4, "fp16": 2e-2, "bf16": 1e-1, "int8": 5e-1}
"""Maximum difference of a logit due to rounding, relative to the largest logit."""
AGREEMENT = 0.9
"""Minimum top-1 agreement with PyTorch. If the largest logits are almost equal, any of their labels is accepted."""


@dataclass(frozen=True)
class ClassifyEvaluation:
    """The counts from which the metrics are computed."""

    classes: tuple[str, ...]
    """Unique class names."""
    confusion: np.ndarray
    """Number of images by true class (row) and predicted class (column)."""
    top5_correct: int
    loss: float
    """Mean cross-entropy."""
    bad: dict[int, str]
    """The reason why an image could not be used, by image index."""

    @property
    def images(self) -> int:
        return int(self.confusion.sum())

    @property
    def top1(self) -> float:
        """Share of the images whose most probable class is the true one."""
        return float(np.trace(self.confusion)) / self.images

    def per_class(self) -> dict[str, float | None]:
        """Top-1 accuracy of each class; None for a class without images."""
        counts = self.confusion.sum(axis=1)
        return {
            name: float(self.confusion[index, index] / counts[index]) if counts[index] else None
            for index, name in enumerate(self.classes)
        }

    def metrics(self) -> dict[str, Any]:
        """Accuracies from 0 to 1, the loss, and numbers of images."""
        return {
            "top1": self.top1,
            "top5": self.top5_correct / self.images,
            "loss": self.loss,
            "images": self.images,
            "bad_images": len(self.bad),
        }

    def summary(self) -> str:
        """Top-1 and top-5 accuracy as text."""
        return f"top-1 {self.top1:.2%}, top-5 {self.top5_correct / self.images:.2%}"

    def tables(self) -> list[TextTable]:
        """Top-1 accuracy by class."""
        rows = [[name, f"{share:.1%}"] for name, share in self.per_class().items() if share is not None]
        return [(["class", "top-1"], rows)]

    def write(self, out: Path, raw_cells: bool) -> list[Path]:
        """Write per_class.csv, confusion.csv and confusion.png."""
        counts, shares = self.confusion.sum(axis=1), self.per_class()
        rows = [[name, int(counts[i]), f"{shares[name]:.6f}"] for i, name in enumerate(self.classes) if counts[i]]
        write_csv(out / "per_class.csv", ["class", "images", "top1"], rows, raw_cells)
        matrix = [[name, *row] for name, row in zip(self.classes, self.confusion.tolist(), strict=True)]
        write_csv(out / "confusion.csv", ["true \\ predicted", *self.classes], matrix, raw_cells)
        draw_confusion(self, out / "confusion.png")
        return [out / name for name in ("per_class.csv", "confusion.csv", "confusion.png")]


@literal_text()
def draw_confusion(evaluation: ClassifyEvaluation, path: Path) -> None:
    """Draw the confusion matrix. Rows are true classes, columns are predictions. Classes that never occur are omitted.
    The color of a cell shows its share of the row's total."""
    matrix = evaluation.confusion
    seen = np.flatnonzero(matrix.sum(axis=0) + matrix.sum(axis=1))
    names = unique_names([visible(name.partition(",")[0]) for name in evaluation.classes])
    matrix, classes = matrix[np.ix_(seen, seen)], [names[i] for i in seen]
    shares = matrix / np.maximum(1, matrix.sum(axis=1, keepdims=True))
    count = len(classes)
    side = min(16.0, 3.5 + 0.42 * count)
    figure, [[axis]] = new_figure(side + 0.8, side)
    picture = axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(picture, ax=axis, shrink=0.7, label="share of the true class")
    axis.set_xlabel("predicted")
    axis.set_ylabel("true")
    axis.set_title(f"top-1 {evaluation.top1:.2%} of {counted(evaluation.images, 'image')}", fontsize=11)
    if count <= 60:
        axis.set_xticks(range(count), classes, rotation=60, ha="right", rotation_mode="anchor", fontsize=8)
        axis.set_yticks(range(count), classes, fontsize=8)
    if count <= 25:
        for row, column in np.argwhere(matrix):
            shade = "white" if shares[row, column] > 0.5 else "black"
            axis.text(column, row, str(matrix[row, column]), ha="center", va="center", color=shade, fontsize=7)
    save_png(figure, path)


def cross_entropy(logits: Float[Tensor, "b classes"], targets: Float[Tensor, "b classes"]) -> Float[Tensor, ""]:
    """Cross-entropy in fp32, whatever the precision of the network."""
    return F.cross_entropy(logits.float(), targets)


def top1_agreement(outputs: Float[Tensor, "n c"], expected: Float[Tensor, "n c"], bound: float) -> float:
    """Fraction of images whose top-1 class is that of `expected`, or has almost the same logit in `expected`."""
    chosen = expected.gather(1, outputs.argmax(1, keepdim=True))[:, 0]
    best = expected.amax(1)
    tie = min(bound, 1e-3) * expected.abs().max()
    return float((best - chosen <= tie).float().mean())


class Classify(Task):
    """Classification by cross-entropy, with smoothed and mixed labels.

    Args:
        classes: Names, in the order of the logits. Names that occur more than once get their index appended.
        label_smoothing: Share of each target that is spread over all classes.
        mixup: Strength (alpha) of mixing two images; 0 turns it off.
        cutmix: Strength (alpha) of pasting a part of one image into another; 0 turns it off.
        random_erasing: Probability of filling a rectangle of an image with noise.
        device: Device of the training images.
    """

    name = "classify"
    recipe_family = "classify"
    headline = "top1"
    output = "logits"
    labels_images = True
    fits = ("crop", "squash")
    any_size = True
    eval_batch_size = 64
    predict_batch_size = 16
    parity_images = 64
    ranking_images = 64
    predict_flags = ("top-k",)

    def __init__(
        self,
        classes: Sequence[str],
        label_smoothing: float = 0.0,
        mixup: float = 0.0,
        cutmix: float = 0.0,
        random_erasing: float = 0.0,
        device: str = "cpu",
    ) -> None:
        self.classes = unique_names(classes)
        self.label_smoothing = label_smoothing
        self._mix = (
            Mixup(mixup, cutmix, label_smoothing=label_smoothing, num_classes=len(classes)) if mixup or cutmix else None
        )
        self._erase = RandomErasing(random_erasing, mode="pixel", device=device) if random_erasing else None

    @classmethod
    def from_recipe(cls, classes: Sequence[str], recipe: Any, device: str) -> "Classify":
        """The task for training, with the label smoothing, mixing and erasing of the recipe."""
        return cls(classes, recipe.label_smoothing, recipe.mixup, recipe.cutmix, recipe.random_erasing, device)

    @staticmethod
    def open(data: str | Path, seed: int = 0, val_share: float = 0.2, drawn_by: DrawnBy = "content") -> Dataset:
        """Open a dataset of labelled images; see `open_source`."""
        return open_source(data, seed, val_share, drawn_by)

    def train_reader(self, preprocess: Preprocess, recipe: Any) -> TrainReader:
        """A reader of random crops, with RandAugment or color jitter."""
        random_changes = f"rand-m{recipe.rand_augment}-mstd0.5-inc1" if recipe.rand_augment else None
        return TrainReader(
            preprocess.image_size,
            (recipe.crop_min, 1.0),
            recipe.flip,
            recipe.color_jitter,
            random_changes,
            recipe.max_pixels,
            recipe.interpolation,
        )

    def eval_reader(self, preprocess: Preprocess, max_pixels: int = MAX_PIXELS) -> EvalReader:
        return EvalReader(preprocess, max_pixels)

    def fast_reader(self, preprocess: Preprocess) -> Callable[[ImageInput], tuple[UInt8[Tensor, "3 h w"], None]]:
        """A function that reads almost the same pixels as `eval_reader`, but faster."""
        to_pixels = fast_eval_decoder(preprocess)
        return lambda source: (to_pixels(source), None)

    def eval_batch(self, batch_size: int, processes: int) -> int:
        """Twice the batch size for training, up to 256 images per process."""
        return 2 * min(batch_size, 128 * processes)

    def augment(self, images: Float[Tensor, "b 3 h w"], batch: Batch) -> tuple[Float[Tensor, "b 3 h w"], Any]:
        """Erase parts of images, and mix images. The targets are probabilities (b, classes)."""
        targets = batch.targets.to(images.device)
        if self._erase is not None:
            images = self._erase(images)
        if self._mix is not None:
            return self._mix(images, targets)
        one_hot = F.one_hot(targets, len(self.classes)).float()
        return images, one_hot * (1 - self.label_smoothing) + self.label_smoothing / len(self.classes)

    def loss(self, network: Any, images: Float[Tensor, "b 3 h w"], targets: Any) -> Float[Tensor, ""]:
        """Mean cross-entropy."""
        return cross_entropy(network(images), targets)

    def evaluate(self, predict: Predict, batches: Iterable[Batch], gather: Gather = alone) -> ClassifyEvaluation:
        count = len(self.classes)
        confusion = torch.zeros(count * count, dtype=torch.int64)
        top5_correct, loss, bad = 0, 0.0, {}
        for batch in batches:
            bad |= batch.bad
            if not len(batch):
                continue
            logits = predict(batch.images).float().cpu()
            top = logits.topk(min(5, count)).indices
            confusion += torch.bincount(batch.targets * count + top[:, 0], minlength=count * count)
            top5_correct += int((top == batch.targets[:, None]).sum())
            loss += float(F.cross_entropy(logits, batch.targets, reduction="sum"))
        confusions, tops, losses, bads = zip(*gather((confusion.numpy(), top5_correct, loss, bad)), strict=True)
        confusion = np.sum(confusions, axis=0)
        bad = {index: reason for part in bads for index, reason in part.items()}
        if not (images := int(confusion.sum())):
            raise Failure(f"none of {counted(len(bad), 'image')} could be used")
        return ClassifyEvaluation(
            self.classes, confusion.reshape(count, count), sum(tops), math.fsum(losses) / images, bad
        )

    def predictions(
        self,
        outputs: Float[Tensor, "b classes"],
        letterboxes: Sequence[Letterbox | None] = (),
        top_k: int = 5,
        threshold: float = 0.0,
    ) -> Iterator[Prediction]:
        """The most probable classes of each image, with softmax probabilities over all classes."""
        probabilities, indices = outputs.float().softmax(dim=1).topk(min(top_k, len(self.classes)))
        for row, scores in zip(indices.tolist(), probabilities.tolist(), strict=True):
            yield Prediction("", tuple(self.classes[index] for index in row), tuple(scores))

    def compare(
        self, outputs: Float[Tensor, "n c"], expected: Float[Tensor, "n c"], precision: str, side: int
    ) -> tuple[dict[str, Any], str | None]:
        """Compare logits by their largest difference and by top-1 agreement."""
        bound = BOUNDS[precision]
        difference = float((outputs - expected).abs().max())
        relative, agreement = difference / float(expected.abs().max()), top1_agreement(outputs, expected, bound)
        fault = None
        if not relative <= bound:  # also catches NaN
            fault = f"its logits differ by {relative:.2g} of the largest logit, more than the allowed {bound:g}"
        elif agreement < AGREEMENT:
            fault = f"its top-1 agreement with PyTorch is {agreement:.1%}, less than the required {AGREEMENT:.0%}"
        return {
            "max_difference": difference,
            "relative_difference": relative,
            "top1_agreement": agreement,
            "bound": bound,
        }, fault

    @staticmethod
    def compared(numbers: Mapping[str, Any]) -> str:
        return (
            f"logits differ by {numbers['relative_difference']:.1e} of the largest logit (allowed {numbers['bound']:g})"
            f", top-1 agreement {numbers['top1_agreement']:.1%}"
        )

    @staticmethod
    def csv_header(top_k: int) -> list[str]:
        """path, label, score, error, then label_2, score_2, and so on up to `top_k`."""
        more = [f"{name}_{rank}" for rank in range(2, top_k + 1) for name in ("label", "score")]
        return ["path", "label", "score", "error", *more]

    @staticmethod
    def csv_rows(prediction: Prediction) -> Iterator[list[str]]:
        """One row per image."""
        pairs = zip(prediction.labels, prediction.scores, strict=True)
        ranked = [cell for label, score in pairs for cell in (label, f"{score:.6f}")]
        yield [prediction.path, *(ranked[:2] or ["", ""]), prediction.error or "", *ranked[2:]]

    @staticmethod
    def line(prediction: Prediction) -> str:
        return "  ".join(
            f"{name} {score:.1%}" for name, score in zip(prediction.labels, prediction.scores, strict=True)
        )
