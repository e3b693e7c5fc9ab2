"""The base of all detectors: a backbone, a feature pyramid, and heads that return one tensor."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor, nn
from torchvision.models.detection._utils import Matcher
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList

from ..errors import InputError
from .pyramid import Pyramid
from .shapes import Maps
from .shvit import SHViT
from .timm_model import TimmModel

Backbone = SHViT | TimmModel
LAYOUTS = ("torchvision", "paper")
"""Variants of a detector: as in torchvision, or as in the authors' configuration (docs/detection.md)."""
CROWDED = 0.5
"""A box with more than this fraction of its area in a crowd is not trained as background."""


@dataclass(frozen=True)
class Target:
    """The ground truth of one image, in pixels of the network's input."""

    boxes: Float[Tensor, "n 4"]
    """Left, top, right, bottom."""
    labels: Int64[Tensor, " n"]
    """Indices of classes."""
    crowds: Float[Tensor, "m 4"]
    """Boxes around groups of objects, which are ignored in training."""
    masks: UInt8[Tensor, "n h w"] | None = None
    """1 inside the object, 0 elsewhere."""

    def to(self, device: Any) -> "Target":
        """The same target on this device."""
        masks = None if self.masks is None else self.masks.to(device)
        return Target(self.boxes.to(device), self.labels.to(device), self.crowds.to(device), masks)


class Detector(nn.Module):
    """A backbone with a feature pyramid. Subclasses add the heads and set the strides of the pyramid's maps.

    Args:
        backbone: A network without a head. Its last three maps are used.
        num_classes: Number of classes of objects.
        layout: One of `LAYOUTS`.

    Raises:
        InputError: The strides of the backbone's maps do not fit the pyramid.
    """

    architecture: Any = None
    """The `Architecture` that built this network; None if it was built by hand."""
    strides: Sequence[int]
    class_layers: tuple[str, ...]
    """Name prefixes of the weights that depend on the classes."""
    any_batch: ClassVar[bool] = True
    """Whether a trace of the network works for any batch size."""

    def __init__(self, backbone: Backbone, num_classes: int, layout: str = LAYOUTS[0]) -> None:
        super().__init__()
        self.backbone = backbone
        self.in_channels, self.image_size = backbone.in_channels, backbone.image_size
        self.num_classes = num_classes
        self.as_published = layout == "paper"
        widths, strides = zip(*backbone.maps[-3:], strict=True)
        self.pyramid = self.make_pyramid(widths, strides)

    def make_pyramid(self, widths: Sequence[int], strides: Sequence[int]) -> nn.Module:
        """The module that turns the backbone's maps, with these widths and strides, into maps at `self.strides`."""
        return Pyramid(widths, strides, self.strides, coarsest_from_input=self.as_published)

    @staticmethod
    def output_width(classes: int) -> int | None:
        """Number of values in an output row for this number of classes. None if the number of classes has no effect."""
        return None

    @classmethod
    def rows_at(cls, side: int, classes: int) -> int | None:
        """Number of output rows for a square image with this side. None if it is not known."""
        return None

    @property
    def fold_check(self) -> tuple[torch.dtype, int, float]:
        """The `fold_check` of the backbone, with the image side rounded up to a size that the pyramid accepts."""
        dtype, side, tolerance = self.backbone.fold_check
        return dtype, 64 * -(-side // 64), tolerance

    def fold_outputs(self, x: Float[Tensor, "b in h w"]) -> list[Maps]:
        """The outputs that are compared after folding: the maps of the pyramid."""
        return self.features(x)

    def first_convolution(self) -> nn.Conv2d | None:
        """The convolution that reads the images; None if it is not known."""
        return self.backbone.first_convolution()

    def features(self, x: Float[Tensor, "b in h w"]) -> list[Float[Tensor, "b 256 h2 w2"]]:
        """The maps of the pyramid at `strides`, fine to coarse.

        Raises:
            InputError: A side of the images is not a multiple of the backbone's coarsest stride.
        """
        coarsest = self.backbone.maps[-1][1]
        if x.shape[2] % coarsest or x.shape[3] % coarsest:
            raise InputError(
                f"images must be multiples of {coarsest} pixels high and wide, got {x.shape[2]}x{x.shape[3]}"
            )
        return self.pyramid(self.backbone.features(x)[-3:])


class Anchors(AnchorGenerator):
    """torchvision's anchors with fixed strides. torchvision computes the strides from the sizes of image and maps."""

    def __init__(self, strides: Sequence[int], scales: Sequence[float]) -> None:
        super().__init__(
            tuple(tuple(stride * scale for scale in scales) for stride in strides),
            ((0.5, 1.0, 2.0),) * len(strides),
        )
        self.strides = tuple(strides)

    def forward(
        self, image_list: ImageList, feature_maps: Sequence[Float[Tensor, "b c h w"]]
    ) -> list[Float[Tensor, "anchors 4"]]:
        """For each image, the anchors of all levels. They are the same for all images."""
        anchors = self.on(feature_maps)
        return [anchors for _ in image_list.image_sizes]

    def on(self, maps: Sequence[Float[Tensor, "b c h w"]]) -> Float[Tensor, "anchors 4"]:
        """The anchors of all levels, level by level and row by row, in pixels of the image."""
        device = maps[0].device
        self.set_cell_anchors(torch.float32, device)
        strides = [[torch.tensor(stride, device=device)] * 2 for stride in self.strides]
        return torch.cat(self.grid_anchors([list(x.shape[2:]) for x in maps], strides))


class BestForEach(Matcher):
    """torchvision's matcher, except that an object's best boxes are always matched to this object, as in mmdetection.

    In torchvision, the best box of object A is matched to object B if the box overlaps more with B.

    Args:
        high, low: The thresholds of torchvision's `Matcher`.
        least: Minimum IoU at which a best box is always matched. Below it, `high` and `low` decide, as for other boxes.
    """

    def __init__(self, high: float, low: float, least: float) -> None:
        super().__init__(high, low, allow_low_quality_matches=True)
        self.least = least

    def set_low_quality_matches_(
        self,
        matches: Int64[Tensor, " n"],
        all_matches: Int64[Tensor, " n"],
        match_quality_matrix: Float[Tensor, "objects n"],
    ) -> None:
        """Match each object with its best boxes. A box that is best for several objects goes to the last of them."""
        best = match_quality_matrix.amax(1, keepdim=True)
        kept = (match_quality_matrix == best) & (best >= self.least) & (best > 0)
        numbers = torch.arange(len(best), device=matches.device)[:, None].where(kept, -1).amax(0)
        matches.copy_(numbers.where(numbers >= 0, matches))


def in_crowd(boxes: Float[Tensor, "n 4"], crowds: Float[Tensor, "m 4"]) -> Bool[Tensor, " n"]:
    """Whether each box lies mostly within a crowd."""
    if not len(crowds):
        return boxes.new_zeros(len(boxes), dtype=torch.bool)
    return share_within(boxes, crowds).amax(1) > CROWDED


def share_within(boxes: Float[Tensor, "n 4"], regions: Float[Tensor, "m 4"]) -> Float[Tensor, "n m"]:
    """The fraction of each box's area that lies in each region."""
    corner = torch.minimum(boxes[:, None, 2:], regions[:, 2:])
    sides = (corner - torch.maximum(boxes[:, None, :2], regions[:, :2])).clamp(min=0)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    return sides.prod(2) / areas[:, None].clamp(min=1e-6)
