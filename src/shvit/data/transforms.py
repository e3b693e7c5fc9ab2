"""Transforms from an image to a uint8 tensor for the network: timm's for evaluation, and faster equivalents."""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from typing import Any

import torch
from jaxtyping import Float, UInt8
from PIL import Image
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, create_transform
from torch import Tensor, nn
from torch.nn.functional import interpolate
from torchvision.transforms.v2 import Compose
from torchvision.transforms.v2.functional import pil_to_tensor

from ..errors import InputError
from ..requests import OLD_FITS
from .decode import ImageInput, decode
from .image_file import MAX_PIXELS, within_memory
from .reduced import Pixels, open_small

INTERPOLATIONS = ("bicubic", "bilinear", "nearest", "lanczos")
FITS = ("crop", "letterbox", "stretch", "whole", "shorter")
CROP_MODES = {"crop": "center", "letterbox": "border", "stretch": "squash"}
"""timm's names for how images fit, as `crop_mode` in a network's `pretrained_cfg`."""
MAX_IMAGE_SIZE, MIN_CROP, MIN_STD = 8192, 0.1, 1e-6
"""Limits for values in model files, because a file may be damaged. Sensible values are far from these limits."""
COARSEST = 64
"""Stride of SHViT's last feature map, in pixels. The sides of a detector's input are multiples of it."""
LONGER = 5 / 3
"""With fit `shorter`: maximum longer side as a multiple of `image_size` (1333 pixels for 800, as usual on COCO)."""
MARGIN = tuple(round(255 * value) for value in IMAGENET_DEFAULT_MEAN)
"""Color of padding: almost zero after normalization."""
Reader = Callable[[ImageInput], UInt8[Tensor, "3 h w"]]
"""Reads an image as a tensor. Raises BadImage."""
THIN = 8
"""An image is cropped before it is resized if its resized longer side would exceed this many times `image_size`."""
REACH = 4
"""Number of pixels beyond the edges of a crop that influence the resized crop: 3 for Lanczos, plus one."""
TALL = 64
"""An image is resized horizontally first, unless it is more than this many times as high as the result."""
SHRINK_UNTIL = 4
"""`fast_eval_decoder` decodes an image at a reduced size only if the shorter side is then at least this many times its
final length. A smaller value is faster for large photographs but less exact; LOG.md lists the differences."""


@dataclass(frozen=True)
class Preprocess:
    """How an image becomes the network's input. Stored in every model file.

    Raises:
        InputError: A value is out of its range.
    """

    image_size: int = 224
    """Side of the square input, in pixels; with fit `shorter`, the image's shorter side after resizing."""
    crop: float = 0.875
    """Side of the center square, as a share of the resized image's shorter side."""
    interpolation: str = "bicubic"
    mean: tuple[float, ...] = IMAGENET_DEFAULT_MEAN
    """Mean of each channel, for values from 0 to 1."""
    std: tuple[float, ...] = IMAGENET_DEFAULT_STD
    fit: str = "crop"
    """For classifiers: `crop` takes the center square. The other two see whole images and ignore the field `crop`:
    `letterbox` makes the longer side `image_size` and pads the shorter side evenly; `stretch` makes both sides
    `image_size`. For detectors, which see whole images: `whole` makes the longer side `image_size`; `shorter` makes
    the shorter side `image_size`, or less if the longer side would exceed 5/3 of `image_size`."""

    def __post_init__(self) -> None:
        if type(self.image_size) is not int or not 32 <= self.image_size <= MAX_IMAGE_SIZE:
            raise InputError(f"image_size must be 32 to {MAX_IMAGE_SIZE} pixels, got {self.image_size}")
        if type(self.crop) not in (int, float) or not MIN_CROP <= self.crop <= 1:
            raise InputError(f"crop must be {MIN_CROP} to 1, got {self.crop}")
        if self.fit not in FITS:
            raise InputError(f"fit must be one of {', '.join(FITS)}, got {self.fit!r}")
        if self.interpolation not in INTERPOLATIONS:
            raise InputError(f"interpolation must be one of {', '.join(INTERPOLATIONS)}, got {self.interpolation!r}")
        numbers = all(type(value) in (int, float) and abs(value) <= 255 for value in (*self.mean, *self.std))
        if not numbers or len(self.mean) != len(self.std) or not all(value >= MIN_STD for value in self.std):
            limits = f"one number per channel, at most 255, and std at least {MIN_STD}"
            raise InputError(f"mean and std must be {limits}; got {self.mean} and {self.std}")

    @property
    def input_size(self) -> int:
        """Side in pixels of the square that can hold any input, including padding."""
        return round_up(round(LONGER * self.image_size)) if self.fit == "shorter" else self.image_size

    def to_dict(self) -> dict[str, Any]:
        """The values as a dict for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "Preprocess":
        """Inverse of `to_dict`. Also accepts `OLD_FITS`.

        Raises InputError for missing, unknown or impossible entries.
        """
        try:
            known = {"fit": cls.fit, **data, "mean": tuple(data["mean"]), "std": tuple(data["std"])}
            return cls(**{**known, "fit": OLD_FITS.get(known["fit"], known["fit"])})
        except (TypeError, KeyError) as error:
            raise InputError(f"not a description of preprocessing: {error}") from None


def round_up(side: int) -> int:
    """Round up to the next multiple of `COARSEST`."""
    return -(-side // COARSEST) * COARSEST


def on_canvas(
    image: UInt8[Tensor, "3 h w"], height: int, width: int, top: int = 0, left: int = 0
) -> UInt8[Tensor, "3 h2 w2"]:
    """Pad an image to this height and width, with its top left corner at (`top`, `left`), in channels_last."""
    canvas = torch.tensor(MARGIN, dtype=torch.uint8).repeat(height, width, 1).permute(2, 0, 1)
    canvas[:, top : top + image.shape[1], left : left + image.shape[2]] = image
    return canvas


def _padded(image: UInt8[Tensor, "3 h w"], side: int) -> UInt8[Tensor, "3 side side"]:
    """Pad an image evenly to a square. If this is not possible, the bottom or right margin is one pixel wider."""
    height, width = image.shape[1:]
    if height == width == side:
        return image
    return on_canvas(image, side, side, (side - height) // 2, (side - width) // 2)


class Normalize(nn.Module):
    """Normalize uint8 images for training: subtract the mean and divide by the standard deviation.

    The images are moved to the module's device first. The result is in fp32 and channels_last.
    """

    mean: Float[Tensor, " c"]
    std: Float[Tensor, " c"]

    def __init__(self, preprocess: Preprocess) -> None:
        super().__init__()
        self.register_buffer("mean", per_channel(preprocess.mean).flatten(), persistent=False)
        self.register_buffer("std", per_channel(preprocess.std).flatten(), persistent=False)

    def forward(self, images: UInt8[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        channels, width = images.shape[1], images.shape[3]
        # whole rows, because broadcasting over three channels leaves a CPU's vector units idle
        rows = images.to(self.mean.device).permute(0, 2, 3, 1).flatten(2).float()  # (b, h, w·c)
        rows.sub_(self.mean.repeat(width)).div_(self.std.repeat(width))
        return rows.unflatten(2, (width, channels)).permute(0, 3, 1, 2)


def per_channel(values: tuple[float, ...]) -> Float[Tensor, "1 c 1 1"]:
    """One value per channel, scaled from the range 0-1 to 0-255."""
    return 255 * torch.tensor(values).view(1, -1, 1, 1)


@dataclass(frozen=True)
class EvalReader:
    """timm's evaluation transform, with antialiasing.

    With fit `crop`, resizes the shorter side to `image_size / crop` and takes the center square. With fit `letterbox`,
    resizes the longer side to `image_size` and pads the image to a square (timm's crop_mode `border`). With fit
    `stretch`, resizes both sides to `image_size` (timm's `squash`).

    If a very long image is cropped, only the center square is resized, with the same result.
    """

    preprocess: Preprocess
    max_pixels: int = MAX_PIXELS

    @cached_property
    def _timms(self) -> Any:
        to_pixels: Any = create_transform(
            self.preprocess.image_size,
            interpolation=self.preprocess.interpolation,
            crop_pct=self.preprocess.crop,
            use_prefetcher=True,
        )
        return Compose([to_pixels, torch.as_tensor])

    def __call__(self, source: ImageInput) -> UInt8[Tensor, "3 h w"]:
        """Read an image. Raises BadImage as `decode` does."""
        image = decode(source, self.max_pixels)
        height, width = resized_sides(image.height, image.width, self.preprocess)
        side, method = self.preprocess.image_size, _method(self.preprocess)
        with within_memory():
            if max(height, width) > THIN * side:
                return _center(image.crop, (image.height, image.width), image.height, image.width, self.preprocess)
            if image.height > TALL * height:
                image = image.resize((image.width, height), method)
            if self.preprocess.fit == "crop":
                return self._timms(image)
            return _padded(pil_to_tensor(image.resize((width, height), method)), side)


def resized_sides(height: float, width: float, preprocess: Preprocess) -> tuple[int, int]:
    """Height and width after resizing, before cropping or padding, rounded as timm and torchvision do."""
    side = preprocess.image_size
    if preprocess.fit == "stretch":
        return side, side
    if preprocess.fit == "letterbox":
        return letterboxed(height, width, side)
    shorter = math.floor(side / preprocess.crop)
    return int(shorter * height / min(height, width)), int(shorter * width / min(height, width))


def letterboxed(height: float, width: float, side: int) -> tuple[int, int]:
    """Height and width of an image whose longer side is resized to `side`.

    The shorter side is rounded to the nearest number of pixels (a half to the nearest even number), and at least one.
    """
    longer = max(height, width)
    return max(1, round(side * height / longer)), max(1, round(side * width / longer))


def _center(
    crop: Callable[[tuple[int, int, int, int]], Image.Image],
    size: tuple[int, int],
    height: float,
    width: float,
    preprocess: Preprocess,
) -> UInt8[Tensor, "3 h w"]:
    """The result of resizing the whole image and cropping it, computed from the crop alone.

    `crop` is called with (left, top, right, bottom). `size` is the height and width in whole pixels; `height` and
    `width` are as in `Pixels`.
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


def fast_eval_decoder(preprocess: Preprocess) -> Reader:
    """A reader that takes less than half the time of `EvalReader`, with almost the same result.

    Most pixels are equal, and the other pixels differ only by rounding. If a large JPEG is decoded at a reduced size,
    pixels differ by a fraction of one level (of 255) on average. Use `EvalReader` to measure accuracy. The tensor
    is in channels_last, and may be a view of a larger tensor.
    """
    if preprocess.interpolation not in ("bicubic", "bilinear"):
        return EvalReader(preprocess)

    def to_pixels(source: ImageInput) -> UInt8[Tensor, "3 h w"]:
        image = open_small(source)
        size = resized_sides(image.height, image.width, preprocess)
        with image.in_turn():
            pixels = image.decode(min(image.height, image.width) / (SHRINK_UNTIL * min(size)))
            if preprocess.fit == "crop":
                return _resize_crop(pixels, preprocess)
            return _padded(resized(channels_first(pixels), size, preprocess.interpolation), preprocess.image_size)

    return to_pixels


def resized(image: UInt8[Tensor, "1 3 h w"], size: tuple[int, int], interpolation: str) -> UInt8[Tensor, "3 h2 w2"]:
    """Resize with antialiasing. torch resizes horizontally first, but a tall image that becomes wider is shortened
    before, to save memory."""
    resize = partial(interpolate, mode=interpolation, antialias=True)
    if image.shape[2] > TALL * size[0] and image.shape[3] < size[1]:
        image = resize(image, (size[0], image.shape[3]))
    return resize(image, size)[0]


def _resize_crop(image: Pixels, preprocess: Preprocess) -> UInt8[Tensor, "3 h w"]:
    """Resize the shorter side to `image_size / crop` with antialiasing, then take the center square."""
    side = preprocess.image_size
    height, width = resized_sides(image.height, image.width, preprocess)
    if max(height, width) > THIN * side:

        def crop(box: tuple[int, int, int, int]) -> Image.Image:
            return Image.fromarray(image.values[box[1] : box[3], box[0] : box[2]])

        return _center(crop, image.values.shape[:2], image.height, image.width, preprocess)
    # slightly larger factors, because rounding could lose the last row
    factors = [(1 + 1e-6) * new / old for new, old in ((height, image.height), (width, image.width))]
    resized = interpolate(channels_first(image), scale_factor=factors, mode=preprocess.interpolation, antialias=True)
    top, left = (round((length - side) / 2) for length in (height, width))
    return resized[0, :, top : top + side, left : left + side]


def channels_first(image: Pixels) -> UInt8[Tensor, "1 3 h w"]:
    """A view of the pixels as a batch of one image in channels_last."""
    return torch.from_numpy(image.values)[None].permute(0, 3, 1, 2)  # NumPy's [None] gives slower strides
