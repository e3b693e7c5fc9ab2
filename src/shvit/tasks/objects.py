"""What detection and segmentation share: objects that were found, and COCO's twelve numbers for them.

Source: T.-Y. Lin et al., "Microsoft COCO: common objects in context", 2014; computed by faster-coco-eval.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any

import numpy as np
from jaxtyping import Float, Int64
from torch import Tensor

from ..data.coco import Objects
from ..data.letterbox import GroundTruth, run_lengths
from ..errors import InputError

NUMBERS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
"""COCO's, in its order: average precision, then recall with so many detections an image; small, medium, large."""

RunLengths = dict[str, Any]
"""COCO's packed run-length code of a mask: `size` and `counts`."""


@dataclass(frozen=True)
class Detections:
    """The objects found in one image, most certain first."""

    boxes: Float[Tensor, "n 4"]
    """Left, top, right, bottom in pixels of the image."""
    scores: Float[Tensor, " n"]
    """From 0 to 1."""
    labels: Int64[Tensor, " n"]
    """Places among the classes."""
    masks: Sequence[RunLengths] | None = None

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class ObjectsEvaluation:
    """COCO's numbers on a set of images, as shares of 1; -1 where there is no such object."""

    classes: tuple[str, ...]
    numbers: dict[str, dict[str, float]]
    """Of boxes (`bbox`) and, for segmentation, of masks (`segm`)."""
    class_ap: dict[str, list[float]]
    """The same kinds: the AP of each class."""
    images: int
    bad: dict[int, str] = field(default_factory=dict)
    """Place of each image that could not be used, and why."""

    def metrics(self) -> dict[str, Any]:
        """AP and AP50 are those of the masks, or of the boxes where there are no masks."""
        judged = self.numbers.get("segm", self.numbers["bbox"])
        return {
            "AP": judged["AP"],
            "AP50": judged["AP50"],
            **self.numbers,
            "images": self.images,
            "bad_images": len(self.bad),
        }

    def per_class(self) -> dict[str, dict[str, float]]:
        """AP of each class that occurs, by kind."""
        return {
            name: {kind: values[place] for kind, values in self.class_ap.items()}
            for place, name in enumerate(self.classes)
            if any(values[place] >= 0 for values in self.class_ap.values())
        }


def check_tools() -> None:
    """Raises InputError where faster-coco-eval is missing, without which nothing can be judged."""
    if find_spec("faster_coco_eval") is None:
        raise InputError("detection and segmentation need faster-coco-eval: pip install 'shvit[coco]'")


def judge(
    classes: tuple[str, ...], truths: Sequence[GroundTruth], found: Sequence[Detections], kind: str
) -> tuple[dict[str, float], list[float]]:
    """COCO's twelve numbers, and the AP of each class, of boxes (`bbox`) or masks (`segm`).

    An object without mask is no error when masks are judged, whether it is found or not.
    """
    from faster_coco_eval import COCO, COCOeval_faster

    known = COCO(
        {
            "images": [
                {"id": truth.image_id, "height": truth.letterbox.height, "width": truth.letterbox.width}
                for truth in truths
            ],
            "categories": [{"id": place, "name": name} for place, name in enumerate(classes, 1)],
            "annotations": [
                {"id": number, **row}
                for number, row in enumerate(
                    (row for truth in truths for row in _annotations(truth.image_id, truth.objects, kind)), 1
                )
            ],
        }
    )
    rows = [
        row
        for truth, one in zip(truths, found, strict=True)
        for row in coco_results(truth.image_id, one, kind == "segm")
    ]
    if kind == "segm":  # or detections would count as small or large by their boxes, as no published number has it
        for row in rows:
            del row["bbox"]
    evaluation = COCOeval_faster(known, known.loadRes(rows), kind, print_function=lambda *_: None)  # pyright: ignore
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    numbers: dict[str, float] = dict(zip(NUMBERS, (float(value) for value in evaluation.stats[:12]), strict=True))
    precision = evaluation.eval["precision"][:, :, :, 0, -1]  # of all areas, with 100 detections an image
    return numbers, [_mean(precision[:, :, place]) for place in range(len(classes))]


def coco_results(image_id: int, found: Detections, masks: bool, categories: Sequence[int] | None = None) -> list[dict]:
    """Rows as COCO wants results: image_id, category_id, bbox (left, top, width, height), score, segmentation.

    Args:
        image_id: As the data names the image.
        found: In the image.
        masks: Whether to give segmentations.
        categories: The id of each class; default: counted from 1.
    """
    corners = found.boxes.double().numpy()
    boxes = np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], 1).tolist()
    rows = [
        {
            "image_id": image_id,
            "category_id": categories[label] if categories else label + 1,
            "bbox": box,
            "score": score,
        }
        for box, score, label in zip(boxes, found.scores.tolist(), found.labels.tolist(), strict=True)
    ]
    if masks:
        for row, mask in zip(rows, found.masks or (), strict=True):
            row["segmentation"] = mask
    return rows


def encode(mask: np.ndarray) -> RunLengths:
    """The run-length code of a mask (height, width): plain data, fit for JSON."""
    from faster_coco_eval.core import mask as tools

    code = tools.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": list(code["size"]), "counts": code["counts"].decode()}


def mask_overlaps(
    some: Sequence[RunLengths], others: Sequence[RunLengths], places: Sequence[int], matches: Sequence[int]
) -> list[float]:
    """Intersection over union of pairs of masks."""
    from faster_coco_eval.core import mask

    iou: Any = mask.iou
    pairs = zip(places, matches, strict=True)
    return [float(iou([some[place]], [others[match]], [False]).item()) for place, match in pairs]


def _annotations(image_id: int, objects: Objects, kind: str) -> list[dict[str, Any]]:
    rows = []
    for place in range(len(objects)):
        left, top, right, bottom = (float(value) for value in objects.boxes[place])
        row = {
            "image_id": image_id,
            "category_id": int(objects.labels[place]) + 1,
            "bbox": [left, top, right - left, bottom - top],
            "area": float(objects.areas[place]),
            "iscrowd": int(objects.crowd[place]),
        }
        if kind == "segm":
            segment = objects.segments[place]
            if segment is None:
                corners = [left, top, right, top, right, bottom, left, bottom]
                row |= {"segmentation": [corners], "iscrowd": 1}
            elif isinstance(segment, dict):
                row["segmentation"] = run_lengths(segment)
            else:
                row["segmentation"] = [points.tolist() for points in segment]
        rows.append(row)
    return rows


def _mean(precision: np.ndarray) -> float:
    known = precision[precision > -1]
    return float(known.mean()) if known.size else -1.0
