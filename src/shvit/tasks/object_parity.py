"""Whether an exported detector finds the same objects as PyTorch."""

from typing import Any

import torch
from torchvision.ops import batched_nms, box_iou

from .objects import THRESHOLD, Detections, mask_overlaps

SCORE_BOUNDS = {"fp32": 1e-3, "fp16": 2e-2, "bf16": 1e-1, "int8": 2.5e-1}
"""Maximum difference of a score due to rounding."""
SAME_BOX = {"fp32": 0.9, "fp16": 0.9, "bf16": 0.9, "int8": 0.75}
"""Minimum IoU at which two boxes count as the same."""
SAME_MASKS = {"fp32": 0.9, "fp16": 0.9, "bf16": 0.9, "int8": 0.5}
"""Minimum mean IoU of masks."""
MATCHED = {"fp32": 0.98, "fp16": 0.9, "bf16": 0.8, "int8": 0.5}
"""Minimum fraction of objects that both the file and PyTorch find. If two boxes of one object have almost the same
score, rounding decides which is kept. For int8, the loss of accuracy is limited separately."""
DUPLICATE = 0.5
"""IoU of two boxes of a class above which they are compared as one object."""
CERTAIN = 20
"""Maximum number of objects to compare per image. The objects with the highest scores are compared, if their scores are
at least `THRESHOLD`. If no image has such an object, as with an untrained network, lower scores count as well."""


def compare(pairs: list[tuple[Detections, Detections]], precision: str) -> tuple[dict[str, Any], str | None]:
    """Match the file's best objects with PyTorch's objects, and the reverse. Compare scores and masks of the matches.

    `pairs` holds, for each image, the objects that the file finds and those that PyTorch finds. See `Task.compare`.
    """
    bound, required, same = SCORE_BOUNDS[precision], MATCHED[precision], SAME_BOX[precision]
    least = THRESHOLD if any((one.scores >= THRESHOLD).any() for pair in pairs for one in pair) else 0.0
    wanted, differences, overlaps = 0, [], []
    for found, expected in ((once(one), once(other)) for one, other in pairs):
        for some, others in ((expected, found), (found, expected)):
            count = min(CERTAIN, int((some.scores >= least).sum()))
            indices, matches = match_objects(some, others, count, same)
            wanted += count
            differences += (some.scores[indices] - others.scores[matches]).abs().tolist()
            if some.masks is not None and others.masks is not None:
                overlaps += mask_overlaps(some.masks, others.masks, indices, matches)
    if precision == "int8":  # objects with very different scores count as not found, but some are expected
        differences = [difference for difference in differences if difference <= bound]
    share = len(differences) / wanted if wanted else 1.0
    numbers = {
        "objects": wanted,
        "matched": share,
        "score_difference": max(differences, default=0.0),
        "mask_overlap": sum(overlaps) / len(overlaps) if overlaps else None,
        "bound": bound,
    }
    fault = None
    if not least and precision == "int8":
        pass  # low scores are noise, which int8 changes; accuracy has been checked
    elif share < required:
        fault = f"{share:.1%} of its objects match PyTorch's, less than the required {required:.0%}"
    elif not numbers["score_difference"] <= bound:
        fault = f"its scores differ by {numbers['score_difference']:.2g}, more than the allowed {bound:g}"
    elif overlaps and numbers["mask_overlap"] < (least_iou := SAME_MASKS[precision]):
        overlap = numbers["mask_overlap"]
        fault = f"its masks have a mean IoU of {overlap:.2f} with PyTorch's, below the required {least_iou}"
    return numbers, fault


def once(objects: Detections) -> Detections:
    """Each object once: of boxes of a class with an IoU above `DUPLICATE`, the one with the highest score.

    A detector without non-maximum suppression also returns low scores for other boxes of an object. Rounding decides
    which of several almost equal boxes gets the high score.
    """
    kept = batched_nms(objects.boxes, objects.scores, objects.labels, DUPLICATE)
    masks = None if objects.masks is None else [objects.masks[index] for index in kept.tolist()]
    return Detections(objects.boxes[kept], objects.scores[kept], objects.labels[kept], masks)


def match_objects(some: Detections, others: Detections, count: int, same: float) -> tuple[list[int], list[int]]:
    """Match the first `count` objects of `some` with `others`. Return the indices of the matched objects in both.

    Two objects match if they have the same class and their boxes have an IoU of at least `same`.
    """
    if not count or not len(others):
        return [], []
    overlaps = box_iou(some.boxes[:count], others.boxes)
    overlaps[some.labels[:count, None] != others.labels] = 0
    best, matches = overlaps.max(1)
    indices = torch.nonzero(best >= same)[:, 0]
    return indices.tolist(), matches[indices].tolist()
