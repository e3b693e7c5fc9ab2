"""Instance segmentation: a box, a class and a mask for each object, by Mask R-CNN."""

from collections.abc import Sequence
from typing import Any

from jaxtyping import Float
from torch import Tensor
from torchvision.models.detection.roi_heads import expand_boxes, expand_masks, paste_mask_in_image

from ..data.letterbox import Letterbox
from ..model.mask_rcnn import MASK_SIDE
from .base import RunLengths
from .detect import Detect
from .objects import THRESHOLD, Detections, encode

PROPOSALS = 512
"""Default number of proposals per training image."""


class Segment(Detect):
    """Instance segmentation, trained with the sum of Mask R-CNN's five losses.

    Args:
        classes: Names, in the order of the scores.
        frozen_norms: See `Detect`.
        proposals: Number of proposals per training image that the second stage is trained on.
    """

    name = "segment"
    recipe_family = "segment"
    detector = "mask_rcnn"
    has_masks = True
    min_score = THRESHOLD
    kinds = ("bbox", "segm")

    def __init__(self, classes: Sequence[str], frozen_norms: str = "none", proposals: int = PROPOSALS) -> None:
        super().__init__(classes, frozen_norms)
        self.proposals = proposals

    @classmethod
    def from_recipe(cls, classes: Sequence[str], recipe: Any, device: str) -> "Segment":
        """The task for training, with BatchNorms frozen and proposals sampled as in the recipe."""
        return cls(classes, recipe.frozen_norms, recipe.proposals)

    def ready(self, network: Any) -> None:
        """Freeze the backbone's BatchNorms as `frozen_norms` requires, and set the number of proposals."""
        super().ready(network)
        network.set_proposals(self.proposals)

    def signal(self, outputs: Float[Tensor, "b 100 790"]) -> Float[Tensor, "b 100"]:
        """The sorted scores. Other values are not compared: in another network, the same row can be another object."""
        return outputs[..., 4]

    def _decode_one(self, outputs: Float[Tensor, "100 790"], letterbox: Letterbox, threshold: float) -> Detections:
        outputs = outputs.cpu()
        boxes = letterbox.to_image(outputs[:, :4])
        kept = (outputs[:, 4] >= threshold) & (boxes[:, 2:] > boxes[:, :2]).all(1)
        rows = outputs[kept]
        whole = letterbox.to_image(rows[:, :4], cut=False)  # masks fill the box before it is clipped to the image
        masks = _pasted(rows[:, 6:].view(-1, 1, MASK_SIDE, MASK_SIDE), whole, letterbox)
        return Detections(boxes[kept], rows[:, 4], rows[:, 5].long(), masks)


def _pasted(
    probabilities: Float[Tensor, "n 1 28 28"], boxes: Float[Tensor, "n 4"], letterbox: Letterbox
) -> list[RunLengths]:
    """Masks in the whole image: the pixels with a probability above 0.5, after resizing to the boxes.

    As in torchvision, but one mask at a time, since all masks of a large image at once would take gigabytes.
    """
    padded, scale = expand_masks(probabilities, 1)
    return [
        encode((paste_mask_in_image(mask[0], box, letterbox.height, letterbox.width) > 0.5).numpy())
        for mask, box in zip(padded, expand_boxes(boxes, scale).long(), strict=True)
    ]
