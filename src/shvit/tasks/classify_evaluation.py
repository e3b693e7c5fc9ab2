"""The result of evaluating a classifier: metrics, tables and figures."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Float64, Int64

from ..classnames import unique_names
from ..console import visible
from ..errors import counted
from ..figures import literal_text, new_figure, save_png
from ..files import write_csv
from .base import TextTable


@dataclass(frozen=True)
class Outputs:
    """The logits of evaluated images, in the order of their indices."""

    indices: Int64[np.ndarray, " n"]
    """Index of each image in its split."""
    labels: Int64[np.ndarray, " n"]
    """True class numbers."""
    logits: Float32[np.ndarray, "n classes"]


@dataclass(frozen=True)
class ClassScores:
    """How well each class is recognized, from 0 to 1. A number that is undefined is 0."""

    images: Int64[np.ndarray, " classes"]
    """Number of images of each class."""
    predictions: Int64[np.ndarray, " classes"]
    """Number of images for which each class was predicted."""
    precision: Float64[np.ndarray, " classes"]
    """Share of the predictions of a class that are right."""
    recall: Float64[np.ndarray, " classes"]
    """Share of the images of a class that are recognized: its top-1 accuracy."""
    f1: Float64[np.ndarray, " classes"]
    """Harmonic mean of precision and recall."""

    @property
    def balanced_accuracy(self) -> float:
        """Mean recall of the classes that have images."""
        return float(self.recall[self.images > 0].mean())

    @property
    def macro_f1(self) -> float:
        """Mean F1 of the classes that have images or predictions."""
        return float(self.f1[self.images + self.predictions > 0].mean())


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
    outputs: Outputs | None = None
    """The logits of each image, if they were kept."""

    @property
    def images(self) -> int:
        return int(self.confusion.sum())

    @property
    def top1(self) -> float:
        """Share of the images whose most probable class is the true one."""
        return float(np.trace(self.confusion)) / self.images

    def scores(self) -> ClassScores:
        """Precision, recall and F1 of each class."""
        images, predictions, right = self.confusion.sum(axis=1), self.confusion.sum(axis=0), self.confusion.diagonal()
        precision, recall = right / np.maximum(1, predictions), right / np.maximum(1, images)
        return ClassScores(images, predictions, precision, recall, 2 * right / np.maximum(1, images + predictions))

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
