"""Random changes of training images for detectors: scale, position, mosaics, flips and colors.

Sources: A. Bochkovskiy et al., "YOLOv4", 2020 (mosaic).
"""

import math
import random
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor
from torchvision.transforms.v2 import ColorJitter

from .coco import CocoSplit
from .image_file import MAX_PIXELS, BadImage
from .letterbox import DetectionTargets, Letterbox, fitted, open_as, resized_whole, targets_of
from .transforms import Preprocess, on_canvas, round_up

HUE, SATURATION, VALUE = 0.015, 0.7, 0.4
"""Largest changes of `hsv` 1: hue in turns, saturation and value as fractions."""
MOSAIC_CENTER = 0.25, 0.75
"""Range of the point where the four images of a mosaic meet, as fractions of the side."""
TRIES = 10
"""Images that are tried for a part of a mosaic before it stays empty, since images can be unusable."""
YIQ = np.array([[0.299, 0.587, 0.114], [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])
"""From RGB to luminance and two color differences, which a change of hue rotates."""

Region = tuple[int, int, int, int]
"""Top, left, bottom and right in pixels of the input."""


@dataclass(frozen=True)
class DetectionTrainReader:
    """Reads an image of a `CocoSplit` for training: randomly scaled, shifted, flipped and with changed colors.

    The random choices use the global generators: call the reader within `loader.seeded`.
    """

    preprocess: Preprocess
    scale: tuple[float, float] = (1.0, 1.0)
    """Minimum and maximum scale, relative to evaluation. Scaled images that are larger than the input are cropped."""
    flip: float = 0.5
    """Probability of a horizontal flip."""
    color_jitter: float = 0.0
    """Strength of random brightness, contrast and saturation."""
    masks: bool = False
    """Whether to return masks. Objects without a mask are then treated as crowds."""
    max_pixels: int = MAX_PIXELS
    hsv: float = 0.0
    """Strength of random hue, saturation and value."""
    mosaic: float = 0.0
    """Probability that the input consists of four images, each in a part of it. Needs fit `whole`."""
    mosaic_epochs: int | None = None
    """Number of epochs with mosaics. None: all."""

    def at_epoch(self, epoch: int) -> "DetectionTrainReader":
        """The reader for an epoch, counted from 0."""
        return self if self.mosaic_epochs is None or epoch < self.mosaic_epochs else replace(self, mosaic=0.0)

    @cached_property
    def _jitter(self) -> Any:
        return ColorJitter(*[self.color_jitter] * 3)

    def __call__(self, split: CocoSplit, index: int) -> tuple[UInt8[Tensor, "3 h w"], DetectionTargets]:
        """Read an image and its objects. Raises BadImage as `open_as` does."""
        four = self.mosaic and random.random() < self.mosaic
        canvas, targets = self._mosaic(split, index) if four else self._single(split, index)
        if self.flip and torch.rand(()) < self.flip:
            return canvas.flip(2), _flipped(targets, canvas.shape[2])
        return canvas, targets

    def _single(self, split: CocoSplit, index: int) -> tuple[UInt8[Tensor, "3 h w"], DetectionTargets]:
        stated = split.sizes[index].tolist()
        image = open_as(split.source(index), (stated[0], stated[1]), self.max_pixels)
        usual = fitted(image.height, image.width, self.preprocess)
        side = self.preprocess.image_size
        bottom, right = (side, side) if self.preprocess.fit == "whole" else usual
        size = round_up(bottom), round_up(right)
        pixels, shown, targets = self._placed(split, index, image, usual, (0, 0, bottom, right), size)
        return on_canvas(pixels, *size, shown[0], shown[1]), targets

    def _mosaic(self, split: CocoSplit, index: int) -> tuple[UInt8[Tensor, "3 h w"], DetectionTargets]:
        """Four images that meet in a random point. The first is the image itself; the others are random."""
        side = self.preprocess.image_size
        row, column = (round(random.uniform(*MOSAIC_CENTER) * side) for _ in range(2))
        regions = [(0, 0, row, column), (0, column, row, side), (row, 0, side, column), (row, column, side, side)]
        random.shuffle(regions)
        canvas, parts = on_canvas(torch.empty(3, 0, 0, dtype=torch.uint8), side, side), []
        for number, region in enumerate(regions):
            if (drawn := self._part(split, index if number == 0 else None, region, side)) is not None:
                pixels, (top, left, bottom, right), targets = drawn
                canvas[:, top:bottom, left:right] = pixels
                parts.append(targets)
        return canvas, _joined(parts)

    def _part(
        self, split: CocoSplit, index: int | None, region: Region, side: int
    ) -> tuple[UInt8[Tensor, "3 h w"], Region, DetectionTargets] | None:
        """A part of a mosaic with this image, or with a random usable one. None if no usable one is found."""
        for _ in range(TRIES):
            chosen = random.randrange(len(split)) if index is None else index
            stated = split.sizes[chosen].tolist()
            try:
                image = open_as(split.source(chosen), (stated[0], stated[1]), self.max_pixels)
                usual = fitted(image.height, image.width, self.preprocess)
                return self._placed(split, chosen, image, usual, region, (side, side))
            except BadImage:
                if index is not None:
                    raise
        return None

    def _placed(
        self, split: CocoSplit, index: int, image: Any, usual: tuple[int, int], region: Region, size: tuple[int, int]
    ) -> tuple[UInt8[Tensor, "3 h w"], Region, DetectionTargets]:
        """An image at a random scale and position in a region of the input.

        Returns the visible pixels, their place in the input, and the visible objects.

        Args:
            usual: Height and width of the image at scale 1.
            size: Height and width of the input.
        """
        factor = random.uniform(*self.scale)
        height, width = (max(1, round(factor * length)) for length in usual)
        room = region[2] - region[0] - height, region[3] - region[1] - width
        top, left = (
            start + random.randint(min(0, free), max(0, free)) for start, free in zip(region[:2], room, strict=True)
        )
        letterbox = Letterbox(image.height, image.width, height / image.height, width / image.width, top, left)
        shown = max(region[0], top), max(region[1], left), min(region[2], top + height), min(region[3], left + width)
        pixels = resized_whole(image, height, width)[
            :, shown[0] - top : shown[2] - top, shown[1] - left : shown[3] - left
        ]
        if self.color_jitter:
            pixels = self._jitter(pixels)
        if self.hsv:
            pixels = jitter_hsv(pixels, self.hsv)
        return pixels, shown, targets_of(split.objects[index], letterbox, size, shown, self.masks)


def jitter_hsv(pixels: UInt8[Tensor, "3 h w"], strength: float) -> UInt8[Tensor, "3 h w"]:
    """Change hue, saturation and value by random amounts of at most `strength` x (`HUE`, `SATURATION`, `VALUE`).

    All three changes are one linear map of the colors, since a change of hue rotates the color differences of `YIQ`.
    """
    hue, saturation, value = (strength * amount * random.uniform(-1, 1) for amount in (HUE, SATURATION, VALUE))
    angle, grey = 2 * math.pi * hue, max(0.0, 1 + saturation)
    cosine, sine = grey * math.cos(angle), grey * math.sin(angle)
    turned = np.linalg.inv(YIQ) @ np.array([[1, 0, 0], [0, cosine, -sine], [0, sine, cosine]]) @ YIQ
    matrix = torch.from_numpy(max(0.0, 1 + value) * turned).float()
    changed = matrix @ pixels.flatten(1).float()
    return changed.round_().clamp_(0, 255).to(torch.uint8).view(pixels.shape)


def _joined(parts: list[DetectionTargets]) -> DetectionTargets:
    masks = None if parts[0].masks is None else np.concatenate([part.masks for part in parts if part.masks is not None])
    boxes, labels, crowds = (
        np.concatenate([getattr(part, name) for part in parts]) for name in ("boxes", "labels", "crowds")
    )
    return DetectionTargets(boxes, labels, crowds, masks)


def _flipped(targets: DetectionTargets, width: int) -> DetectionTargets:
    boxes, crowds = (
        np.stack([width - given[:, 2], given[:, 1], width - given[:, 0], given[:, 3]], 1)
        for given in (targets.boxes, targets.crowds)
    )
    masks = None if targets.masks is None else np.ascontiguousarray(targets.masks[:, :, ::-1])
    return DetectionTargets(boxes, targets.labels, crowds, masks)
