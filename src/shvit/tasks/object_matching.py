"""Match detections with objects as COCO does, and choose the score threshold that balances precision and recall."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torchvision.ops import box_iou

from ..data.letterbox import GroundTruth
from .objects import Detections

MIN_IOU = 0.5
"""IoU at which a detection counts as an object's."""
RECALLS = np.linspace(0, 1, 101)
"""Recalls at which COCO reads the precision."""
FOUND, IN_CROWD, FALSE_ALARM = 1, 0, -1


@dataclass(frozen=True)
class Matched:
    """All detections, highest score first, each with the object that it finds."""

    objects: Int64[np.ndarray, " classes"]
    """Number of objects of each class, without crowds."""
    scores: Float[np.ndarray, " n"]
    labels: Int64[np.ndarray, " n"]
    images: Int64[np.ndarray, " n"]
    """Number of the image among the evaluated images."""
    rows: Int64[np.ndarray, " n"]
    """Row of the detection in its image."""
    verdicts: Int64[np.ndarray, " n"]
    """`FOUND`, `FALSE_ALARM`, or `IN_CROWD` for a detection in a crowd."""
    owners: Int64[np.ndarray, " n"]
    """Index of the object found in its image; -1 for none."""

    @classmethod
    def of(cls, classes: int, truths: Sequence[GroundTruth], found: Sequence[Detections]) -> "Matched":
        """Match detections and objects as COCO does: the detections by score, each with the best free object."""
        parts, objects = [], np.zeros(classes, np.int64)
        for number, (truth, one) in enumerate(zip(truths, found, strict=True)):
            real = truth.objects.labels[~truth.objects.crowd]
            objects += np.bincount(real, minlength=classes)
            verdicts, owners = _match(truth, one)
            columns = one.scores.numpy(), one.labels.numpy(), np.full(len(one), number), np.arange(len(one))
            parts.append((*columns, verdicts, owners))
        columns = [np.concatenate(column) for column in zip(*parts, strict=True)]
        order = np.argsort(-columns[0], kind="stable")
        return cls(objects, *(column[order] for column in columns))

    def of_class(self, label: int) -> tuple[Bool[np.ndarray, " n"], Float[np.ndarray, " n"]]:
        """For the detections of a class: whether each is right, and its score. Without ignored detections."""
        chosen = (self.labels == label) & (self.verdicts != IN_CROWD)
        return self.verdicts[chosen] == FOUND, self.scores[chosen]

    def precisions(self, label: int) -> Float[np.ndarray, "101"]:
        """The highest precision of a class at each of `RECALLS` or at a higher recall; 0 if it is never reached."""
        right, _ = self.of_class(label)
        hits = np.cumsum(right)
        precision = np.maximum.accumulate((hits / np.arange(1, len(hits) + 1))[::-1])[::-1]
        places = np.searchsorted(hits / max(1, self.objects[label]), RECALLS, side="left")
        return np.append(precision, 0.0)[np.minimum(places, len(precision))]

    def best_threshold(self) -> tuple[float, float, float]:
        """The score with the highest F1 over all objects, with its precision and recall."""
        kept = self.verdicts != IN_CROWD
        right, scores, total = self.verdicts[kept] == FOUND, self.scores[kept], int(self.objects.sum())
        if not right.any():
            return 1.0, 0.0, 0.0
        hits, counts = np.cumsum(right), np.arange(1, len(right) + 1)
        last = np.append(np.diff(scores) != 0, True)  # a threshold cannot divide equal scores
        best = int(np.argmax(np.where(last, 2 * hits / (counts + total), -1)))
        return float(scores[best]), float(hits[best] / counts[best]), float(hits[best] / total)


def _match(truth: GroundTruth, found: Detections) -> tuple[Int64[np.ndarray, " n"], Int64[np.ndarray, " n"]]:
    """For each detection of an image: its verdict, and the object that it finds."""
    objects, count = truth.objects, len(found)
    verdicts, owners = np.full(count, FALSE_ALARM), np.full(count, -1)
    if not count or not len(objects):
        return verdicts, owners
    boxes = torch.from_numpy(objects.boxes)
    same = found.labels.numpy()[:, None] == objects.labels[None]
    overlaps = np.where(same & ~objects.crowd, box_iou(found.boxes, boxes).numpy(), 0)
    corners = (
        torch.maximum(found.boxes[:, None, :2], boxes[None, :, :2]),
        torch.minimum(found.boxes[:, None, 2:], boxes[None, :, 2:]),
    )
    shared = (corners[1] - corners[0]).clamp(min=0).prod(2) / (found.boxes[:, 2:] - found.boxes[:, :2]).prod(1)[:, None]
    crowded = ((shared.numpy() >= MIN_IOU) & same & objects.crowd).any(1)
    for index in range(count):  # highest score first
        best = int(overlaps[index].argmax())
        if overlaps[index, best] >= MIN_IOU:
            verdicts[index], owners[index] = FOUND, best
            overlaps[:, best] = 0
        elif crowded[index]:
            verdicts[index] = IN_CROWD
    return verdicts, owners


def best_f1(classes: int, truths: Sequence[GroundTruth], found: Sequence[Detections]) -> dict[str, float]:
    """The score threshold with the highest F1 over all objects, with its F1, precision and recall.

    Empty if the images have no objects, or if no detection is right.
    """
    threshold, precision, recall = Matched.of(classes, truths, found).best_threshold()
    if not precision * recall:
        return {}
    f1 = 2 * precision * recall / (precision + recall)
    return {"threshold": threshold, "f1": f1, "precision": precision, "recall": recall}
