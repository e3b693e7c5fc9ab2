"""Letterbox images for detectors, and convert their objects to pixels of the network's input."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor
from torch.nn.functional import interpolate, pad

from ..errors import InputError
from .coco import CocoSplit, Objects
from .decode import ImageInput, decode
from .image_file import MAX_PIXELS, BadImage
from .reduced import OpenedImage, open_small
from .segments import Mask
from .transforms import COARSEST, LONGER, Preprocess, channels_first, on_canvas, round_up

MIN_VISIBLE, MIN_BOX_SIDE = 0.2, 2.0
"""After a crop, an object is kept if at least this share of its box's area is visible, and if the width and height of
the visible part are at least this many pixels."""


@dataclass(frozen=True)
class Letterbox:
    """Position and scale of an image in the network's input."""

    height: int
    width: int
    """Size of the image, in pixels."""
    down: float
    across: float
    """Vertical and horizontal scale: pixels of the input per pixel of the image."""
    top: int = 0
    left: int = 0
    """Position of the image's first pixel in the input; negative if the input cuts off part of the image."""

    def to_input(self, points: np.ndarray) -> np.ndarray:
        """Transform points (x, y, x, y, … in the last dimension) from pixels of the image to pixels of the input."""
        scale, shift = self._factors(points.shape[-1])
        return (points * scale + shift).astype(points.dtype)

    def to_image(self, boxes: Float[Tensor, "n 4"], cut: bool = True) -> Float[Tensor, "n 4"]:
        """Transform boxes from pixels of the input to pixels of the image; with `cut`, clip them to the image."""
        scale, shift = map(torch.from_numpy, self._factors(4))
        points = (boxes - shift) / scale
        return torch.minimum(points.clamp(min=0), torch.tensor([self.width, self.height] * 2)) if cut else points

    def _factors(self, length: int) -> list[np.ndarray]:
        pairs = (self.across, self.down), (self.left, self.top)
        return [np.tile(np.array(pair, np.float32), length // 2) for pair in pairs]


@dataclass(frozen=True)
class DetectionTargets:
    """Targets of one image, in pixels of the network's input.

    The fields are NumPy arrays, because each tensor that a worker sends keeps a file descriptor open.
    """

    boxes: Float[np.ndarray, "n 4"]
    labels: Int64[np.ndarray, " n"]
    crowds: Float[np.ndarray, "m 4"]
    """Boxes of crowds: regions with many objects, ignored in training."""
    masks: UInt8[np.ndarray, "n h w"] | None = None


@dataclass(frozen=True)
class GroundTruth:
    """The objects of one image for evaluation, and the image's position in the input."""

    image_id: int
    letterbox: Letterbox
    objects: Objects


def check_fit(preprocess: Preprocess) -> None:
    """Raises InputError for preprocessing that a detector cannot use."""
    if preprocess.fit not in ("whole", "shorter"):
        raise InputError(f"a detector needs uncropped images: fit must be 'whole' or 'shorter', got {preprocess.fit!r}")
    if preprocess.fit == "whole" and preprocess.image_size % COARSEST:
        size = preprocess.image_size
        raise InputError(f"image_size of a detector must be a multiple of {COARSEST} pixels, got {size}")


def fitted(height: int, width: int, preprocess: Preprocess) -> tuple[int, int]:
    """Height and width of an image after resizing, without padding."""
    size = preprocess.image_size
    scale = size / max(height, width)
    if preprocess.fit == "shorter":
        scale = min(size / min(height, width), LONGER * size / max(height, width))
    return max(1, round(scale * height)), max(1, round(scale * width))


def read_whole(
    source: ImageInput, preprocess: Preprocess, size: tuple[int, int] | None = None, max_pixels: int = MAX_PIXELS
) -> tuple[UInt8[Tensor, "3 h w"], Letterbox]:
    """Read a whole image for a detector, padded at the right and at the bottom.

    Args:
        preprocess: Its fit must be `whole` or `shorter`.
        size: Height and width according to the annotations; None to accept any size.

    Raises:
        BadImage: As for `decode`, or the image has a different size.
    """
    image = open_as(source, size, max_pixels)
    height, width = fitted(image.height, image.width, preprocess)
    pixels = resized_whole(image, height, width)
    letterbox = Letterbox(image.height, image.width, height / image.height, width / image.width)
    if preprocess.fit == "whole":
        return on_canvas(pixels, preprocess.image_size, preprocess.image_size), letterbox
    return on_canvas(pixels, round_up(height), round_up(width)), letterbox


def open_as(source: ImageInput, size: tuple[int, int] | None, max_pixels: int = MAX_PIXELS) -> OpenedImage:
    """Open an image with its EXIF orientation applied; or as stored, if only the stored image has the given size.

    Raises:
        BadImage: As for `decode`, or the image has a different size, both upright and as stored.
    """
    image = open_small(source, max_pixels)
    actual = image.height, image.width
    if size is None or actual == size:
        return image
    if actual == size[::-1]:
        stored = open_small(np.asarray(decode(source, max_pixels, upright=False)), max_pixels)
        if (stored.height, stored.width) == size:
            return stored
    raise BadImage(f"is {actual[1]}x{actual[0]}, but its annotations are for {size[1]}x{size[0]}")


@dataclass(frozen=True)
class DetectionEvalReader:
    """Reads an image of a `CocoSplit` for evaluation: letterboxed, with all its objects."""

    preprocess: Preprocess
    max_pixels: int = MAX_PIXELS

    def __call__(self, split: CocoSplit, index: int) -> tuple[UInt8[Tensor, "3 h w"], GroundTruth]:
        """Read an image and its objects. Raises BadImage as `open_as` does."""
        height, width = split.sizes[index].tolist()
        image, letterbox = read_whole(split.source(index), self.preprocess, (height, width), self.max_pixels)
        return image, GroundTruth(split.ids[index], letterbox, split.objects[index])


def targets_of(
    objects: Objects, letterbox: Letterbox, size: tuple[int, int], shown: tuple[int, int, int, int], masks: bool
) -> DetectionTargets:
    """The objects of an image in pixels of the network's input. Objects that are mostly cut off are left out, but any
    visible part of a crowd is kept.

    Args:
        size: Height and width of the input.
        shown: Top, left, bottom and right of the image's visible part in the input. Boxes and masks are clipped to it.
    """
    top, left, bottom, right = shown
    boxes = letterbox.to_input(objects.boxes)
    inside = boxes.clip(np.array([left, top] * 2, np.float32), np.array([right, bottom] * 2, np.float32))
    sides, whole = inside[:, 2:] - inside[:, :2], boxes[:, 2:] - boxes[:, :2]
    shows = sides.min(1, initial=np.inf) >= MIN_BOX_SIDE
    crowd = objects.crowd | np.array([masks and segment is None for segment in objects.segments], bool)
    kept = np.flatnonzero(shows & ~crowd & (sides.prod(1) >= MIN_VISIBLE * whole.prod(1)))
    drawn = np.zeros((len(kept), *size), np.uint8) if masks else None
    if drawn is not None:
        for number, index in enumerate(kept):
            mask = rasterize(objects.segments[int(index)], letterbox, size)
            drawn[number, top:bottom, left:right] = mask[top:bottom, left:right]
    return DetectionTargets(inside[kept], objects.labels[kept], inside[shows & crowd], drawn)


def rasterize(segment: Mask | None, letterbox: Letterbox, size: tuple[int, int]) -> UInt8[np.ndarray, "h w"]:
    """Draw an object's mask in an input of this height and width: 1 inside, 0 outside."""
    from faster_coco_eval.core import mask

    if segment is None:
        return np.zeros(size, np.uint8)
    if isinstance(segment, tuple):
        parts: Any = mask.frPyObjects([letterbox.to_input(points) for points in segment], *size)
        return mask.decode(mask.merge(parts))
    whole = torch.from_numpy(mask.decode(run_lengths(segment)))[None, None]
    height, width = round(letterbox.down * letterbox.height), round(letterbox.across * letterbox.width)
    below, right = size[0] - letterbox.top - height, size[1] - letterbox.left - width  # negative values crop
    scaled = interpolate(whole, (height, width), mode="nearest")
    return pad(scaled, (letterbox.left, right, letterbox.top, below))[0, 0].numpy()


def run_lengths(segment: dict[str, Any]) -> dict[str, Any]:
    """Convert COCO's run-length encoding to the compressed form that COCO's tools read."""
    from faster_coco_eval.core import mask

    packed: Any = mask.frPyObjects(segment, *segment["size"]) if isinstance(segment["counts"], list) else segment
    return packed


def resized_whole(image: OpenedImage, height: int, width: int) -> UInt8[Tensor, "3 h w"]:
    """Decode an image and resize it to this height and width."""
    with image.in_turn():
        pixels = channels_first(image.decode(min(image.height / height, image.width / width) / 2))
        return interpolate(pixels, (height, width), mode="bilinear", antialias=True)[0]
