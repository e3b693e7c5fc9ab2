"""The light detector with a mask for each object, as a sum of prototype masks.

Sources: D. Bolya et al., "YOLACT: Real-time Instance Segmentation", ICCV 2019 (prototypes, and a loss inside the box);
C. Lyu et al., "RTMDet", 2022 (Dice loss).
"""

from collections.abc import Sequence
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, binary_cross_entropy_with_logits, pad

from .assignment import Assignment
from .detector import LAYOUTS, Backbone, Target
from .light import STRIDES, LightDetector, Separable, TransposedConv, neck_width
from .mask_rcnn import MASK_SIDE
from .shapes import Maps

PROTOTYPES = 32
STRIDE = STRIDES[0] // 2
"""Pixels of the input per pixel of a prototype."""
OBJECTS = 100
"""Number of rows in the outputs."""
MASKS_PER_IMAGE = 60
"""Largest number of positions per image whose masks are trained, to bound the memory of a step."""


class LightMaskDetector(LightDetector):
    """Boxes, classes and masks of the 100 objects with the highest scores."""

    extras: ClassVar[int] = PROTOTYPES

    def __init__(self, backbone: Backbone, num_classes: int, layout: str = LAYOUTS[0]) -> None:
        super().__init__(backbone, num_classes, layout)
        width = neck_width([channels for channels, _ in backbone.maps[-3:]])
        self.prototypes = nn.Sequential(
            Separable(width), TransposedConv(width, width), nn.ReLU(), nn.Conv2d(width, PROTOTYPES, 1)
        )

    @staticmethod
    def output_width(classes: int) -> int | None:
        """Number of values in an output row: a box, a score, a class index and a mask."""
        return 6 + MASK_SIDE**2

    @classmethod
    def rows_at(cls, side: int, classes: int) -> int | None:
        """100, or fewer if a small image has fewer scores."""
        return min(OBJECTS, classes * (LightDetector.rows_at(side, classes) or 0))

    def results(
        self,
        levels: list[Maps],
        logits: Float[Tensor, "b n classes"],
        boxes: Float[Tensor, "b n 4"],
        extras: Float[Tensor, "b n extras"],
    ) -> Float[Tensor, "b 100 790"]:
        """For each object: its box in pixels, its score, its class index, and 28x28 mask probabilities inside the box.
        Objects are sorted by score."""
        classes = logits.shape[2]
        count = min(OBJECTS, logits.shape[1] * classes)
        scores, best = logits.sigmoid().flatten(1).topk(count, dim=1)
        places = (best // classes).long()
        labels = best - places * classes
        boxes, coefficients = _rows(boxes, places), _rows(extras, places)
        masks = masks_inside(boxes, coefficients, self.prototypes(levels[0]).float())
        rows = [boxes, scores[..., None], labels[..., None].to(boxes.dtype), masks.sigmoid().flatten(2)]
        return torch.cat(rows, 2)

    def extra_loss(
        self,
        levels: list[Maps],
        extras: Float[Tensor, "b n extras"],
        targets: Sequence[Target],
        assignments: Sequence[Assignment],
    ) -> Float[Tensor, ""]:
        """Mean cross-entropy plus Dice loss of the masks, inside the boxes of their objects."""
        prototypes = self.prototypes(levels[0]).float()
        losses = [prototypes.sum() * 0]  # so that all weights have gradients
        with torch.autocast(prototypes.device.type, enabled=False):
            for image, (target, given) in enumerate(zip(targets, assignments, strict=True)):
                places = (given.objects >= 0).nonzero()[:, 0]
                if len(places) > MASKS_PER_IMAGE:
                    places = places[given.quality[places].topk(MASKS_PER_IMAGE).indices]
                if not len(places):
                    continue
                assert target.masks is not None
                objects = given.objects[places]
                small = _reduced(target.masks[objects], prototypes.shape[2], prototypes.shape[3])
                logits = torch.einsum("np,phw->nhw", extras[image, places], prototypes[image])
                losses.append(mask_loss(logits, small, target.boxes[objects]).mean())
        return torch.stack(losses).sum() / max(1, len(losses) - 1)

    def fold_outputs(self, x: Float[Tensor, "b in h w"]) -> list[Tensor]:
        """The outputs that are compared after folding."""
        levels = self.features(x)
        return [*self.head(levels), self.prototypes(levels[0])]


def _reduced(masks: Tensor, height: int, width: int) -> Float[Tensor, "n height width"]:
    """Masks at the resolution of the prototypes. Masks of an image that was padded in its batch are padded first."""
    missing = width * STRIDE - masks.shape[2], height * STRIDE - masks.shape[1]
    return avg_pool2d(pad(masks.float(), (0, missing[0], 0, missing[1])), STRIDE)


def mask_loss(
    logits: Float[Tensor, "n h w"], expected: Float[Tensor, "n h w"], boxes: Float[Tensor, "n 4"]
) -> Float[Tensor, " n"]:
    """Mean cross-entropy plus Dice loss inside each box. The boxes are in pixels of the input."""
    rows, columns = ((torch.arange(side, device=boxes.device) + 0.5) * STRIDE for side in logits.shape[1:])
    left, top, right, bottom = boxes.T[:, :, None]
    half = STRIDE / 2  # a box contains at least one pixel of a prototype
    inside = ((rows >= top - half) & (rows <= bottom + half))[:, :, None]
    inside = inside & ((columns >= left - half) & (columns <= right + half))[:, None, :]
    entropy = binary_cross_entropy_with_logits(logits, expected, reduction="none") * inside
    probabilities = logits.sigmoid() * inside
    expected = expected * inside
    shared = 2 * (probabilities * expected).sum((1, 2)) + 1
    dice = 1 - shared / (probabilities.square().sum((1, 2)) + expected.square().sum((1, 2)) + 1)
    return entropy.sum((1, 2)) / inside.sum((1, 2)).clamp(min=1) + dice


def masks_inside(
    boxes: Float[Tensor, "b n 4"], coefficients: Float[Tensor, "b n p"], prototypes: Float[Tensor, "b p h w"]
) -> Float[Tensor, "b n 28 28"]:
    """Sums of prototypes, sampled at 28x28 points inside each box (bilinear, as products with two matrices)."""
    height, width = prototypes.shape[2:]
    whole = (coefficients @ prototypes.flatten(2)).unflatten(2, (height, width))
    down = _sampling(boxes[..., 1], boxes[..., 3], height)
    across = _sampling(boxes[..., 0], boxes[..., 2], width)
    return down @ whole @ across.transpose(2, 3)


def _sampling(start: Float[Tensor, "b n"], end: Float[Tensor, "b n"], length: int) -> Float[Tensor, "b n 28 length"]:
    """Weights for 28 points between `start` and `end` (in pixels of the input), from `length` pixels of a prototype."""
    shares = (torch.arange(MASK_SIDE, device=start.device, dtype=start.dtype) + 0.5) / MASK_SIDE
    points = start[..., None] + (end - start)[..., None] * shares
    points = (points / STRIDE - 0.5).clamp(0, length - 1)
    pixels = torch.arange(length, device=start.device, dtype=start.dtype)
    return (1 - (points[..., None] - pixels).abs()).clamp(min=0)


def _rows(values: Float[Tensor, "b n c"], places: Tensor) -> Float[Tensor, "b m c"]:
    """The rows of each image at these places."""
    return values.gather(1, places[..., None].expand(-1, -1, values.shape[2]))
