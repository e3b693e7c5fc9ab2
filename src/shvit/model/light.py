"""A light detector: no anchors, no non-maximum suppression, and a neck and head of depthwise-separable convolutions.

Sources: S. Liu et al., "Path Aggregation Network for Instance Segmentation", CVPR 2018 (neck); Z. Tian et al., "FCOS",
ICCV 2019 (boxes as distances from a position to the four sides); C. Lyu et al., "RTMDet", 2022 (convolutions that all
levels share, with separate norms); A. Wang et al., "YOLOv10", NeurIPS 2024 (two branches, of which one needs no NMS);
J. Wang et al., "End-to-End Object Detection with Fully Convolutional Network", CVPR 2021 (a part of the network that
selects one of many positions).
"""

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import interpolate

from ..errors import InputError
from .assignment import Assignment, assign, box_loss, class_loss, selection_loss
from .detector import LAYOUTS, Backbone, Detector, Target
from .layers import ConvNorm
from .shapes import Maps

STRIDES = (8, 16, 32)
PER_OBJECT = 10
"""Positions per object in the one-to-many branch."""
FIRST_SCORE = 0.01
"""Score of every class at the beginning of training, as in RetinaNet's paper."""
MOST_STRIDES = 5.0
"""Largest logarithm of a distance, in strides."""


def neck_width(widths: Sequence[int]) -> int:
    """Channels of the neck for a backbone with maps of these widths: 64 to 128, a multiple of 32."""
    return min(128, max(64, 32 * round(sum(widths) / 9 / 32)))


class Separable(nn.Sequential):
    """Depthwise 3x3 convolution and 1x1 convolution, each with BatchNorm and ReLU. The width stays the same."""

    def __init__(self, width: int, stride: int = 1) -> None:
        super().__init__(ConvNorm(width, width, 3, stride, groups=width), nn.ReLU(), ConvNorm(width, width), nn.ReLU())


class TransposedConv(nn.ConvTranspose2d):
    """A 2x2 transposed convolution, which doubles height and width."""

    def __init__(self, in_width: int, out_width: int) -> None:
        super().__init__(in_width, out_width, 2, 2)

    def fold(self) -> nn.Sequential:
        """The same as a 1x1 convolution to four times the width, whose channels become 2x2 pixels.

        Inference engines have fast 1x1 convolutions, also in int8.
        """
        conv = nn.Conv2d(self.in_channels, 4 * self.out_channels, 1, dtype=self.weight.dtype)
        conv.weight.data = self.weight.permute(1, 2, 3, 0).reshape(4 * self.out_channels, self.in_channels, 1, 1)
        assert self.bias is not None
        conv.bias = nn.Parameter(self.bias.repeat_interleave(4))
        return nn.Sequential(conv, nn.PixelShuffle(2))


class PathAggregation(nn.Module):
    """Maps of equal width at `STRIDES`. Information flows from coarse to fine, and back.

    A backbone without a map of stride 8, such as SHViT, gets one from a 2x2 transposed convolution of its next map. A
    map of stride 64 is context: it is added to the map of stride 32.

    Args:
        widths: Channels of the backbone's maps, fine to coarse.
        given: Strides of the backbone's maps.
        width: Channels of the result.

    Raises:
        InputError: The backbone's maps do not include the strides 16 and 32.
    """

    def __init__(self, widths: Sequence[int], given: Sequence[int], width: int) -> None:
        super().__init__()
        if tuple(given) not in ((8, 16, 32), (16, 32, 64)):
            raise InputError(
                "the light detector needs a backbone whose last maps have the strides 8, 16 and 32, or 16, 32 and 64; "
                f"got {', '.join(map(str, given))}"
            )
        self.lateral = nn.ModuleList(ConvNorm(before, width) for before in widths)
        self.finer = TransposedConv(widths[0], width) if given[0] == 16 else None
        self.down = nn.ModuleList(Separable(width) for _ in STRIDES)
        self.shrink = nn.ModuleList(Separable(width, stride=2) for _ in STRIDES[1:])
        self.up = nn.ModuleList(Separable(width) for _ in STRIDES[1:])

    def forward(self, maps: Sequence[Maps]) -> list[Maps]:
        """The maps at `STRIDES`, fine to coarse."""
        levels = [lateral(x) for lateral, x in zip(self.lateral, maps, strict=True)]
        if self.finer is not None:
            levels.insert(0, self.finer(maps[0]))
        *levels, merged = levels if self.finer is not None else [*levels, None]
        for index in reversed(range(len(STRIDES))):
            x = levels[index]
            if merged is not None:
                x = x + interpolate(merged, x.shape[2:], mode="nearest")
            levels[index] = merged = self.down[index](x)
        for index, (shrink, up) in enumerate(zip(self.shrink, self.up, strict=True)):
            levels[index + 1] = up(levels[index + 1] + shrink(levels[index]))
        return levels


class SharedConvNorm(nn.Module):
    """A convolution that all levels share, then a BatchNorm and ReLU for each level."""

    def __init__(self, in_width: int, out_width: int, kernel_size: int, groups: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_width, out_width, kernel_size, padding=kernel_size // 2, groups=groups, bias=False)
        self.norms = nn.ModuleList(nn.BatchNorm2d(out_width) for _ in STRIDES)

    def forward(self, levels: list[Maps]) -> list[Maps]:
        return [norm(self.conv(x)).relu() for norm, x in zip(self.norms, levels, strict=True)]

    def fold(self) -> "ConvPerLevel":
        """Merge the BatchNorms into one convolution for each level."""
        return ConvPerLevel([ConvNorm.of(self.conv, norm).fold() for norm in self.norms])


class ConvPerLevel(nn.Module):
    """`SharedConvNorm` for inference."""

    def __init__(self, convolutions: list[nn.Conv2d]) -> None:
        super().__init__()
        self.conv = nn.ModuleList(convolutions)

    def forward(self, levels: list[Maps]) -> list[Maps]:
        return [conv(x).relu() for conv, x in zip(self.conv, levels, strict=True)]


class Head(nn.Module):
    """Class logits and boxes at each position, from separate towers of two depthwise-separable convolutions.

    The logits of the one-to-many branch are high at several positions of an object. A third tower, which compares
    neighboring positions, lowers those of all classes alike everywhere except at one position of each object: its
    output is added to them.

    Args:
        extras: Number of further values at each position, from the tower of the boxes.
    """

    def __init__(self, width: int, num_classes: int, extras: int = 0) -> None:
        super().__init__()
        self.class_tower, self.box_tower = (_tower(width, 2) for _ in range(2))
        self.compare = SharedConvNorm(2 * width, width, 1)
        self.select_tower = _tower(width, 2)
        self.classes = nn.Conv2d(width, num_classes, 1)
        self.boxes = nn.Conv2d(width, 4 + extras, 1)
        self.select = nn.Conv2d(width, 1, 1)
        for layer in (self.classes, self.boxes, self.select):
            nn.init.normal_(layer.weight, std=0.01)
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)
        nn.init.constant_(self.classes.bias, math.log(FIRST_SCORE / (1 - FIRST_SCORE)))  # pyright: ignore
        nn.init.constant_(self.boxes.bias[:4], 0.7)  # pyright: ignore[reportOptionalSubscript]: boxes of four strides

    def forward(
        self, levels: list[Maps]
    ) -> tuple[Float[Tensor, "b n classes"], Float[Tensor, "b n classes"], Float[Tensor, "b n 4+extras"]]:
        """Logits of the one-to-many branch; those of the one-to-one branch; and the logarithms of the distances to the
        left, top, right and bottom side, in strides, then the further values.

        The gradients of the one-to-one branch reach only the tower that selects positions.
        """
        classes, boxes = self.class_tower(levels), self.box_tower(levels)
        both = self.compare([torch.cat([x, y], 1).detach() for x, y in zip(classes, boxes, strict=True)])
        many = _joined([self.classes(x) for x in classes])
        lowered = _joined([self.select(x) for x in self.select_tower(both)])
        return many, many.detach() + lowered, _joined([self.boxes(x) for x in boxes])


def _tower(width: int, depth: int) -> nn.Sequential:
    """Depthwise-separable convolutions that all levels share."""
    return nn.Sequential(*(SharedConvNorm(width, width, *kind) for kind in [(3, width), (1, 1)] * depth))


def _joined(levels: list[Maps]) -> Float[Tensor, "b n c"]:
    """The values at all positions, level by level and row by row."""
    return torch.cat([x.flatten(2) for x in levels], 2).transpose(1, 2)


class LightDetector(Detector):
    """Boxes with a score for each class, from each position of three levels.

    In training, several positions learn each object, which trains the network well (one-to-many). From their scores and
    boxes, a small tower learns to select one position for each object (one-to-one), so that inference needs no
    non-maximum suppression.

    The sides of the images must be multiples of the backbone's coarsest stride, 64 for SHViT.
    """

    strides = STRIDES
    class_layers = ("head.classes.",)
    extras: ClassVar[int] = 0
    """Number of values at each position besides classes and box."""

    def __init__(self, backbone: Backbone, num_classes: int, layout: str = LAYOUTS[0]) -> None:
        super().__init__(backbone, num_classes, layout)
        self.head = Head(neck_width([width for width, _ in backbone.maps[-3:]]), num_classes, self.extras)

    def make_pyramid(self, widths: Sequence[int], strides: Sequence[int]) -> nn.Module:
        """The neck: maps at `STRIDES`."""
        return PathAggregation(widths, strides, neck_width(widths))

    @staticmethod
    def output_width(classes: int) -> int | None:
        """Number of values in an output row: a box, and a score for each class."""
        return 4 + classes

    @classmethod
    def rows_at(cls, side: int, classes: int) -> int | None:
        """Number of positions of a square image with this side."""
        return sum((side // stride) ** 2 for stride in STRIDES)

    def forward(
        self, x: Float[Tensor, "b in h w"], targets: Sequence[Target] | None = None
    ) -> Float[Tensor, "b n 4+classes"] | Float[Tensor, ""]:
        """Boxes (left, top, right, bottom in pixels), then class scores (0 to 1). With targets, returns the loss."""
        levels = self.features(x)
        many, one, boxes, extras, centers = self.predicted(levels)
        if targets is None:
            return self.results(levels, one, boxes, extras)
        with torch.autocast(one.device.type, enabled=False):
            assignments = [self._assigned(*row, centers, PER_OBJECT) for row in zip(many, boxes, targets, strict=True)]
            single = [self._assigned(*row, centers, 1) for row in zip(one, boxes, targets, strict=True)]
            loss = class_loss(many, targets, assignments) + box_loss(boxes, targets, assignments)
            loss = loss + selection_loss(one, targets, single)
        return loss + self.extra_loss(levels, extras, targets, assignments)

    def one_to_many(self, x: Float[Tensor, "b in h w"]) -> Float[Tensor, "b n 4+classes"]:
        """The outputs of the one-to-many branch, which need non-maximum suppression."""
        levels = self.features(x)
        many, _, boxes, extras, _ = self.predicted(levels)
        return self.results(levels, many, boxes, extras)

    def results(
        self,
        levels: list[Maps],
        logits: Float[Tensor, "b n classes"],
        boxes: Float[Tensor, "b n 4"],
        extras: Float[Tensor, "b n extras"],
    ) -> Tensor:
        """The outputs of the network, from the predictions at each position."""
        return torch.cat([boxes, logits.sigmoid()], 2)

    def predicted(
        self, levels: list[Maps]
    ) -> tuple[
        Float[Tensor, "b n classes"],
        Float[Tensor, "b n classes"],
        Float[Tensor, "b n 4"],
        Float[Tensor, "b n extras"],
        Float[Tensor, "n 2"],
    ]:
        """At each position: the logits of both branches, the box in pixels, the other values; and the centers of the
        positions. All are in fp32."""
        many, one, rest = self.head(levels)
        centers, strides = positions(levels)
        distances, extras = rest.float().split([4, self.extras], 2)
        return many.float(), one.float(), boxes_at(centers, strides, distances), extras, centers

    @staticmethod
    def _assigned(
        logits: Float[Tensor, "n classes"],
        boxes: Float[Tensor, "n 4"],
        target: Target,
        centers: Float[Tensor, "n 2"],
        count: int,
    ) -> Assignment:
        return assign(logits.detach().sigmoid(), boxes.detach(), centers, target, count, STRIDES[0])

    def extra_loss(
        self,
        levels: list[Maps],
        extras: Float[Tensor, "b n extras"],
        targets: Sequence[Target],
        assignments: Sequence[Assignment],
    ) -> Float[Tensor, ""] | float:
        """The loss of the other values; 0 if there are none."""
        return 0.0

    def fold_outputs(self, x: Float[Tensor, "b in h w"]) -> list[Tensor]:
        """The outputs that are compared after folding."""
        return list(self.head(self.features(x)))


def positions(levels: Sequence[Maps]) -> tuple[Float[Tensor, "n 2"], Float[Tensor, "n 1"]]:
    """Center (x, y in pixels) and stride of each position, level by level and row by row."""
    centers, strides = [], []
    for x, stride in zip(levels, STRIDES, strict=True):
        rows, columns = (torch.arange(side, device=x.device, dtype=torch.float32) for side in x.shape[2:])
        grid = torch.stack(torch.meshgrid(columns, rows, indexing="xy"), 2).flatten(0, 1)
        centers.append((grid + 0.5) * stride)
        strides.append(torch.full_like(grid[:, :1], stride))
    return torch.cat(centers), torch.cat(strides)


def boxes_at(
    centers: Float[Tensor, "n 2"], strides: Float[Tensor, "n 1"], distances: Float[Tensor, "b n 4"]
) -> Float[Tensor, "b n 4"]:
    """Boxes from the logarithms of the distances between a position and the sides of its box."""
    lengths = distances.clamp(max=MOST_STRIDES).exp() * strides
    return torch.cat([centers - lengths[..., :2], centers + lengths[..., 2:]], 2)
