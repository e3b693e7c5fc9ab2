"""A light detector: no anchors, no non-maximum suppression, and a neck and head of depthwise-separable convolutions.

Sources: S. Liu et al., "Path Aggregation Network for Instance Segmentation", CVPR 2018 (neck); Z. Tian et al., "FCOS",
ICCV 2019 (boxes as distances from a position to the four sides); C. Lyu et al., "RTMDet", 2022 (shared convolutions with
separate norms for each level); A. Wang et al., "YOLOv10", NeurIPS 2024 (two branches, of which one needs no NMS).
"""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import interpolate

from ..errors import InputError
from .assignment import detection_loss
from .detector import LAYOUTS, Backbone, Detector, Target
from .layers import ConvNorm
from .shapes import Maps

STRIDES = (8, 16, 32)
CANDIDATES = 10
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


class PathAggregation(nn.Module):
    """Maps of equal width at `STRIDES`. Information flows from coarse to fine, and back.

    A backbone without a map of stride 8, such as SHViT, gets one from a 2x2 transposed convolution of its next map. Maps
    of stride 64 are context: they are added to the map of stride 32.

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
        self.finer = nn.ConvTranspose2d(widths[0], width, 2, 2) if given[0] == 16 else None
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

    def __init__(self, width: int, kernel_size: int, groups: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, kernel_size, padding=kernel_size // 2, groups=groups, bias=False)
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for _ in STRIDES)

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


class Branch(nn.Module):
    """Class logits and boxes at each position, from separate towers of two depthwise-separable convolutions."""

    def __init__(self, width: int, num_classes: int) -> None:
        super().__init__()
        self.class_tower, self.box_tower = (
            nn.Sequential(*(SharedConvNorm(width, size, width if size > 1 else 1) for size in (3, 1, 3, 1)))
            for _ in range(2)
        )
        self.classes = nn.Conv2d(width, num_classes, 1)
        self.distances = nn.Conv2d(width, 4, 1)
        for layer in (self.classes, self.distances):
            nn.init.normal_(layer.weight, std=0.01)
        nn.init.constant_(self.classes.bias, math.log(FIRST_SCORE / (1 - FIRST_SCORE)))  # pyright: ignore
        nn.init.constant_(self.distances.bias, 0.7)  # pyright: ignore[reportArgumentType]: boxes of four strides

    def forward(self, levels: list[Maps]) -> tuple[Float[Tensor, "b n classes"], Float[Tensor, "b n 4"]]:
        """Logits, and the logarithms of the distances to the left, top, right and bottom side, in strides."""
        logits = [self.classes(x).flatten(2) for x in self.class_tower(levels)]
        distances = [self.distances(x).flatten(2) for x in self.box_tower(levels)]
        return torch.cat(logits, 2).transpose(1, 2), torch.cat(distances, 2).transpose(1, 2)


class LightDetector(Detector):
    """Boxes with a score for each class, from each position of three levels.

    Two branches of the same form learn from the same maps. In the one-to-many branch, several positions learn each
    object, which trains the network well, but then the boxes need non-maximum suppression. In the one-to-one branch, one
    position learns each object. Only this branch is used for inference. Its gradients do not reach the backbone.

    The sides of the images must be multiples of the backbone's coarsest stride, 64 for SHViT.
    """

    strides = STRIDES
    class_layers = ("one_to_many.classes.", "one_to_one.classes.")

    def __init__(self, backbone: Backbone, num_classes: int, layout: str = LAYOUTS[0]) -> None:
        super().__init__(backbone, num_classes, layout)
        width = neck_width([channels for channels, _ in backbone.maps[-3:]])
        self.one_to_many: Branch | None = Branch(width, num_classes)
        self.one_to_one = Branch(width, num_classes)

    def make_pyramid(self, widths: Sequence[int], strides: Sequence[int]) -> nn.Module:
        """The neck: maps at `STRIDES`."""
        return PathAggregation(widths, strides, neck_width(widths))

    @staticmethod
    def output_width(classes: int) -> int | None:
        """Number of values in an output row: a box, and a score for each class."""
        return 4 + classes

    def forward(
        self, x: Float[Tensor, "b in h w"], targets: Sequence[Target] | None = None
    ) -> Float[Tensor, "b n 4+classes"] | Float[Tensor, ""]:
        """Boxes (left, top, right, bottom in pixels), then class scores (0 to 1). With targets, returns the loss."""
        levels = self.features(x)
        if targets is None:
            return self.decoded(self.one_to_one, levels)
        detached = [level.detach() for level in levels]
        assert self.one_to_many is not None
        return self._loss(self.one_to_many, levels, targets, CANDIDATES) + self._loss(
            self.one_to_one, detached, targets, 1
        )

    def decoded(self, branch: Branch, levels: list[Maps]) -> Float[Tensor, "b n 4+classes"]:
        """Boxes and scores of a branch."""
        logits, distances = branch(levels)
        centers, strides = positions(levels)
        return torch.cat([boxes_at(centers, strides, distances.float()), logits.float().sigmoid()], 2)

    def _loss(self, branch: Branch, levels: list[Maps], targets: Sequence[Target], count: int) -> Float[Tensor, ""]:
        logits, distances = branch(levels)
        centers, strides = positions(levels)
        with torch.autocast(logits.device.type, enabled=False):
            boxes = boxes_at(centers, strides, distances.float())
            return detection_loss(logits.float(), boxes, centers, list(targets), count, STRIDES[0])

    def fold_outputs(self, x: Float[Tensor, "b in h w"]) -> list[Tensor]:
        """The outputs that are compared after folding."""
        return list(self.one_to_one(self.features(x)))

    def fold(self) -> "LightDetector":
        """Remove the branch that is used only in training."""
        self.one_to_many = None
        return self


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
