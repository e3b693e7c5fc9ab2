"""Common parts of detection and segmentation: detected objects, and COCO's twelve metrics.

Source: T.-Y. Lin et al., "Microsoft COCO: common objects in context", 2014; computed by faster-coco-eval.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int64
from torch import Tensor

from ..data.coco import Objects
from ..data.letterbox import GroundTruth, run_lengths
from ..errors import InputError
from ..files import write_csv
from .base import RunLengths, TextTable

THRESHOLD = 0.05
"""Minimum score of objects in end-to-end files, and of objects that are evaluated with anchors: usual for COCO."""
COCO_METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
"""COCO's metrics in its order: average precision, then average recall with 1, 10 and 100 detections per image; s, m
and l stand for small, medium and large objects."""


@dataclass(frozen=True)
class Detections:
    """The objects in one image, highest score first."""

    boxes: Float[Tensor, "n 4"]
    """Left, top, right, bottom, in pixels of the image."""
    scores: Float[Tensor, " n"]
    """From 0 to 1."""
    labels: Int64[Tensor, " n"]
    """Class indices."""
    masks: Sequence[RunLengths] | None = None

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class ObjectOutputs:
    """The ground truth of evaluated images, and what was found in them."""

    indices: Sequence[int]
    """Index of each image in its split."""
    truths: Sequence[GroundTruth]
    found: Sequence[Detections]


@dataclass(frozen=True)
class ObjectsEvaluation:
    """COCO's metrics on a set of images, from 0 to 1. A metric is -1 if there are no objects to measure it on."""

    classes: tuple[str, ...]
    numbers: dict[str, dict[str, float]]
    """The metrics of boxes (`bbox`) and, for segmentation, of masks (`segm`)."""
    class_ap: dict[str, list[float]]
    """The AP of each class, under the same keys (`bbox`, `segm`) as `numbers`."""
    images: int
    bad: dict[int, str] = field(default_factory=dict)
    """The reason why an image could not be used, by image index."""
    outputs: ObjectOutputs | None = None
    """The results of each image, if they were kept."""
    best_f1: dict[str, float] = field(default_factory=dict)
    """`threshold`, `f1`, `precision` and `recall` at the score threshold with the highest F1; empty if unknown."""

    @property
    def _main(self) -> dict[str, float]:
        """The metrics of masks, or of boxes if there are no masks."""
        return self.numbers.get("segm", self.numbers["bbox"])

    def metrics(self) -> dict[str, Any]:
        """AP and AP50 of masks, or of boxes if there are no masks; then all metrics."""
        return {
            "AP": self._main["AP"],
            "AP50": self._main["AP50"],
            **self.numbers,
            **({"best_f1": self.best_f1} if self.best_f1 else {}),
            "images": self.images,
            "bad_images": len(self.bad),
        }

    def per_class(self) -> dict[str, dict[str, float]]:
        """AP of each class that occurs, for boxes and masks."""
        return {
            name: {kind: values[index] for kind, values in self.class_ap.items()}
            for index, name in enumerate(self.classes)
            if any(values[index] >= 0 for values in self.class_ap.values())
        }

    def summary(self) -> str:
        """AP and AP50 as text."""
        return f"AP {_percent(self._main['AP'])}, AP50 {_percent(self._main['AP50'])}"

    def tables(self) -> list[TextTable]:
        """All metrics, with a row for boxes and one for masks."""
        names = {"bbox": "boxes", "segm": "masks"}
        rows = [[names[kind], *map(_percent, numbers.values())] for kind, numbers in self.numbers.items()]
        return [(["", *self.numbers["bbox"]], rows)]

    def write(self, out: Path, raw_cells: bool) -> list[Path]:
        """Write per_class.csv."""
        kinds = list(self.numbers)
        rows = [[name, *(f"{by_kind[kind]:.6f}" for kind in kinds)] for name, by_kind in self.per_class().items()]
        write_csv(out / "per_class.csv", ["class", *(f"{kind}_AP" for kind in kinds)], rows, raw_cells)
        return [out / "per_class.csv"]


def check_tools() -> None:
    """Raises InputError if faster-coco-eval is not installed."""
    if find_spec("faster_coco_eval") is None:
        raise InputError("detection and segmentation need faster-coco-eval: pip install 'shvit[coco]'")


def judge(
    classes: tuple[str, ...], truths: Sequence[GroundTruth], found: Sequence[Detections], kind: str
) -> tuple[dict[str, float], list[float]]:
    """COCO's twelve metrics and the AP of each class. `kind` selects boxes (`bbox`) or masks (`segm`).

    When masks are evaluated, ground truth without a mask is ignored, like a crowd.
    """
    from faster_coco_eval import COCO, COCOeval_faster

    known = COCO(
        {
            "images": [
                {"id": truth.image_id, "height": truth.letterbox.height, "width": truth.letterbox.width}
                for truth in truths
            ],
            "categories": [{"id": number, "name": name} for number, name in enumerate(classes, 1)],
            "annotations": [
                {"id": number, **row}
                for number, row in enumerate(
                    (row for truth in truths for row in _annotations(truth.image_id, truth.objects, kind)), 1
                )
            ],
        }
    )
    rows = [row for truth, one in zip(truths, found, strict=True) for row in coco_results(truth.image_id, one)]
    for row in rows:  # otherwise, masks would be small or large by the area of the box, unlike in published metrics
        row.pop("bbox" if kind == "segm" else "segmentation", None)
    evaluation = COCOeval_faster(known, known.loadRes(rows), kind, print_function=lambda *_: None)  # pyright: ignore
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    numbers: dict[str, float] = dict(zip(COCO_METRICS, (float(value) for value in evaluation.stats[:12]), strict=True))
    precision = evaluation.eval["precision"][:, :, :, 0, -1]  # all areas, 100 detections per image
    return numbers, [_mean(precision[:, :, index]) for index in range(len(classes))]


def coco_row(
    image_id: int | str, category: int, box: Sequence[float], score: float, mask: RunLengths | None
) -> dict[str, Any]:
    """A row of COCO's results format: image_id, category_id, bbox (left, top, width, height), score, segmentation."""
    left, top, right, bottom = box
    bbox = [left, top, right - left, bottom - top]
    row = {"image_id": image_id, "category_id": category, "bbox": bbox, "score": score}
    return row if mask is None else {**row, "segmentation": mask}


def coco_results(image_id: int, found: Detections) -> list[dict[str, Any]]:
    """Rows of COCO's results format, one per object. Category ids are the class indices plus 1."""
    labels, masks = (found.labels + 1).tolist(), found.masks or [None] * len(found)
    columns = zip(labels, found.boxes.tolist(), found.scores.tolist(), masks, strict=True)
    return [coco_row(image_id, *row) for row in columns]


def encode(mask: np.ndarray) -> RunLengths:
    """Run-length encode a mask (height, width). The result can be written as JSON."""
    from faster_coco_eval.core import mask as tools

    code = tools.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": list(code["size"]), "counts": code["counts"].decode()}


def mask_overlaps(
    some: Sequence[RunLengths], others: Sequence[RunLengths], indices: Sequence[int], matches: Sequence[int]
) -> list[float]:
    """IoU of pairs of masks: `some[i]` and `others[j]`, for each pair (i, j) from `indices` and `matches`."""
    from faster_coco_eval.core import mask

    iou: Any = mask.iou
    pairs = zip(indices, matches, strict=True)
    return [float(iou([some[index]], [others[match]], [False]).item()) for index, match in pairs]


def _annotations(image_id: int, objects: Objects, kind: str) -> list[dict[str, Any]]:
    rows = []
    for index in range(len(objects)):
        left, top, right, bottom = (float(value) for value in objects.boxes[index])
        row = {
            "image_id": image_id,
            "category_id": int(objects.labels[index]) + 1,
            "bbox": [left, top, right - left, bottom - top],
            "area": float(objects.areas[index]),
            "iscrowd": int(objects.crowd[index]),
        }
        if kind == "segm":
            segment = objects.segments[index]
            if segment is None:
                corners = [left, top, right, top, right, bottom, left, bottom]
                row |= {"segmentation": [corners], "iscrowd": 1}
            elif isinstance(segment, dict):
                row["segmentation"] = run_lengths(segment)
            else:
                row["segmentation"] = [points.tolist() for points in segment]
        rows.append(row)
    return rows


def _percent(value: float) -> str:
    return "–" if value < 0 else f"{value:.1%}"


def _mean(precision: np.ndarray) -> float:
    known = precision[precision > -1]
    return float(known.mean()) if known.size else -1.0
