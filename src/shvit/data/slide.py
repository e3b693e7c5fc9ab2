"""timm's shears and translations, several times as fast: the lines of an image slide along themselves.

Pillow looks for each pixel's place in two dimensions. Here rows, or columns, move as wholes: a few products with whole
images do it. The pixels are Pillow's but for rounding.
"""

import random
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from timm.data import auto_augment
from torch import Tensor


def shear_x(image: Image.Image, factor: float, **options: Any) -> Image.Image:
    return slide(image, factor * (torch.arange(image.height) + 0.5), **options)


def shear_y(image: Image.Image, factor: float, **options: Any) -> Image.Image:
    return _mirrored(shear_x, image, factor, **options)


def translate_x(image: Image.Image, share: float, **options: Any) -> Image.Image:
    return slide(image, torch.full((image.height,), share * image.width), **options)


def translate_y(image: Image.Image, share: float, **options: Any) -> Image.Image:
    return _mirrored(translate_x, image, share, **options)


FASTER: dict[Callable[..., Image.Image], Callable[..., Image.Image]] = {
    auto_augment.shear_x: shear_x,
    auto_augment.shear_y: shear_y,
    auto_augment.translate_x_rel: translate_x,
    auto_augment.translate_y_rel: translate_y,
}
"""What timm has, and what does the same here."""


def slide(
    image: Image.Image,
    offsets: Float[Tensor, " h"],
    fillcolor: tuple[int, int, int],
    resample: Sequence[Image.Resampling],
) -> Image.Image:
    """Each row of an RGB image shows what lies so many pixels further on in it, which need not be whole.

    What lies outside is `fillcolor`; at the border its pixels are repeated. One way of `resample` is taken, at random.
    """
    width, height = image.size
    pixels = torch.frombuffer(bytearray(image.tobytes("raw", "RGBX")), dtype=torch.int32).view(height, width)
    whole = offsets.floor()
    weights = WEIGHTS[random.choice(resample)](offsets - whole)
    before = (len(weights) - 1) // 2
    first, places = whole.long()[:, None] - before, torch.arange(width + len(weights) - 1)
    around = pixels.gather(1, (first + places).clamp_(0, width - 1))
    values = around.view(torch.uint8).float()  # (h, 4·w'): channels stay beside each other
    moved = values.new_zeros(height, 4 * width)
    for place, weight in enumerate(weights):
        moved += weight[:, None] * values[:, 4 * place : 4 * (place + width)]
    there = (offsets[:, None] + 0.5 + places[:width]).numpy()
    result = moved.clamp_(0, 255).numpy().astype(np.uint8).view(np.int32)  # numpy is faster at this and what follows
    fill = np.array([*fillcolor, 0], np.uint8).view(np.int32)
    np.copyto(result, fill, where=(there < 0) | (there >= width))
    return Image.frombytes("RGB", image.size, result.tobytes(), "raw", "RGBX")


WEIGHTS: dict[Image.Resampling, Callable[[Tensor], list[Tensor]]] = {
    Image.Resampling.BILINEAR: lambda d: [1 - d, d],
    Image.Resampling.BICUBIC: lambda d: [-d * (1 - d) ** 2, 1 - 2 * d**2 + d**3, d * (1 + d - d**2), d**3 - d**2],
}
"""Of the two or four pixels around a place that lies `d` after one of them, as Pillow's transforms have them."""


def _mirrored(change: Callable[..., Image.Image], image: Image.Image, *amount: float, **options: Any) -> Image.Image:
    """What is done to rows, done to columns."""
    turned = image.transpose(Image.Transpose.TRANSPOSE)
    return change(turned, *amount, **options).transpose(Image.Transpose.TRANSPOSE)
