"""Random changes of training images for classifiers: timm's, with faster equivalents."""

import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
from jaxtyping import UInt8
from PIL import Image
from timm.data import create_transform
from timm.data.auto_augment import posterize
from timm.data.transforms import RandomResizedCropAndInterpolation
from torch import Tensor
from torchvision.transforms.v2.functional import pil_to_tensor

from .decode import ImageInput
from .image_file import MAX_PIXELS
from .opencv import FASTER, MATRICES
from .reduced import OpenedImage, open_small
from .transforms import channels_first, letterboxed, on_canvas, resized


@dataclass(frozen=True)
class TrainReader:
    """timm's training transform: resize a random crop, flip it at random, and apply color jitter or RandAugment.

    With fit `stretch`, crops have the image's aspect ratio, up to a factor of 4/3. With fit `letterbox`, the whole
    image is put on the square at a random position. Its size is drawn as that of a crop of the letterboxed image, so
    area and aspect ratio vary as with the other fits. RandAugment then leaves out `MATRICES`, which cut off parts.

    With the same seeds, it makes the same random choices as timm, and pixels differ only by rounding. If the crop is at
    least twice as large as the result, a JPEG is decoded at a reduced size, and the edges of the crop are rounded to
    pixels of the reduced image. The tensor is in channels_last.

    The random choices use the global generators: call the reader within `loader.seeded`.
    """

    image_size: int
    """Side of the square result, in pixels."""
    crop_scale: tuple[float, float] = (0.08, 1.0)
    """Minimum and maximum area of the crop, as a share of the image's area. With fit `letterbox`: of the resized image,
    as a share of its largest area in the square."""
    flip: float = 0.5
    """Probability of a horizontal flip."""
    color_jitter: float = 0.0
    """Strength of color jitter; used only without RandAugment, as in DeiT."""
    rand_augment: str | None = None
    """timm's description of RandAugment, such as `rand-m9-mstd0.5-inc1`; None to disable RandAugment."""
    max_pixels: int = MAX_PIXELS
    interpolation: str = "random"
    """For the crop and RandAugment: `bilinear`, `bicubic`, or `random`, which chooses one of them for each image."""
    fit: str = "crop"
    """How the image fits the square, as in `Preprocess`."""

    @cached_property
    def changes(self) -> list[Callable[[Image.Image], Image.Image]]:
        """timm's augmentations, applied to the resized crop."""
        if not self.color_jitter and not self.rand_augment:
            return []
        _, changes, _ = create_transform(  # pyright: ignore[reportGeneralTypeIssues]: three, as they are separate
            self.image_size,
            is_training=True,
            color_jitter=self.color_jitter,
            auto_augment=self.rand_augment,
            interpolation=self.interpolation,
            use_prefetcher=True,
            separate=True,
        )
        if self.rand_augment:
            augment = changes.transforms[0]
            if self.fit == "letterbox":
                augment.ops = [operation for operation in augment.ops if operation.aug_fn not in MATRICES]
            for operation in augment.ops:
                operation.aug_fn = SAME.get(operation.aug_fn, operation.aug_fn)
        return changes.transforms

    def __call__(self, source: ImageInput) -> UInt8[Tensor, "3 h w"]:
        """Read an image. Raises BadImage as `decode` does."""
        image = open_small(source, self.max_pixels)
        box, size = self._draw(image.height, image.width)
        random_one = self.interpolation == "random"
        interpolation = random.choice(("bilinear", "bicubic")) if random_one else self.interpolation
        with image.in_turn():
            part = _cropped(image, box, min(box.height / size[0], box.width / size[1]))
            tensor = resized(part, size, interpolation)
            del part
        if self.flip and torch.rand(()) < self.flip:
            tensor = tensor.flip(2)
        if self.changes:
            changed = Image.fromarray(tensor.permute(1, 2, 0).numpy())
            for change in self.changes:
                changed = change(changed)
            tensor = pil_to_tensor(changed)
        if self.fit == "letterbox":
            top, left = (random.randint(0, self.image_size - length) for length in size)
            return on_canvas(tensor, self.image_size, self.image_size, top, left)
        return tensor

    def _draw(self, height: int, width: int) -> tuple["Box", tuple[int, int]]:
        """Draw the part of an image that is shown, and its height and width after resizing."""
        if self.fit == "letterbox":
            largest = letterboxed(height, width, self.image_size)
            drawn = draw_crop(*largest, self.crop_scale, largest[1] / largest[0])
            return Box(0, 0, height, width), (drawn.height, drawn.width)
        aspect = width / height if self.fit == "stretch" else 1.0
        return draw_crop(height, width, self.crop_scale, aspect), (self.image_size, self.image_size)


def posterize_to_black(image: Image.Image, bits: int, **options: Any) -> Image.Image:
    """timm's posterize, but 0 bits give a black image. timm sometimes requests 0 bits, and Pillow 13 refuses them."""
    return posterize(image, bits, **options) if bits else Image.new("RGB", image.size)


SAME = {**FASTER, posterize: posterize_to_black}
"""timm's operations that are replaced, and their replacements."""


class Box(NamedTuple):
    """A rectangle in an image, in whole pixels."""

    top: int
    left: int
    height: int
    width: int


def draw_crop(height: int, width: int, scale: tuple[float, float], aspect: float = 1.0) -> Box:
    """Draw a random crop as timm does, with at least one row and one column.

    Args:
        scale: Minimum and maximum area, as a share of the image's area.
        aspect: Width / height of the crop, which varies by a factor of 3/4 to 4/3.
    """
    image: Any = torch.empty(height, width, device="meta")
    ratio = 3 / 4 * aspect, 4 / 3 * aspect
    top, left, *sides = RandomResizedCropAndInterpolation.get_params(image, scale, ratio)
    return Box(min(top, height - 1), min(left, width - 1), *(max(1, side) for side in sides))


def _cropped(image: OpenedImage, box: Box, at_most: float) -> UInt8[Tensor, "1 3 h w"]:
    """Decode an image, reduced by a factor of at most `at_most`, and return a view of the crop."""
    pixels = image.decode(at_most, box.top + box.height)
    down, across = pixels.height / image.height, pixels.width / image.width
    rows = slice(round(down * box.top), round(down * (box.top + box.height)))
    columns = slice(round(across * box.left), round(across * (box.left + box.width)))
    return channels_first(pixels)[..., rows, columns]
