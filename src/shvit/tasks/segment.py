"""Instance segmentation: a box, a class and a mask for each object, by the light detector or by Mask R-CNN."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torchvision.models.detection.roi_heads import expand_boxes, expand_masks, paste_mask_in_image

from ..data.letterbox import Letterbox
from ..model.mask_rcnn import MASK_SIDE
from .base import GraphText, Results, RunLengths
from .detect import INSIDE, Detect
from .objects import THRESHOLD, Detections, encode

PROPOSALS = 512
"""Default number of proposals per training image."""


_OBJECTS = "float[n, 4] boxes, float[n] scores, int64[n] classes"
_RESULTS = f"""{INSIDE}
    shortest = ReduceMin <keepdims=0> (lengths, values)
    not_empty = Greater (shortest, zero_f)
    score_column = Slice (rows, four, five, values)
    all_scores = Squeeze (score_column, values)
    certain = GreaterOrEqual (all_scores, least)
    kept = And (not_empty, certain)
    boxes = Compress <axis=0> (inside, kept)
    scores = Compress <axis=0> (all_scores, kept)
    kept_rows = Compress <axis=0> (rows, kept)
    class_column = Slice (kept_rows, five, six, values)
    class_values = Squeeze (class_column, values)
    classes = Cast <to=7> (class_values)
    probabilities = Slice (kept_rows, six, end, values)
    masks = Reshape (probabilities, mask_shape)
    mask_boxes = Compress <axis=0> (whole, kept)
"""


class Segment(Detect):
    """Instance segmentation, trained with the sum of Mask R-CNN's five losses.

    Args:
        classes: Names, in the order of the scores.
        frozen_norms: See `Detect`.
        proposals: Number of proposals per training image that the second stage is trained on.
    """

    name = "segment"
    recipe_family = "segment"
    head = "mask_rcnn"
    detector = "mask_rcnn"
    result_names = ("boxes", "scores", "classes", "masks", "mask_boxes")
    has_masks = True
    min_evaluated_score = min_score = THRESHOLD
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

    def results_graph(self) -> GraphText:
        """The outputs of `Detect.results_graph`, and two more.

        `masks`, float32 (n, 28, 28), are probabilities, to be resized to `mask_boxes`, float32 (n, 4): the boxes before
        they were clipped to the image.
        """
        width = 6 + MASK_SIDE**2
        constants = {
            **{
                name: np.array([value])
                for name, value in {"zero": 0, "values": 1, "four": 4, "five": 5, "six": 6}.items()
            },
            **{
                "end": np.array([width]),
                "x_and_y": np.array([1, 0, 1, 0]),
                "mask_shape": np.array([-1, *[MASK_SIDE] * 2]),
            },
            **{"left_top": np.array([0, 1]), "right_bottom": np.array([2, 3])},
            **{"zero_f": np.zeros(1, np.float32), "least": np.array([THRESHOLD], np.float32)},
        }
        outputs = f"{_OBJECTS}, float[n, {MASK_SIDE}, {MASK_SIDE}] masks, float[n, 4] mask_boxes"
        inputs = f"float[1, found, {width}] objects, int64[2] size, int64[2] resized"
        return GraphText(inputs, outputs, _RESULTS, constants)

    def objects_of(self, results: Results, height: int, width: int, threshold: float) -> Detections:
        found = super().objects_of(results, height, width, threshold)
        kept = results["scores"] >= threshold
        masks, boxes = (torch.from_numpy(results[name][kept]) for name in ("masks", "mask_boxes"))
        return replace(found, masks=_pasted(masks[:, None], boxes, height, width))

    def _decode_one(self, outputs: Float[Tensor, "100 790"], letterbox: Letterbox, threshold: float) -> Detections:
        outputs = outputs.cpu()
        boxes = letterbox.to_image(outputs[:, :4])
        kept = (outputs[:, 4] >= threshold) & (boxes[:, 2:] > boxes[:, :2]).all(1)
        rows = outputs[kept]
        whole = letterbox.to_image(rows[:, :4], cut=False)  # masks fill the box before it is clipped to the image
        masks = _pasted(rows[:, 6:].view(-1, 1, MASK_SIDE, MASK_SIDE), whole, letterbox.height, letterbox.width)
        return Detections(boxes[kept], rows[:, 4], rows[:, 5].long(), masks)


class SegmentLight(Segment):
    """Instance segmentation with the light detector."""

    head = "light"
    detector = "light_masks"
    min_evaluated_score, min_score = Detect.min_evaluated_score, 0.0

    def ready(self, network: Any) -> None:
        """Freeze the backbone's BatchNorms as `frozen_norms` requires."""
        Detect.ready(self, network)


def _pasted(
    probabilities: Float[Tensor, "n 1 28 28"], boxes: Float[Tensor, "n 4"], height: int, width: int
) -> list[RunLengths]:
    """Masks in the whole image: the pixels with a probability above 0.5, after resizing to the boxes.

    As in torchvision, but one mask at a time, since all masks of a large image at once would take gigabytes.
    """
    padded, scale = expand_masks(probabilities, 1)
    return [
        encode((paste_mask_in_image(mask[0], box, height, width) > 0.5).numpy())
        for mask, box in zip(padded, expand_boxes(boxes, scale).long(), strict=True)
    ]
