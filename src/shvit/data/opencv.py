"""timm's rotations, shears and translations with OpenCV, if it is installed: several times faster than with Pillow.

The geometry is the same. Bicubic interpolation differs (its parameter a is -0.75 in OpenCV and -1 in Pillow), and
OpenCV blends the border of the image with the fill color.
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
"""Whether OpenCV is installed. Otherwise Pillow is used."""

Matrix = tuple[float, float, float, float, float, float]
"""(a, b, c, d, e, f): the result at (x, y) is the image at (ax + by + c, dx + ey + f), as in Pillow."""
TimmOperation = Callable[..., Image.Image]


def warp(
    operation: TimmOperation,
    image: Image.Image,
    amount: float,
    *,
    fillcolor: tuple[int, int, int],
    resample: Image.Resampling | Sequence[Image.Resampling],
) -> Image.Image:
    """Apply one of timm's operations to an RGB image. If `resample` lists several methods, one is drawn at random."""
    cv2: Any = import_module("cv2")
    a, b, c, d, e, f = MATRICES[operation](amount, image.size)
    # integer coordinates are pixel centers in OpenCV, and corners in Pillow
    matrix = np.array([[a, b, c + (a + b - 1) / 2], [d, e, f + (d + e - 1) / 2]])
    method = random.choice(resample) if isinstance(resample, Sequence) else resample
    smooth = cv2.INTER_CUBIC if method == Image.Resampling.BICUBIC else cv2.INTER_LINEAR
    flags = smooth | cv2.WARP_INVERSE_MAP
    return Image.fromarray(cv2.warpAffine(np.asarray(image), matrix, image.size, flags=flags, borderValue=fillcolor))


def _rotation(degrees: float, size: tuple[int, int]) -> Matrix:
    """Counter-clockwise rotation about the image's center."""
    x, y = (side / 2 for side in size)
    cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return cosine, -sine, x - cosine * x + sine * y, sine, cosine, y - sine * x - cosine * y


MATRICES: dict[TimmOperation, Callable[[float, tuple[int, int]], Matrix]] = {
    auto_augment.rotate: _rotation,
    auto_augment.shear_x: lambda factor, _: (1, factor, 0, 0, 1, 0),
    auto_augment.shear_y: lambda factor, _: (1, 0, 0, factor, 1, 0),
    auto_augment.translate_x_rel: lambda share, size: (1, 0, share * size[0], 0, 1, 0),
    auto_augment.translate_y_rel: lambda share, size: (1, 0, 0, 0, 1, share * size[1]),
}
"""For each of timm's operations, a function that takes an amount and a (width, height) and returns a matrix."""

FASTER = {operation: partial(warp, operation) for operation in MATRICES} if OPENCV else {}
"""timm's operations and the functions that replace them; empty without OpenCV."""


def use_one_thread() -> None:
    """Disable OpenCV's threads, because several worker processes would together start too many."""
    if OPENCV:
        import_module("cv2").setNumThreads(0)
