"""Classification: one label per image."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from timm.data import Mixup
from timm.data.random_erasing import RandomErasing
from torch import Tensor
from torch.nn import functional as F

from ..classnames import unique_names
from ..confidence import UNCALIBRATED, Calibration
from ..data.augmentation import TrainReader
from ..data.dataset import Dataset, DrawnBy, Split
from ..data.decode import MAX_PIXELS, ImageInput
from ..data.letterbox import Letterbox
from ..data.loader import Batch
from ..data.sources import open_source
from ..data.transforms import EvalReader, Preprocess, fast_eval_decoder
from ..errors import Failure, counted
from ..report.blocks import Card
from .base import (
    Criterion,
    Gather,
    GraphText,
    Predict,
    Prediction,
    ReportSubject,
    Results,
    Task,
    TaskReport,
    alone,
)
from .classify_evaluation import ClassifyEvaluation, Outputs
from .classify_report import class_cards, report_classes

BOUNDS = {"fp32": 1e-4, "fp16": 2e-2, "bf16": 1e-1, "int8": 5e-1}
"""Maximum difference of a logit due to rounding, relative to the largest logit."""
RESULT_BOUNDS = {"fp32": 5e-2, "fp16": 1e-1, "bf16": 1e-1, "int8": 5e-1}
"""Maximum difference of a score of an end-to-end file, whose preprocessing rounds differently by one level of 255."""
UNCERTAIN = "uncertain"
"""Stands in for the class of an image whose score is too low."""
AGREEMENT = 0.9
"""Minimum top-1 agreement with PyTorch. If the largest logits are almost equal, any of their labels is accepted."""
IMBALANCE = 10
"""Ratio of the sizes of the largest and the smallest class from which training suggests `--balance`."""


def class_weights(labels: Int64[np.ndarray, " n"], classes: int) -> Float[Tensor, " classes"]:
    """Weight of each class, inversely proportional to its number of images. The mean over all images is 1.

    A class without images has weight 0.
    """
    counts = np.bincount(labels, minlength=classes)
    weights = len(labels) / (np.count_nonzero(counts) * np.maximum(1, counts)) * (counts > 0)
    return torch.from_numpy(weights).float()


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
        balance: How to compensate for classes of different sizes: `none`, `sampling` or `loss`; see `Recipe.balance`.
    """

    name = "classify"
    recipe_family = "classify"
    headline = "top1"
    criteria: ClassVar[Mapping[str, Criterion]] = {
        "top1": Criterion("top1"),
        "balanced": Criterion("balanced_accuracy"),
        "loss": Criterion("loss", lower=True),
    }
    output = "logits"
    result_names = ("scores",)
    labels_images = True
    fits = ("crop", "letterbox", "stretch")
    any_size = True
    eval_batch_size = 64
    predict_batch_size = 16
    parity_images = 64
    ranking_images = 64
    predict_flags = ("top-k", "min-score")

    def __init__(
        self,
        classes: Sequence[str],
        label_smoothing: float = 0.0,
        mixup: float = 0.0,
        cutmix: float = 0.0,
        random_erasing: float = 0.0,
        device: str = "cpu",
        balance: str = "none",
    ) -> None:
        self.classes = unique_names(classes)
        self.balance, self._weights = balance, torch.ones(len(classes), device=device)
        mixes = mixup or cutmix
        smoothed = label_smoothing if mixes and balance != "loss" else 0.0  # weighted labels are smoothed after mixing
        self._smoothing = label_smoothing - smoothed
        self._mix = Mixup(mixup, cutmix, label_smoothing=smoothed, num_classes=len(classes)) if mixes else None
        self._erase = RandomErasing(random_erasing, mode="pixel", device=device) if random_erasing else None

    @classmethod
    def from_recipe(cls, classes: Sequence[str], recipe: Any, device: str) -> "Classify":
        """The task for training, with the label smoothing, mixing, erasing and class balance of the recipe."""
        mixing = recipe.label_smoothing, recipe.mixup, recipe.cutmix
        return cls(classes, *mixing, recipe.random_erasing, device, recipe.balance)

    @staticmethod
    def open(data: str | Path, seed: int = 0, val_share: float = 0.2, drawn_by: DrawnBy = "hash") -> Dataset:
        """Open a dataset of labelled images; see `open_source`."""
        return open_source(data, seed, val_share, drawn_by)

    @staticmethod
    def advice(source: Dataset) -> str | None:
        """Suggest `--balance` if the largest class has at least `IMBALANCE` times as many images as the smallest."""
        counts = source.train.class_counts(len(source.classes))
        largest, smallest = int(counts.argmax()), int(np.where(counts, counts, counts.max()).argmin())
        if counts[largest] < IMBALANCE * counts[smallest]:
            return None
        images = counted(int(counts[largest]), "training image")
        return (
            f"class {source.classes[largest]} has {images}, class {source.classes[smallest]} only "
            f"{counts[smallest]:,}: --balance sampling draws each class equally often"
        )

    def strata(self, split: Split) -> Int64[np.ndarray, " n"] | None:
        """The classes, with `balance` sampling."""
        return np.asarray(split.labels, np.int64) if self.balance == "sampling" else None

    def weigh(self, split: Split, usable: Int64[np.ndarray, " m"]) -> None:
        """Set the class weights, with `balance` loss."""
        if self.balance == "loss":
            weights = class_weights(np.asarray(split.labels, np.int64)[usable], len(self.classes))
            self._weights = weights.to(self._weights.device)

    def train_reader(self, preprocess: Preprocess, recipe: Any) -> TrainReader:
        """A reader of randomly cropped or resized images, with RandAugment or color jitter."""
        random_changes = f"rand-m{recipe.rand_augment}-mstd0.5-inc1" if recipe.rand_augment else None
        return TrainReader(
            preprocess.image_size,
            (recipe.crop_min, 1.0),
            recipe.flip,
            recipe.color_jitter,
            random_changes,
            recipe.max_pixels,
            recipe.interpolation,
            recipe.train_fit or preprocess.fit,
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
        """Erase parts of images, and mix images. The targets are probabilities (b, classes).

        With class weights, the target of each image is multiplied by the weight of its label. Label smoothing does not
        change an image's weight. A mixed image is the sum of two images, each with its own share and weight.
        """
        targets = batch.targets.to(images.device)
        if self._erase is not None:
            images = self._erase(images)
        if self._mix is not None:
            images, targets = self._mix(images, targets)
        else:
            targets = F.one_hot(targets, len(self.classes)).float()
        targets = targets * self._weights
        spread = targets.sum(1, keepdim=True) * (self._smoothing / len(self.classes))
        return images, targets * (1 - self._smoothing) + spread

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
        calibration: Calibration = UNCALIBRATED,
    ) -> Iterator[Prediction]:
        """The most probable classes of each image, with calibrated softmax probabilities over all classes."""
        for probabilities in (outputs.float() / calibration.temperature).softmax(dim=1):
            yield self._ranked(probabilities, top_k, calibration)

    def _ranked(self, probabilities: Float[Tensor, " classes"], top_k: int, calibration: Calibration) -> Prediction:
        scores, indices = probabilities.topk(min(top_k, len(self.classes)))
        names, certain = tuple(self.classes[index] for index in indices.tolist()), scores.tolist()
        return Prediction("", names, tuple(certain), uncertain=certain[0] < (calibration.threshold or 0.0))

    def results_graph(self) -> GraphText:
        """Softmax. The output is `scores`, float32 (classes,)."""
        count = len(self.classes)
        steps = "probabilities = Softmax <axis=1> (logits)\n scores = Reshape (probabilities, all_scores)"
        constants = {"all_scores": np.array([count])}
        return GraphText(f"float[1, {count}] logits", f"float[{count}] scores", steps, constants)

    def to_results(self, outputs: Float[Tensor, "1 classes"], letterbox: Letterbox | None) -> Results:
        return {"scores": outputs[0].float().softmax(0).numpy()}

    def best(self, results: Results, count: int) -> tuple[tuple[int, ...], None]:
        return tuple(np.argsort(-results["scores"], kind="stable")[:count].tolist()), None

    def scores_of(self, results: Results, classes: Sequence[int], boxes: Any) -> list[float]:
        return results["scores"][list(classes)].tolist()

    def from_results(
        self,
        results: Results,
        height: int,
        width: int,
        top_k: int = 5,
        threshold: float = 0.0,
        calibration: Calibration = UNCALIBRATED,
    ) -> Prediction:
        return self._ranked(torch.from_numpy(results["scores"]), top_k, calibration)

    def compare_results(
        self, found: Sequence[Results], outputs: Float[Tensor, "n c"], letterboxes: Sequence[Any], precision: str
    ) -> tuple[dict[str, Any], str | None]:
        """Compare scores by their largest difference and by top-1 agreement."""
        scores, expected = torch.from_numpy(np.stack([one["scores"] for one in found])), outputs.softmax(1)
        difference, bound = float((scores - expected).abs().max()), RESULT_BOUNDS[precision]
        agreement = top1_agreement(scores, expected, BOUNDS[precision])
        fault = None
        if not difference <= bound:  # also catches NaN
            fault = f"its scores differ by {difference:.2g}, more than the allowed {bound:g}"
        elif agreement < AGREEMENT:
            fault = f"its top-1 agreement with PyTorch is {agreement:.1%}, less than the required {AGREEMENT:.0%}"
        return {"score_difference": difference, "top1_agreement": agreement, "bound": bound}, fault

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
        if "score_difference" in numbers:
            return (
                f"scores differ by at most {numbers['score_difference']:.1e} (allowed {numbers['bound']:g}), top-1 "
                f"agreement {numbers['top1_agreement']:.1%}"
            )
        return (
            f"logits differ by {numbers['relative_difference']:.1e} of the largest logit (allowed {numbers['bound']:g})"
            f", top-1 agreement {numbers['top1_agreement']:.1%}"
        )

    @staticmethod
    def csv_header(top_k: int, judged: bool = False) -> list[str]:
        """path, label, score, error, then label_2, score_2, and so on up to `top_k`. If `judged`, best_label follows
        error: the most probable class, also of uncertain images, whose label is `uncertain`."""
        more = [f"{name}_{rank}" for rank in range(2, top_k + 1) for name in ("label", "score")]
        return ["path", "label", "score", "error", *(["best_label"] if judged else []), *more]

    @staticmethod
    def csv_rows(prediction: Prediction, judged: bool = False) -> Iterator[list[str]]:
        """One row per image."""
        pairs = zip(prediction.labels, prediction.scores, strict=True)
        best, score, *more = [cell for label, score in pairs for cell in (label, f"{score:.6f}")] or ["", ""]
        label = UNCERTAIN if prediction.uncertain else best
        yield [prediction.path, label, score, prediction.error or "", *([best] if judged else []), *more]

    @staticmethod
    def line(prediction: Prediction) -> str:
        pairs = zip(prediction.labels, prediction.scores, strict=True)
        labels = "  ".join(f"{name} {score:.1%}" for name, score in pairs)
        return f"{UNCERTAIN}: {labels}" if prediction.uncertain else labels

    @staticmethod
    def class_counts(split: Any, classes: int) -> tuple[str, np.ndarray]:
        return "images", split.class_counts(classes)

    def cards(self, metrics: Mapping[str, Any]) -> tuple[Card, ...]:
        return class_cards(metrics, len(self.classes))

    def report(self, evaluation: ClassifyEvaluation, subject: ReportSubject) -> TaskReport:
        """Scores of each class, confusions, mistakes, calibration, and where the network looks."""
        return report_classes(self, evaluation, subject)
