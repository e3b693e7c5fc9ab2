"""Instance segmentation: a box, a class and a mask for each object, by Mask R-CNN."""

from collections.abc import Sequence
from typing import Any, ClassVar

from jaxtyping import Float
from torch import Tensor
from torchvision.models.detection.roi_heads import expand_boxes, expand_masks, paste_mask_in_image

from ..data.letterbox import Letterbox
from ..model.mask_rcnn import MASK_SIDE
from .detect import THRESHOLD, Detect
from .objects import Detections, RunLengths, encode

REGIONS = 512


class Segment(Detect):
    """Mask R-CNN's five losses, added up.

    Args:
        classes: Names, in the order of the scores.
        frozen_norms: As of `Detect`.
        regions: Of each training image, that the second stage learns from.
    """

    name: ClassVar[str] = "segment"
    detector: ClassVar[str | None] = "mask_rcnn"
    has_masks: ClassVar[bool] = True
    kinds: ClassVar[tuple[str, ...]] = ("bbox", "segm")
    least_score: ClassVar[float] = THRESHOLD

    def __init__(self, classes: Sequence[str], frozen_norms: str = "none", regions: int = REGIONS) -> None:
        super().__init__(classes, frozen_norms)
        self.regions = regions

    @classmethod
    def from_recipe(cls, classes: Sequence[str], recipe: Any, device: str) -> "Segment":
        """The task to train: BatchNorms frozen and proposals sampled as the recipe says."""
        return cls(classes, recipe.frozen_norms, recipe.proposals)

    def ready(self, network: Any) -> None:
        super().ready(network)
        network.learn_from(self.regions)

    def signal(self, outputs: Float[Tensor, "b 100 790"]) -> Float[Tensor, "b 100"]:
        """The scores, best first: a row need not be the same object in both."""
        return outputs[..., 4]

    def _found(self, outputs: Float[Tensor, "100 790"], frame: Letterbox, threshold: float) -> Detections:
        outputs = outputs.cpu()
        boxes = frame.to_image(outputs[:, :4])
        kept = (outputs[:, 4] >= threshold) & (boxes[:, 2:] > boxes[:, :2]).all(1)
        rows = outputs[kept]
        whole = frame.to_image(rows[:, :4], cut=False)  # what a mask is stretched over
        masks = _pasted(rows[:, 6:].view(-1, 1, MASK_SIDE, MASK_SIDE), whole, frame)
        return Detections(boxes[kept], rows[:, 4], rows[:, 5].long(), masks)


def _pasted(shares: Float[Tensor, "n 1 28 28"], boxes: Float[Tensor, "n 4"], frame: Letterbox) -> list[RunLengths]:
    """The masks in the whole image: where the shares, stretched over the boxes, are more than a half.

    As torchvision does it, but one after another: all at once, those of a large image would take gigabytes.
    """
    margins, factor = expand_masks(shares, 1)
    return [
        encode((paste_mask_in_image(mask[0], box, frame.height, frame.width) > 0.5).numpy())
        for mask, box in zip(margins, expand_boxes(boxes, factor).long(), strict=True)
    ]
