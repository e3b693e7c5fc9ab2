"""Classification: one label per image."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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
from ..data.dataset import Dataset, DrawnBy
from ..data.decode import MAX_PIXELS, ImageInput
from ..data.letterbox import Letterbox
from ..data.loader import Batch
from ..data.sources import open_source
from ..data.transforms import EvalReader, Preprocess, TrainReader, fast_eval_decoder
from ..errors import Failure, counted
from ..report.blocks import Card
from .base import Gather, Predict, Prediction, ReportSubject, Task, TaskReport, alone
from .classify_evaluation import ClassifyEvaluation, Outputs
from .classify_report import class_cards, report_classes

BOUNDS = {"fp32": 1e-4, "fp16": 2e-2, "bf16": 1e-1, "int8": 5e-1}
"""Maximum difference of a logit due to rounding, relative to the largest logit."""
AGREEMENT = 0.9
"""Minimum top-1 agreement with PyTorch. If the largest logits are almost equal, any of their labels is accepted."""


def _in_order(batches: Sequence[tuple[np.ndarray, ...]]) -> Outputs:
    indices, labels, logits = (np.concatenate(parts) for parts in zip(*batches, strict=True))
    order = np.argsort(indices, kind="stable")
    return Outputs(indices[order], labels[order], logits[order])


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

    def evaluate(
        self, predict: Predict, batches: Iterable[Batch], gather: Gather = alone, keep: bool = False
    ) -> ClassifyEvaluation:
        count, kept = len(self.classes), []
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
            if keep:
                kept.append((np.array(batch.indices, np.int64), batch.targets.numpy(), logits.numpy()))
        counts = gather((confusion.numpy(), top5_correct, loss, bad, kept))
        confusions, tops, losses, bads, outputs = zip(*counts, strict=True)
        confusion = np.sum(confusions, axis=0)
        bad = {index: reason for part in bads for index, reason in part.items()}
        if not (images := int(confusion.sum())):
            raise Failure(f"none of {counted(len(bad), 'image')} could be used")
        return ClassifyEvaluation(
            self.classes,
            confusion.reshape(count, count),
            sum(tops),
            math.fsum(losses) / images,
            bad,
            _in_order([batch for part in outputs for batch in part]) if keep else None,
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

    @staticmethod
    def class_counts(split: Any, classes: int) -> tuple[str, np.ndarray]:
        labels = np.asarray(split.labels, np.int64)
        return "images", np.bincount(labels[labels >= 0], minlength=classes)  # a bad image may have no label

    @staticmethod
    def cards(metrics: Mapping[str, Any]) -> tuple[Card, ...]:
        return class_cards(metrics)

    def report(self, evaluation: ClassifyEvaluation, subject: ReportSubject) -> TaskReport:
        """Scores of each class, confusions, mistakes, calibration, and where the network looks."""
        return report_classes(self, evaluation, subject)
