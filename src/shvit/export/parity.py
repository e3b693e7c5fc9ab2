"""Whether an exported file computes what the model does: its outputs on real images, held against PyTorch's."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torchvision.ops import box_iou

from ..data.letterbox import Letterbox
from ..tasks import Described, task_of
from ..tasks.classify import Classify
from ..tasks.detect import THRESHOLD
from ..tasks.objects import Detections, mask_overlaps

BOUNDS = {"fp32": 1e-4, "fp16": 2e-2, "bf16": 1e-1, "int8": 5e-1}
"""Largest difference of a logit that is rounding, as a share of the largest logit."""
AGREEMENT = 0.9
"""Share of the images whose first label must be PyTorch's. Where two labels tie within the bound, either is."""

SCORE_BOUNDS = {"fp32": 1e-3, "fp16": 2e-2, "bf16": 1e-1, "int8": 2.5e-1}
"""Largest difference of an object's score that is rounding."""
SAME_BOX = {"fp32": 0.9, "fp16": 0.9, "bf16": 0.9, "int8": 0.75}
"""Overlap (IoU) from which two boxes are the same, and two masks on average."""
MATCHED = {"fp32": 0.98, "fp16": 0.9, "bf16": 0.8, "int8": 0.5}
"""Share of the objects that both must have found. Where two boxes of one object are as likely, rounding decides which
is kept; what int8 costs is the floor's to judge."""
CERTAIN = 20
"""Objects of an image that are looked for among all that the other found: the most certain, from `THRESHOLD` on. Where
no image has such an object, any: an untrained network's are compared, too."""


def compare(
    model: Described, outputs: Tensor, expected: Tensor, precision: str, side: int
) -> tuple[dict[str, Any], str | None]:
    """Numbers for the report; and why the file is not to be trusted, or None where it is.

    Args:
        model: Whose outputs these are.
        outputs: Of the file.
        expected: Of PyTorch in fp32 for the same images.
        precision: Of the file.
        side: Of the images, in pixels.
    """
    task = task_of(model)
    if isinstance(task, Classify):
        return _logits(outputs, expected, BOUNDS[precision])
    frames = [Letterbox(side, side, 1.0, 1.0)] * len(outputs)
    pairs = zip(task.decode(outputs, frames, 0.0), task.decode(expected, frames, 0.0), strict=True)
    return _objects(list(pairs), precision)


def _logits(
    outputs: Float[Tensor, "n c"], expected: Float[Tensor, "n c"], bound: float
) -> tuple[dict[str, Any], str | None]:
    difference = float((outputs - expected).abs().max())
    relative, alike = difference / float(expected.abs().max()), agreement(outputs, expected, bound)
    fault = None
    if not relative <= bound:  # also catches NaN
        fault = f"its logits differ by {relative:.2g} of the largest, allowed is {bound:g}"
    elif alike < AGREEMENT:
        fault = f"only {alike:.1%} of its first labels are PyTorch's, required are {AGREEMENT:.0%}"
    numbers = {"max_difference": difference, "relative_difference": relative, "top1_agreement": alike, "bound": bound}
    return numbers, fault


def agreement(outputs: Float[Tensor, "n c"], expected: Float[Tensor, "n c"], bound: float) -> float:
    """Share of the images whose first label is the expected one, or as good within the bound."""
    chosen = expected.gather(1, outputs.argmax(1, keepdim=True))[:, 0]
    best = expected.amax(1)
    tie = min(bound, 1e-3) * expected.abs().max()
    return float((best - chosen <= tie).float().mean())


def _objects(pairs: list[tuple[Detections, Detections]], precision: str) -> tuple[dict[str, Any], str | None]:
    """Each side's most certain objects are looked for among the other's: class, box, and score."""
    bound, required, same = SCORE_BOUNDS[precision], MATCHED[precision], SAME_BOX[precision]
    least = THRESHOLD if any((one.scores >= THRESHOLD).any() for pair in pairs for one in pair) else 0.0
    wanted, differences, overlaps = 0, [], []
    for found, expected in pairs:
        for some, others in ((expected, found), (found, expected)):
            count = min(CERTAIN, int((some.scores >= least).sum()))
            places, matches = matched(some, others, count, same)
            wanted += count
            differences += (some.scores[places] - others.scores[matches]).abs().tolist()
            if some.masks is not None and others.masks is not None:
                overlaps += mask_overlaps(some.masks, others.masks, places, matches)
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
        pass  # noise in int8 is other noise; the floor has judged
    elif share < required:
        fault = f"only {share:.1%} of its objects are PyTorch's, required are {required:.0%}"
    elif not numbers["score_difference"] <= bound:
        fault = f"its scores differ by {numbers['score_difference']:.2g}, allowed is {bound:g}"
    elif overlaps and numbers["mask_overlap"] < same:
        fault = f"its masks overlap PyTorch's by {numbers['mask_overlap']:.2f} on average, required are {same}"
    return numbers, fault


def matched(some: Detections, others: Detections, count: int, same: float) -> tuple[list[int], list[int]]:
    """Places among the first `count` objects that were also found by others, and the places of those.

    A box is found where one of the same class overlaps it by `same` at least.
    """
    if not count or not len(others):
        return [], []
    overlaps = box_iou(some.boxes[:count], others.boxes)
    overlaps[some.labels[:count, None] != others.labels] = 0
    best, matches = overlaps.max(1)
    places = torch.nonzero(best >= same)[:, 0]
    return places.tolist(), matches[places].tolist()
