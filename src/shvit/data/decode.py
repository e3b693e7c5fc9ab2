"""Decode image files to 8-bit RGB pixels."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from .image_file import MAX_PIXELS, BadImage, check_size, open_checked, read_file, reasons_as_bad_image
from .rgb import pixel_format, to_rgb

ImageInput = Path | str | bytes | np.ndarray | Image.Image
"""A file's path or bytes, a uint8 array of shape (height, width) or (height, width, 3), or an opened Pillow image."""


def decode(source: ImageInput, max_pixels: int = MAX_PIXELS, upright: bool = True) -> Image.Image:
    """Decode an image (or an animation's first frame) to upright 8-bit RGB. Transparency is blended with white.

    Transparency comes from an alpha channel, a palette, or a PNG's transparent gray or color. Gray pixels of more than
    8 bits are scaled so that white becomes 255. Their range is the first of these that applies: the range that the file
    declares (a TIFF's SMinSampleValue and SMaxSampleValue, or 12 bits per sample); 16 bits if Pillow scales values to
    16 bits (PGM, JPEG 2000); the smallest of 8, 10, 12, 14, 16, 24 and 31 bits that holds the image's largest value.

    Args:
        max_pixels: Larger images are refused before they are decoded.
        upright: Whether to apply the EXIF orientation of a file; otherwise the image is returned as stored.

    Raises:
        BadImage: The file is missing, empty, not a regular file, not in one of `PILLOW_FORMATS`, truncated, damaged,
            too large, or a JPEG with too many scans; the image has negative pixels, floating-point pixels without a
            declared range, or 16-bit colors that use only the lowest 12 bits; or there is not enough memory.
    """
    if isinstance(source, np.ndarray):
        return _from_array(source, max_pixels)
    with reasons_as_bad_image():
        if isinstance(source, Image.Image):
            check_size(source.size, max_pixels)
            stored = pixel_format(source)
            return to_rgb(ImageOps.exif_transpose(source), stored)
        image = open_checked(read_file(source), max_pixels)
        stored = pixel_format(image)
        if upright:
            ImageOps.exif_transpose(image, in_place=True)
        return to_rgb(image, stored)


def _from_array(pixels: np.ndarray, max_pixels: int) -> Image.Image:
    if pixels.dtype != np.uint8:
        raise BadImage(f"arrays must hold uint8 values from 0 to 255, got {pixels.dtype}")
    if pixels.ndim not in (2, 3) or (pixels.ndim == 3 and pixels.shape[2] != 3):
        raise BadImage(f"arrays must have the shape (height, width) or (height, width, 3), got {pixels.shape}")
    check_size((pixels.shape[1], pixels.shape[0]), max_pixels)
    return Image.fromarray(pixels).convert("RGB")
