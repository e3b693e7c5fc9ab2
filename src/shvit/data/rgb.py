"""Convert Pillow images to 8-bit RGB: gray values of more than 8 bits, 16-bit colors and transparency."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import ExifTags, Image

from .image_file import BadImage

STRIP = 1 << 22
"""Number of pixels to convert at once. It is limited because conversion needs several times the pixels' memory."""
SMIN_SAMPLE_VALUE, SMAX_SAMPLE_VALUE = 340, 341
"""TIFF tags for the minimum and maximum value of samples."""
DEEP_COLORS = "RGB", "RGBX", "RGBA", "RGBa", "LA"
"""Modes in which Pillow keeps the upper 8 of 16 bits."""
BIT_DEPTHS = 8, 10, 12, 14, 16, 24, 31
"""Possible bit depths of gray pixels without a declared range."""


@dataclass(frozen=True)
class PixelFormat:
    """How a file stores the values of a pixel, according to its header."""

    bits: int = 8
    """Bits per value of a PNG or TIFF."""
    black: float = 0.0
    white: float | None = None
    """Upper end of the declared range, which starts at `black`; None if no range is declared."""
    white_is_zero: bool = False


def pixel_format(image: Image.Image) -> PixelFormat:
    """Read the pixel format. Call this before the image is loaded, because loading discards part of the header."""
    if image.format in ("PPM", "JPEG2000"):
        return PixelFormat(white=65535)
    if image.format not in ("PNG", "TIFF"):
        return PixelFormat()
    [raw, *_] = [re.search(r";(\d+)", str(tile[3])) for tile in getattr(image, "tile", ())[:1]] or [None]
    bits = int(raw[1]) if raw else 8
    tags: Any = getattr(image, "tag_v2", {})
    white_is_zero = tags.get(ExifTags.Base.PhotometricInterpretation) == 0
    low, high = (tags.get(tag, (None,))[0] for tag in (SMIN_SAMPLE_VALUE, SMAX_SAMPLE_VALUE))
    black = float(low or 0)
    if high is not None and float(high) > black:
        return PixelFormat(bits, black, float(high), white_is_zero)
    return PixelFormat(bits, 0.0, 4095.0 if bits == 12 else None, white_is_zero)


def to_rgb(image: Image.Image, stored: PixelFormat) -> Image.Image:
    """The image in 8-bit RGB, blended with white where transparent. Raises BadImage for values of undefined range."""
    image = to_8_bits(image, stored)
    if image.mode == "RGB" and not image.has_transparency_data:
        return image
    if image.width * image.height <= STRIP:
        return _rgb(image)
    shown = Image.new("RGB", image.size)
    for top, strip in rgb_strips(image):
        shown.paste(strip, (0, top))
    return shown


def rgb_strips(image: Image.Image) -> Iterator[tuple[int, Image.Image]]:
    """Divides an image into strips. Yields the index of each strip's first row, and the strip in RGB."""
    rows = max(8, STRIP // image.width // 8 * 8)  # a multiple of 8, so that each strip can be reduced by 8
    for top in range(0, image.height, rows):
        yield top, _rgb(image.crop((0, top, image.width, min(image.height, top + rows))))


def _rgb(image: Image.Image) -> Image.Image:
    """The image in RGB, blended with white where transparent."""
    if not image.has_transparency_data:
        return image.convert("RGB")
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")


def to_8_bits(image: Image.Image, stored: PixelFormat) -> Image.Image:
    """The image with 8 bits per value, and with transparency in the form that `_rgb` reads. Raises BadImage."""
    image.load()  # may add transparency to image.info
    if image.mode.startswith("I") or image.mode == "F":
        return _from_deep_gray(image, stored)
    if stored.bits == 16 and image.mode in DEEP_COLORS:
        bands: Any = zip(image.getbands(), image.getextrema(), strict=True)
        if max(high for band, (_, high) in bands if band not in ("A", "a", "X")) < 16:
            raise BadImage("its 16-bit colors use only the lowest 12 bits: scale them to 16 bits, or save 8-bit colors")
    if image.has_transparency_data:  # Pillow scales the pixels to 8 bits, but not the transparent value
        key = image.info.get("transparency")
        if stored.bits == 16 and isinstance(key, tuple):
            image.info["transparency"] = tuple(value >> 8 for value in key)
        elif stored.bits in (2, 4) and image.mode == "L" and isinstance(key, int):
            image.info["transparency"] = key * 255 // (2**stored.bits - 1)
    return image


def _from_deep_gray(image: Image.Image, stored: PixelFormat) -> Image.Image:
    """8-bit gray from pixels of 16 or 32 bits; see `decode` for their range."""
    values = np.asarray(image)
    whole, white = image.mode != "F", stored.white
    if not whole and (white is None or not np.isfinite(values).all()):
        raise BadImage("floating-point pixels have no defined range; save them with 8 or 16 bits")
    if white is None:
        if values.min() < 0:
            raise BadImage("pixels below zero have no defined range; save them with 8 or 16 bits")
        white = next(2.0**bits for bits in BIT_DEPTHS if values.max() < 2**bits) - 1
    levels, steps = (256, white - stored.black + 1) if whole else (255, white - stored.black)
    gray, rows = np.empty(values.shape, np.uint8), max(1, STRIP // image.width)
    for top in range(0, len(values), rows):
        scaled = (values[top : top + rows].astype(np.float64) - stored.black) * (levels / steps)
        gray[top : top + rows] = (scaled if whole else scaled.round()).clip(0, 255)
    if stored.white_is_zero:
        gray = 255 - gray
    if isinstance(key := image.info.get("transparency"), int):
        gray[values == key] = 255
    return Image.fromarray(gray)
