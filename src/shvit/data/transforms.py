"""From an image to the uint8 tensor that the network's input is made of: timm's transforms, and a faster one."""

import math
import random
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, UInt8
from PIL import Image
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, create_transform
from timm.data.auto_augment import posterize
from timm.data.transforms import RandomResizedCropAndInterpolation
from torch import Tensor, nn
from torch.nn.functional import interpolate
from torchvision.transforms.v2 import Compose
from torchvision.transforms.v2.functional import pil_to_tensor

from ..errors import InputError
from .decode import ImageInput, decode
from .image_file import MAX_PIXELS, within_memory
from .opencv import FASTER
from .reduced import Opened, Pixels, open_small

INTERPOLATIONS = ("bicubic", "bilinear", "nearest", "lanczos")
FITS = ("crop", "squash", "whole", "shorter")
MAX_SIDE, MIN_CROP, MIN_STD = 8192, 0.1, 1e-6
"""Far beyond any use; a damaged file must not ask for more."""
COARSEST = 64
"""Sides of what a detector sees are multiples of this, in pixels: the stride of SHViT's last map."""
LONGER = 5 / 3
"""Of fit `shorter`: how many times `image_size` the longer side may be. 1333 for 800, as is usual on COCO."""
MARGIN = tuple(round(255 * value) for value in IMAGENET_DEFAULT_MEAN)
"""Colour around images that do not fill what the network sees: all but zero when it is normalised."""
Transform = Callable[[Image.Image], UInt8[Tensor, "3 h w"]]
Reader = Callable[[ImageInput], UInt8[Tensor, "3 h w"]]
"""From what holds an image to the tensor; raises BadImage."""
THIN = 8
"""How many times `image_size` the longer side of a resized image may be for it to be resized whole."""
REACH = 4
"""Pixels beyond a part's edges, of the image or of the result, that its pixels depend on: Lanczos' 3 and one."""
TALL = 64
"""How many times its final height an image may have for its width to be resized first, as it usually is."""
SHRINK_UNTIL = 4
"""How many times its final shorter side an image keeps when it is decoded at less than its size. Fewer times would be
faster for large photographs, and further from their pixels; LOG.md has how far these are."""


@dataclass(frozen=True)
class Preprocess:
    """What is done to an image before the network sees it. Part of every model file.

    Raises:
        InputError: A value is out of its range.
    """

    image_size: int = 224
    """Side of the square that the network sees, in pixels; of fit `shorter`, what the image's shorter side becomes."""
    crop: float = 0.875
    """Side of that square as a share of the resized image's shorter side."""
    interpolation: str = "bicubic"
    mean: tuple[float, ...] = IMAGENET_DEFAULT_MEAN
    """Subtracted from each channel, whose values go from 0 to 1."""
    std: tuple[float, ...] = IMAGENET_DEFAULT_STD
    fit: str = "crop"
    """Of classifiers `crop`, the centre, or `squash`, the whole image resized to the square without keeping its shape,
    whatever `crop` is. Detectors see whole images: `whole` makes the longer side `image_size`; `shorter` the shorter
    one, or less where the longer one would be more than 5/3 of that."""

    def __post_init__(self) -> None:
        if type(self.image_size) is not int or not 32 <= self.image_size <= MAX_SIDE:
            raise InputError(f"image_size must be 32 to {MAX_SIDE} pixels, got {self.image_size}")
        if type(self.crop) not in (int, float) or not MIN_CROP <= self.crop <= 1:
            raise InputError(f"crop must be {MIN_CROP} to 1, got {self.crop}")
        if self.fit not in FITS:
            raise InputError(f"fit must be one of {', '.join(FITS)}, got {self.fit!r}")
        if self.interpolation not in INTERPOLATIONS:
            raise InputError(f"interpolation must be one of {', '.join(INTERPOLATIONS)}, got {self.interpolation!r}")
        numbers = all(type(value) in (int, float) and abs(value) <= 255 for value in (*self.mean, *self.std))
        if not numbers or len(self.mean) != len(self.std) or not all(value >= MIN_STD for value in self.std):
            raise InputError(
                f"mean and std must be as many numbers of at most 255, and std positive, got {self.mean} and {self.std}"
            )

    @property
    def input_size(self) -> int:
        """Side of the square that holds any image as the network sees it, margins included, in pixels."""
        if self.fit != "shorter":
            return self.image_size
        return -(-round(LONGER * self.image_size) // COARSEST) * COARSEST

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "Preprocess":
        """Inverse of `to_dict`. Raises InputError for missing, unknown or impossible entries."""
        try:
            return cls(**{**data, "mean": tuple(data["mean"]), "std": tuple(data["std"])})
        except (TypeError, KeyError) as error:
            raise InputError(f"not a description of preprocessing: {error}") from None


def on_canvas(image: UInt8[Tensor, "3 h w"], height: int, width: int) -> UInt8[Tensor, "3 h2 w2"]:
    """The image with margins at the right and below, in channels_last."""
    canvas = torch.tensor(MARGIN, dtype=torch.uint8).repeat(height, width, 1).permute(2, 0, 1)
    canvas[:, : image.shape[1], : image.shape[2]] = image
    return canvas


class Normalize(nn.Module):
    """What a network in training is fed: uint8 images less the mean, over the deviation, in fp32 and channels_last.

    Images move to the module's device first.
    """

    mean: Float[Tensor, " c"]
    std: Float[Tensor, " c"]

    def __init__(self, preprocess: Preprocess) -> None:
        super().__init__()
        self.register_buffer("mean", per_channel(preprocess.mean).flatten(), persistent=False)
        self.register_buffer("std", per_channel(preprocess.std).flatten(), persistent=False)

    def forward(self, images: UInt8[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        channels, width = images.shape[1], images.shape[3]
        # whole rows, since broadcasting over three channels at a time leaves a CPU's vector units idle
        rows = images.to(self.mean.device).permute(0, 2, 3, 1).flatten(2).float()  # (b, h, w·c)
        rows.sub_(self.mean.repeat(width)).div_(self.std.repeat(width))
        return rows.unflatten(2, (width, channels)).permute(0, 3, 1, 2)


def per_channel(values: tuple[float, ...]) -> Float[Tensor, "1 c 1 1"]:
    """Numbers on the scale of 0 to 1, on that of 0 to 255."""
    return 255 * torch.tensor(values).view(1, -1, 1, 1)


def eval_transform(preprocess: Preprocess) -> Transform:
    """timm's evaluation transform, with antialiasing.

    Shorter side to `image_size / crop`, then the centre square; of fit `squash`, both sides to `image_size`. Where the
    resized image would be long, only the square is made: the pixels are the same.
    """
    return _EvalTransform(preprocess)


@dataclass(frozen=True)
class _EvalTransform:
    preprocess: Preprocess

    @cached_property
    def _timms(self) -> Any:
        squash = self.preprocess.fit == "squash"
        to_pixels: Any = create_transform(
            self.preprocess.image_size,
            interpolation=self.preprocess.interpolation,
            crop_pct=1.0 if squash else self.preprocess.crop,
            crop_mode="squash" if squash else "center",
            use_prefetcher=True,
        )
        return Compose([to_pixels, torch.as_tensor])

    def __call__(self, image: Image.Image) -> UInt8[Tensor, "3 h w"]:
        height, width = resized_sides(image.height, image.width, self.preprocess)
        if max(height, width) <= THIN * self.preprocess.image_size:
            if image.height > TALL * height:
                image = image.resize((image.width, height), _method(self.preprocess))
            return self._timms(image)
        return _centre(image.crop, (image.height, image.width), image.height, image.width, self.preprocess)


def resized_sides(height: float, width: float, preprocess: Preprocess) -> tuple[int, int]:
    """Of an image of this size, before it is cropped; as timm and torchvision round them."""
    side = preprocess.image_size
    if preprocess.fit == "squash":
        return side, side
    shorter = math.floor(side / preprocess.crop)
    return int(shorter * height / min(height, width)), int(shorter * width / min(height, width))


def _centre(
    crop: Callable[[tuple[int, int, int, int]], Image.Image],
    size: tuple[int, int],
    height: float,
    width: float,
    preprocess: Preprocess,
) -> UInt8[Tensor, "3 h w"]:
    """What resizing the whole image and cropping it gives, from the part that is left alone.

    Args:
        crop: Gives a part of the image in RGB: left, top, right, bottom.
        size: Height and width of the image.
        height, width: The same, as of `Pixels`.
        preprocess: Of fit `crop`.
    """
    side = preprocess.image_size
    edges, around = [], []
    for new, old, limit in zip(resized_sides(height, width, preprocess), (height, width), size, strict=True):
        first, scale = round((new - side) / 2), old / new
        edge = first * scale, min(limit, (first + side) * scale)
        reach = REACH * max(1, scale)
        around.append((max(0, math.floor(edge[0] - reach)), min(limit, math.ceil(edge[1] + reach))))
        edges.append((edge[0] - around[-1][0], edge[1] - around[-1][0]))
    (top, bottom), (left, right) = edges
    (upper, lower), (first, last) = around
    part = crop((first, upper, last, lower))
    return pil_to_tensor(part.resize((side, side), _method(preprocess), (left, top, right, bottom)))


def _method(preprocess: Preprocess) -> Image.Resampling:
    return Image.Resampling[preprocess.interpolation.upper()]


@dataclass(frozen=True)
class Decoded:
    """Reads an image whole, then applies a transform to it."""

    transform: Transform
    max_pixels: int = MAX_PIXELS

    def __call__(self, source: ImageInput) -> UInt8[Tensor, "3 h w"]:
        """Raises BadImage as `decode` does."""
        image = decode(source, self.max_pixels)
        with within_memory():
            return self.transform(image)


def fast_eval_decoder(preprocess: Preprocess) -> Callable[[ImageInput], UInt8[Tensor, "3 h w"]]:
    """From file to tensor in less than half the time of `decode` and `eval_transform`, and all but the same.

    Pixels differ by rounding, mostly by none of 255 levels; where a large JPEG is decoded at a part of its size, by a
    fraction of a level on average. Accuracies are still to be measured by timm's own transform. The tensor is in
    channels_last, and its memory may be larger than itself.

    The function raises BadImage as `decode` does.
    """
    if preprocess.interpolation not in ("bicubic", "bilinear"):
        return Decoded(eval_transform(preprocess))
    side = preprocess.image_size
    squash = preprocess.fit == "squash"
    shorter = side if squash else math.floor(side / preprocess.crop)

    def to_pixels(source: ImageInput) -> UInt8[Tensor, "3 h w"]:
        image = open_small(source)
        with image.in_turn():
            pixels = image.decode(min(image.height, image.width) / (SHRINK_UNTIL * shorter))
            if squash:
                values = _channels_first(pixels)
                if pixels.height > TALL * side:
                    values = interpolate(values, (side, values.shape[3]), mode=preprocess.interpolation, antialias=True)
                return interpolate(values, (side, side), mode=preprocess.interpolation, antialias=True)[0]
            return _resize_crop(pixels, preprocess)

    return to_pixels


def _resize_crop(image: Pixels, preprocess: Preprocess) -> UInt8[Tensor, "3 h w"]:
    """The shorter side to `image_size / crop` with antialiasing, then the centre square of `image_size`."""
    side = preprocess.image_size
    height, width = resized_sides(image.height, image.width, preprocess)
    if max(height, width) > THIN * side:
        return _centre(
            lambda box: Image.fromarray(image.values[box[1] : box[3], box[0] : box[2]]),
            image.values.shape[:2],
            image.height,
            image.width,
            preprocess,
        )
    # the least bit more, or rounding might lose the last row
    factors = [(1 + 1e-6) * new / old for new, old in ((height, image.height), (width, image.width))]
    resized = interpolate(_channels_first(image), scale_factor=factors, mode=preprocess.interpolation, antialias=True)
    top, left = (round((length - side) / 2) for length in (height, width))
    return resized[0, :, top : top + side, left : left + side]


def _channels_first(image: Pixels) -> UInt8[Tensor, "1 3 h w"]:
    return torch.from_numpy(image.values)[None].permute(0, 3, 1, 2)  # numpy's [None] has strides that are slower


@dataclass(frozen=True)
class TrainReader:
    """A random part of the image, resized, perhaps mirrored, its colours or more changed: timm's training transform.

    With the same generators the choices are timm's, and the pixels are but for rounding. Where the part is several
    times as large as the result, a JPEG is decoded at a half or less of its size, as long as no pixel of the result
    has to be made up; the part's edges then lie on whole pixels of the smaller image. The tensor is in channels_last.

    The random choices come from the global generators: call it within `loader.seeded`.
    """

    image_size: int
    """Side of the square result, in pixels."""
    crop_scale: tuple[float, float] = (0.08, 1.0)
    """Least and greatest share of the image's area that the part has."""
    flip: float = 0.5
    """Probability of mirroring."""
    color_jitter: float = 0.0
    """Strength; used only without RandAugment, as in DeiT."""
    rand_augment: str | None = None
    """timm's description, such as `rand-m9-mstd0.5-inc1`; None for none."""
    max_pixels: int = MAX_PIXELS
    interpolation: str = "random"
    """Of the part and of RandAugment: `bilinear`, `bicubic`, or `random` for one of the two, drawn anew for each."""

    @cached_property
    def changes(self) -> list[Callable[[Image.Image], Image.Image]]:
        """What timm does to the resized image."""
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
        for operation in getattr(changes.transforms[0], "ops", []):  # RandAugment's
            operation.aug_fn = SAME.get(operation.aug_fn, operation.aug_fn)
        return changes.transforms

    def __call__(self, source: ImageInput) -> UInt8[Tensor, "3 h w"]:
        """Raises BadImage as `decode` does."""
        image = open_small(source, self.max_pixels)
        box = draw_crop(image.height, image.width, self.crop_scale)
        random_one = self.interpolation == "random"
        interpolation = random.choice(("bilinear", "bicubic")) if random_one else self.interpolation
        with image.in_turn():
            part = _part(image, box, min(box.height, box.width) / self.image_size)
            tensor = interpolate(part, (self.image_size, self.image_size), mode=interpolation, antialias=True)[0]
            del part
        if self.flip and torch.rand(()) < self.flip:
            tensor = tensor.flip(2)
        if not self.changes:
            return tensor
        changed = Image.fromarray(tensor.permute(1, 2, 0).numpy())
        for change in self.changes:
            changed = change(changed)
        return pil_to_tensor(changed)


def posterize_to_black(image: Image.Image, bits: int, **options: Any) -> Image.Image:
    """As timm does, which asks for no bits at all now and then. That is black; Pillow refuses it from version 13 on."""
    return posterize(image, bits, **options) if bits else Image.new("RGB", image.size)


SAME = {**FASTER, posterize: posterize_to_black}
"""Operations of timm's, and what is done here instead."""


class Box(NamedTuple):
    """A part of an image, in whole pixels of it."""

    top: int
    left: int
    height: int
    width: int


def draw_crop(height: int, width: int, scale: tuple[float, float]) -> Box:
    """As timm does for an image of this size, but for tiny ones, of which a row and a column remain at least."""
    image: Any = torch.empty(height, width, device="meta")
    top, left, *sides = RandomResizedCropAndInterpolation.get_params(image, scale, (3 / 4, 4 / 3))
    return Box(min(top, height - 1), min(left, width - 1), *(max(1, side) for side in sides))


def _part(image: Opened, box: Box, at_most: float) -> UInt8[Tensor, "1 3 h w"]:
    """A view of the part, where the image is decoded at its size or at most so many times smaller."""
    pixels = image.decode_top(box.top + box.height, at_most)
    down, across = pixels.height / image.height, pixels.width / image.width
    rows = slice(round(down * box.top), round(down * (box.top + box.height)))
    columns = slice(round(across * box.left), round(across * (box.left + box.width)))
    return _channels_first(pixels)[..., rows, columns]
