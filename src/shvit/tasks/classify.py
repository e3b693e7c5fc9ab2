"""Classification: one label for each image."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float, UInt8
from timm.data import Mixup
from timm.data.random_erasing import RandomErasing
from torch import Tensor
from torch.nn import functional as F

from ..classnames import unique_names
from ..data.dataset import Dataset, DrawnBy
from ..data.decode import MAX_PIXELS, ImageInput
from ..data.loader import Batch
from ..data.sources import open_source
from ..data.transforms import Decoded, Preprocess, TrainReader, eval_transform, fast_eval_decoder
from ..errors import Failure
from .base import Gather, Predict, alone


@dataclass(frozen=True)
class Labels:
    """The most probable classes of one image, best first."""

    labels: tuple[str, ...]
    scores: tuple[float, ...]
    """Probabilities, from 0 to 1; over all classes they add up to 1."""


@dataclass(frozen=True)
class ClassifyEvaluation:
    """Counts that the metrics follow from."""

    classes: tuple[str, ...]
    """Names, each of one class."""
    confusion: np.ndarray
    """(true class, predicted class) -> images."""
    top5_correct: int
    loss: float
    """Mean cross-entropy."""
    bad: dict[int, str]
    """Place of each image that could not be used, and why."""

    @property
    def images(self) -> int:
        return int(self.confusion.sum())

    @property
    def top1(self) -> float:
        return float(np.trace(self.confusion)) / self.images

    def per_class(self) -> dict[str, float | None]:
        """Share of each class's images that were found; None for a class without images."""
        counts = self.confusion.sum(axis=1)
        return {
            name: float(self.confusion[index, index] / counts[index]) if counts[index] else None
            for index, name in enumerate(self.classes)
        }

    def metrics(self) -> dict[str, Any]:
        return {
            "top1": self.top1,
            "top5": self.top5_correct / self.images,
            "loss": self.loss,
            "images": self.images,
            "bad_images": len(self.bad),
        }


def cross_entropy(logits: Float[Tensor, "b classes"], targets: Float[Tensor, "b classes"]) -> Float[Tensor, ""]:
    """In fp32, whatever the network computes in."""
    return F.cross_entropy(logits.float(), targets)


class Classify:
    """Cross-entropy against one-hot, smoothed or mixed labels.

    Args:
        classes: Names, in the order of the logits. Where several share one, the index is appended to each.
        label_smoothing: Share of each target that is spread over all classes.
        mixup: Strength (alpha) of mixing two images; 0 for none.
        cutmix: Strength (alpha) of pasting a part of one image into another; 0 for none.
        random_erasing: Probability of filling a rectangle of an image with noise.
        device: Where training images are.
    """

    name: ClassVar[str] = "classify"
    headline: ClassVar[str] = "top1"
    output: ClassVar[str] = "logits"
    labels_images: ClassVar[bool] = True
    has_masks: ClassVar[bool] = False
    detector: ClassVar[str | None] = None
    fits: ClassVar[tuple[str, ...]] = ("crop", "squash")
    any_size: ClassVar[bool] = True
    eval_batch_size: ClassVar[int] = 64
    predict_batch_size: ClassVar[int] = 16
    parity_images: ClassVar[int] = 64
    ranking_images: ClassVar[int] = 64

    @classmethod
    def from_recipe(cls, classes: Sequence[str], recipe: Any, device: str) -> "Classify":
        """The task to train: labels smoothed and images mixed as the recipe says."""
        return cls(classes, recipe.label_smoothing, recipe.mixup, recipe.cutmix, recipe.random_erasing, device)

    @staticmethod
    def new_fit(fit: str) -> str:
        """A classifier keeps its fit at another image size."""
        return fit

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

    @staticmethod
    def open(data: str | Path, seed: int = 0, val_share: float = 0.2, drawn_by: DrawnBy = "content") -> Dataset:
        """As `open_source`."""
        return open_source(data, seed, val_share, drawn_by)

    def train_reader(self, preprocess: Preprocess, recipe: Any) -> TrainReader:
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

    def eval_reader(self, preprocess: Preprocess, max_pixels: int = MAX_PIXELS) -> Decoded:
        return Decoded(eval_transform(preprocess), max_pixels)

    def fast_reader(self, preprocess: Preprocess) -> Callable[[ImageInput], tuple[UInt8[Tensor, "3 h w"], None]]:
        """What `Predictor` reads with: all but the same pixels, sooner."""
        to_pixels = fast_eval_decoder(preprocess)
        return lambda source: (to_pixels(source), None)

    def eval_batch(self, batch_size: int, processes: int) -> int:
        return 2 * min(batch_size, 128 * processes)

    def ready(self, network: Any) -> None:
        """Nothing is to be done."""

    def augment(self, images: Float[Tensor, "b 3 h w"], batch: Batch) -> tuple[Float[Tensor, "b 3 h w"], Any]:
        targets = batch.targets.to(images.device)
        if self._erase is not None:
            images = self._erase(images)
        if self._mix is not None:
            return self._mix(images, targets)
        one_hot = F.one_hot(targets, len(self.classes)).float()
        return images, one_hot * (1 - self.label_smoothing) + self.label_smoothing / len(self.classes)

    def loss(self, network: Any, images: Float[Tensor, "b 3 h w"], targets: Any) -> Float[Tensor, ""]:
        return cross_entropy(network(images), targets)

    def signal(self, outputs: Float[Tensor, "b classes"]) -> Float[Tensor, "b classes"]:
        return outputs

    def evaluate(self, predict: Predict, batches: Iterable[Batch], gather: Gather = alone) -> ClassifyEvaluation:
        """Every usable image of the batches is counted once.

        Raises:
            Failure: None of the images could be used.
        """
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
            raise Failure(f"none of the {len(bad)} images could be used")
        return ClassifyEvaluation(
            self.classes, confusion.reshape(count, count), sum(tops), math.fsum(losses) / images, bad
        )

    def decode(self, outputs: Float[Tensor, "b classes"], top_k: int = 5) -> list[Labels]:
        probabilities, indices = outputs.float().softmax(dim=1).topk(min(top_k, len(self.classes)))
        return [
            Labels(tuple(self.classes[i] for i in row), tuple(scores))
            for row, scores in zip(indices.tolist(), probabilities.tolist(), strict=True)
        ]
