"""Which positions of a detector learn which objects, and the losses that depend on it.

Sources: C. Feng et al., "TOOD: Task-aligned One-stage Object Detection", ICCV 2021 (alignment, equation 1); X. Li et
al., "Generalized Focal Loss", NeurIPS 2020 (quality focal loss, equation 3); A. Wang et al., "YOLOv10", NeurIPS 2024
(the same assignment with one position per object, for inference without non-maximum suppression).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits
from torchvision.ops import box_iou, generalized_box_iou_loss

from .detector import Target

SCORE_POWER, OVERLAP_POWER = 1.0, 3.0
"""Powers of score and IoU in the alignment of a position with an object."""
FOCUS = 1.0
"""Exponent of the quality focal loss. The paper uses 2; 1 found more in short runs with 80 classes (LOG.md)."""
BOX_WEIGHT = 2.0
"""Weight of the box loss; the weight of the class loss is 1. Both as in TOOD."""


@dataclass(frozen=True)
class Assignment:
    """The object of each position."""

    objects: Int64[Tensor, " n"]
    """Index of the object that each position learns; -1 for background."""
    quality: Float[Tensor, " n"]
    """The score that each position should give to the class of its object: the IoU of its box. 0 for background."""
    ignored: Bool[Tensor, " n"]
    """Positions inside crowds. Their scores are not trained."""


@torch.no_grad()
def assign(
    scores: Float[Tensor, "n classes"],
    boxes: Float[Tensor, "n 4"],
    centers: Float[Tensor, "n 2"],
    target: Target,
    count: int,
    least_side: float,
) -> Assignment:
    """Assign up to `count` positions to each object: those inside its box that are best aligned with it.

    The alignment is score^`SCORE_POWER` x IoU^`OVERLAP_POWER`, of the object's class and box. A position that is best
    for several objects learns the one that its box overlaps most.

    Args:
        scores, boxes: The current predictions at each position.
        centers: Centers of the positions, x and y in pixels.
        target: The objects of the image.
        count: Maximum number of positions per object.
        least_side: Smaller boxes are extended to this side, so that they contain a position.
    """
    objects, quality = torch.full_like(centers[:, 0], -1, dtype=torch.int64), torch.zeros_like(centers[:, 0])
    ignored = _inside(centers, target.crowds, 0.0).any(0)
    if not len(target.boxes):
        return Assignment(objects, quality, ignored)
    inside = _inside(centers, target.boxes, least_side)
    overlaps = box_iou(target.boxes, boxes)
    alignment = scores.T[target.labels] ** SCORE_POWER * overlaps**OVERLAP_POWER
    distances = torch.cdist((target.boxes[:, :2] + target.boxes[:, 2:]) / 2, centers)
    ranked = (alignment + 1e-9 / (1 + distances)) * inside  # before boxes overlap their objects, the nearest is best
    best = ranked.topk(min(count, len(centers)), dim=1).indices
    chosen = torch.zeros_like(inside).scatter_(1, best, True) & inside
    winner = overlaps.where(chosen, -1.0).argmax(0)
    chosen &= torch.arange(len(target.boxes), device=boxes.device)[:, None] == winner
    matched = chosen.any(0)
    objects[matched] = winner[matched]
    return Assignment(objects, (overlaps * chosen).amax(0), ignored & ~matched)


def _inside(centers: Float[Tensor, "n 2"], boxes: Float[Tensor, "m 4"], least_side: float) -> Bool[Tensor, "m n"]:
    """Whether each center lies in each box. Smaller boxes are first extended to `least_side`."""
    middle, half = (boxes[:, :2] + boxes[:, 2:]) / 2, (boxes[:, 2:] - boxes[:, :2]).clamp(min=least_side) / 2
    return ((centers - middle[:, None]).abs() <= half[:, None]).all(2)


def quality_focal_loss(logits: Float[Tensor, "*size"], quality: Float[Tensor, "*size"]) -> Float[Tensor, "*size"]:
    """Cross-entropy of a score with the quality that it should have, weighted by |score - quality|^`FOCUS`."""
    weight = (logits.detach().sigmoid() - quality).abs() ** FOCUS
    return weight * binary_cross_entropy_with_logits(logits, quality, reduction="none")


def class_loss(
    logits: Float[Tensor, "b n classes"], targets: Sequence[Target], assignments: Sequence[Assignment]
) -> Float[Tensor, ""]:
    """Quality focal loss of all classes, divided by the sum of all qualities, but at least by 1.

    Args:
        logits: The predictions for a batch.
        assignments: The result of `assign` for each image.
    """
    labels, quality, kept = _columns(targets, assignments)
    wanted = torch.zeros_like(logits).scatter_(2, labels[..., None], quality[..., None])
    return (quality_focal_loss(logits, wanted) * kept[..., None]).sum() / quality.sum().clamp(min=1.0)


def selection_loss(
    logits: Float[Tensor, "b n classes"], targets: Sequence[Target], assignments: Sequence[Assignment]
) -> Float[Tensor, ""]:
    """Cross-entropy of one score of each position with its quality, divided as in `class_loss`.

    That score is the one of the position's object; for background, the highest one. One is enough if all scores of a
    position are lowered alike. A focal loss would hardly lower scores of 0.3, which is what duplicates have.
    """
    labels, quality, kept = _columns(targets, assignments)
    labels = labels.where(quality > 0, logits.argmax(2))
    chosen = logits.gather(2, labels[..., None])[..., 0]
    losses = binary_cross_entropy_with_logits(chosen, quality, reduction="none")
    return (losses * kept).sum() / quality.sum().clamp(min=1.0)


def _columns(
    targets: Sequence[Target], assignments: Sequence[Assignment]
) -> tuple[Int64[Tensor, "b n"], Float[Tensor, "b n"], Float[Tensor, "b n"]]:
    """Of each position: the class of its object (0 for background), its quality, and 1, or 0 if it is ignored."""
    objects, quality, ignored = (
        torch.stack([getattr(given, name) for given in assignments]) for name in ("objects", "quality", "ignored")
    )
    labels = torch.zeros_like(objects)
    for row, places, target in zip(labels, objects, targets, strict=True):
        row[places >= 0] = target.labels[places[places >= 0]]
    return labels, quality, 1.0 - ignored.float()


def box_loss(
    boxes: Float[Tensor, "b n 4"], targets: Sequence[Target], assignments: Sequence[Assignment]
) -> Float[Tensor, ""]:
    """Mean GIoU loss of the boxes at positions with an object, times `BOX_WEIGHT`. Arguments: see `class_loss`."""
    found, expected = [], []
    for index, (target, given) in enumerate(zip(targets, assignments, strict=True)):
        positive = given.objects >= 0
        found.append(boxes[index, positive])
        expected.append(target.boxes[given.objects[positive]])
    losses = generalized_box_iou_loss(torch.cat(found), torch.cat(expected))
    return BOX_WEIGHT * losses.sum() / max(1, len(losses))
