"""timm's rotations, shears and translations by OpenCV, where it is installed: several times as fast as by Pillow.

Places are the same; between pixels OpenCV's bicubic curve is another one (a = -0.75 where Pillow has -1), and at the
border it mixes the image with the colour around it.
"""

import math
import random
from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import numpy as np
from PIL import Image
from timm.data import auto_augment

OPENCV = find_spec("cv2") is not None
"""Whether OpenCV is there. Without it Pillow does it all."""

Matrix = tuple[float, float, float, float, float, float]
"""(a, b, c, d, e, f): the result at (x, y) is the image at (ax + by + c, dx + ey + f), as Pillow has it."""


def warp(
    place: Callable[[float, tuple[int, int]], Matrix],
    image: Image.Image,
    amount: float,
    *,
    fillcolor: tuple[int, int, int],
    resample: Image.Resampling | Sequence[Image.Resampling],
) -> Image.Image:
    """An RGB image through the matrix of this amount; one way of `resample` is taken at random, as timm does."""
    cv2: Any = import_module("cv2")
    a, b, c, d, e, f = place(amount, image.size)
    # whole numbers are centres of pixels to OpenCV, and corners to Pillow
    matrix = np.array([[a, b, c + (a + b - 1) / 2], [d, e, f + (d + e - 1) / 2]])
    way = random.choice(resample) if isinstance(resample, Sequence) else resample
    smooth = cv2.INTER_CUBIC if way == Image.Resampling.BICUBIC else cv2.INTER_LINEAR
    return Image.fromarray(
        cv2.warpAffine(
            np.asarray(image), matrix, image.size, flags=smooth | cv2.WARP_INVERSE_MAP, borderValue=fillcolor
        )
    )


def _rotation(degrees: float, size: tuple[int, int]) -> Matrix:
    """About the image's centre, counter-clockwise."""
    x, y = (side / 2 for side in size)
    cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return cosine, -sine, x - cosine * x + sine * y, sine, cosine, y - sine * x - cosine * y


def _shear_x(factor: float, _: tuple[int, int]) -> Matrix:
    return 1, factor, 0, 0, 1, 0


def _shear_y(factor: float, _: tuple[int, int]) -> Matrix:
    return 1, 0, 0, factor, 1, 0


def _shift_x(share: float, size: tuple[int, int]) -> Matrix:
    return 1, 0, share * size[0], 0, 1, 0


def _shift_y(share: float, size: tuple[int, int]) -> Matrix:
    return 1, 0, 0, 0, 1, share * size[1]


PLACES: dict[Callable[..., Image.Image], Callable[[float, tuple[int, int]], Matrix]] = {
    auto_augment.rotate: _rotation,
    auto_augment.shear_x: _shear_x,
    auto_augment.shear_y: _shear_y,
    auto_augment.translate_x_rel: _shift_x,
    auto_augment.translate_y_rel: _shift_y,
}
"""timm's operations, and where each looks."""

FASTER = {operation: partial(warp, place) for operation, place in PLACES.items()} if OPENCV else {}
"""timm's operations, and what does the same here."""


def use_one_thread() -> None:
    """OpenCV's own threads are too many where several processes warp."""
    if OPENCV:
        import_module("cv2").setNumThreads(0)
