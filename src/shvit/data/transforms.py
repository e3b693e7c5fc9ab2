"""From an image to the uint8 tensor that the network's input is made of: timm's transforms, and a faster one."""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Float, UInt8
from PIL import Image
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, create_transform
from torch import Tensor, nn
from torch.nn.functional import interpolate
from torchvision.transforms.v2 import Compose

from ..errors import InputError
from .decode import MAX_PIXELS, Pixels, Source, decode, decode_small

INTERPOLATIONS = ("bicubic", "bilinear", "nearest", "lanczos")
Transform = Callable[[Image.Image], UInt8[Tensor, "3 h w"]]
Reader = Callable[[Source], UInt8[Tensor, "3 h w"]]
"""From what holds an image to the tensor; raises BadImage."""
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
    """Side of the square that the network sees, in pixels."""
    crop: float = 0.875
    """Side of that square as a share of the resized image's shorter side."""
    interpolation: str = "bicubic"
    mean: tuple[float, ...] = IMAGENET_DEFAULT_MEAN
    """Subtracted from each channel, whose values go from 0 to 1."""
    std: tuple[float, ...] = IMAGENET_DEFAULT_STD

    def __post_init__(self) -> None:
        if not isinstance(self.image_size, int) or self.image_size < 32:
            raise InputError(f"image_size must be at least 32 pixels, got {self.image_size}")
        if not 0 < self.crop <= 1:
            raise InputError(f"crop must lie above 0 and be at most 1, got {self.crop}")
        if self.interpolation not in INTERPOLATIONS:
            raise InputError(f"interpolation must be one of {', '.join(INTERPOLATIONS)}, got {self.interpolation!r}")
        if len(self.mean) != len(self.std) or not all(deviation > 0 for deviation in self.std):
            raise InputError(f"mean and std must be as long, and std positive, got {self.mean} and {self.std}")

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "Preprocess":
        """Inverse of `to_dict`. Raises InputError for missing, unknown or impossible entries."""
        try:
            return cls(**{**data, "mean": tuple(data["mean"]), "std": tuple(data["std"])})
        except (TypeError, KeyError) as error:
            raise InputError(f"not a description of preprocessing: {error}") from None


class Normalize(nn.Module):
    """What a network in training is fed: uint8 images less the mean, over the deviation, in fp32 and channels_last.

    Images move to the module's device first.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, preprocess: Preprocess) -> None:
        super().__init__()
        self.register_buffer("mean", per_channel(preprocess.mean), persistent=False)
        self.register_buffer("std", per_channel(preprocess.std), persistent=False)

    def forward(self, images: UInt8[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h w"]:
        floats = images.to(self.mean.device, torch.float32, memory_format=torch.channels_last)
        return floats.sub_(self.mean).div_(self.std)


def per_channel(values: tuple[float, ...]) -> Float[Tensor, "1 c 1 1"]:
    """Numbers on the scale of 0 to 1, on that of 0 to 255."""
    return 255 * torch.tensor(values).view(1, -1, 1, 1)


def eval_transform(preprocess: Preprocess) -> Transform:
    """Shorter side to `image_size / crop` with antialiasing, then the centre square: timm's evaluation transform."""
    to_pixels: Any = create_transform(
        preprocess.image_size,
        interpolation=preprocess.interpolation,
        crop_pct=preprocess.crop,
        use_prefetcher=True,
    )
    return Compose([to_pixels, torch.as_tensor])


@dataclass(frozen=True)
class Decoded:
    """Reads an image whole, then applies a transform to it."""

    transform: Transform
    max_pixels: int = MAX_PIXELS

    def __call__(self, source: Source) -> UInt8[Tensor, "3 h w"]:
        return self.transform(decode(source, self.max_pixels))


def fast_eval_decoder(preprocess: Preprocess) -> Callable[[Source], UInt8[Tensor, "3 h w"]]:
    """From file to tensor in less than half the time of `decode` and `eval_transform`, and all but the same.

    Pixels differ by rounding, mostly by none of 255 levels; where a large JPEG is decoded at a part of its size, by a
    fraction of a level on average. Accuracies are still to be measured by timm's own transform. The tensor is in
    channels_last, and its memory may be larger than itself.

    The function raises BadImage as `decode` does.
    """
    if preprocess.interpolation not in ("bicubic", "bilinear"):
        transform = eval_transform(preprocess)
        return lambda source: transform(decode(source))
    side = preprocess.image_size
    shorter = math.floor(side / preprocess.crop)

    def to_pixels(source: Source) -> UInt8[Tensor, "3 h w"]:
        return _resize_crop(decode_small(source, SHRINK_UNTIL * shorter), shorter, side, preprocess.interpolation)

    return to_pixels


def _resize_crop(image: Pixels, shorter: int, side: int, interpolation: str) -> UInt8[Tensor, "3 h w"]:
    """The shorter side to `shorter` with antialiasing, then the centre square of `side`, as torchvision rounds them."""
    least = min(image.height, image.width)
    height, width = (int(shorter * length / least) for length in (image.height, image.width))
    # the least bit more, or rounding might lose the last row
    factors = [(1 + 1e-6) * new / old for new, old in ((height, image.height), (width, image.width))]
    values = torch.from_numpy(image.values)[None].permute(0, 3, 1, 2)  # numpy's [None] has strides that are slower
    resized = interpolate(values, scale_factor=factors, mode=interpolation, antialias=True)
    top, left = (round((length - side) / 2) for length in (height, width))
    return resized[0, :, top : top + side, left : left + side]


def train_transform(
    image_size: int,
    crop_scale: tuple[float, float] = (0.08, 1.0),
    flip: float = 0.5,
    color_jitter: float = 0.0,
    rand_augment: str | None = None,
) -> Transform:
    """A random part of the image, resized, perhaps mirrored, its colours or more changed.

    Args:
        image_size: Side of the square result, in pixels.
        crop_scale: Least and greatest share of the image's area that the part has.
        flip: Probability of mirroring.
        color_jitter: Strength; used only without RandAugment, as in DeiT.
        rand_augment: timm's description, such as `rand-m9-mstd0.5-inc1`; None for none.

    The random choices come from the global generators: call it within `loader.seeded`.
    """
    to_pixels: Any = create_transform(
        image_size,
        is_training=True,
        scale=crop_scale,
        hflip=flip,
        color_jitter=color_jitter,
        auto_augment=rand_augment,
        interpolation="random",
        use_prefetcher=True,
    )
    return Compose([to_pixels, torch.as_tensor])
