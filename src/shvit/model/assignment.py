"""Which positions of a detector learn which objects, and the losses that depend on it.

Sources: C. Feng et al., "TOOD: Task-aligned One-stage Object Detection", ICCV 2021 (alignment, equations 1 and 2); X. Li
et al., "Generalized Focal Loss", NeurIPS 2020 (quality focal loss, equation 3); A. Wang et al., "YOLOv10", NeurIPS 2024
(the same assignment with one position per object, for inference without non-maximum suppression).
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits
from torchvision.ops import box_iou, generalized_box_iou_loss

from .detector import Target

SCORE_POWER, OVERLAP_POWER = 1.0, 6.0
"""Powers of score and IoU in the alignment of a position with an object, as in TOOD."""
FOCUS = 2.0
"""Exponent of the quality focal loss, as in its paper."""
BOX_WEIGHT = 2.0
"""Weight of the box loss; the weight of the class loss is 1. Both as in TOOD."""


@dataclass(frozen=True)
class Assignment:
    """The object of each position."""

    objects: Int64[Tensor, " n"]
    """Index of the object that each position learns; -1 for background."""
    quality: Float[Tensor, " n"]
    """The score that each position should give to the class of its object: 0 for background."""
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
    for several objects learns the one that its box overlaps most. The quality is the alignment, scaled so that the
    largest quality of an object equals the largest IoU of its positions.

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
    alignment, overlaps = alignment * chosen, overlaps * chosen
    scale = overlaps.amax(1, keepdim=True) / alignment.amax(1, keepdim=True).clamp(min=1e-30)
    matched = chosen.any(0)
    objects[matched] = winner[matched]
    return Assignment(objects, (alignment * scale).amax(0).clamp(max=1.0), ignored & ~matched)


def _inside(centers: Float[Tensor, "n 2"], boxes: Float[Tensor, "m 4"], least_side: float) -> Bool[Tensor, "m n"]:
    """Whether each center lies in each box. Smaller boxes are first extended to `least_side`."""
    middle, half = (boxes[:, :2] + boxes[:, 2:]) / 2, (boxes[:, 2:] - boxes[:, :2]).clamp(min=least_side) / 2
    return ((centers - middle[:, None]).abs() <= half[:, None]).all(2)


def quality_focal_loss(logits: Float[Tensor, "*size"], quality: Float[Tensor, "*size"]) -> Float[Tensor, "*size"]:
    """Cross-entropy of a score with the quality that it should have, weighted by |score - quality|^`FOCUS`."""
    weight = (logits.detach().sigmoid() - quality).abs() ** FOCUS
    return weight * binary_cross_entropy_with_logits(logits, quality, reduction="none")


def detection_loss(
    logits: Float[Tensor, "b n classes"],
    boxes: Float[Tensor, "b n 4"],
    centers: Float[Tensor, "n 2"],
    targets: list[Target],
    count: int,
    least_side: float,
) -> Float[Tensor, ""]:
    """Quality focal loss of the classes plus `BOX_WEIGHT` x GIoU loss of the boxes, weighted by quality.

    Both are divided by the sum of all qualities. The arguments are those of `assign`, for a batch.
    """
    wanted, weights = torch.zeros_like(logits), torch.ones_like(logits[..., 0])
    found, expected, qualities = [], [], []
    for index, target in enumerate(targets):
        given = assign(logits[index].detach().sigmoid(), boxes[index].detach(), centers, target, count, least_side)
        positive = given.objects >= 0
        matched = given.objects[positive]
        wanted[index, positive, target.labels[matched]] = given.quality[positive]
        weights[index, given.ignored] = 0
        found.append(boxes[index, positive])
        expected.append(target.boxes[matched])
        qualities.append(given.quality[positive])
    quality = torch.cat(qualities)
    total = quality.sum().clamp(min=1.0)
    classes = (quality_focal_loss(logits, wanted) * weights[..., None]).sum()
    located = (generalized_box_iou_loss(torch.cat(found), torch.cat(expected)) * quality).sum()
    return (classes + BOX_WEIGHT * located) / total
