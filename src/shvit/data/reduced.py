"""Decode images that will be resized to a smaller size: directly at a reduced size, by libjpeg-turbo or Pillow."""

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps

from . import image_file
from .decode import ImageInput, decode
from .rgb import pixel_format, rgb_strips, to_8_bits

AT_ONCE = 12_000_000 * (os.cpu_count() or 1)
"""Maximum number of pixels that all threads of a process decode at once. A larger image is decoded alone. For a
JPEG, only a quarter of the pixels are counted."""
LARGE = 1 << 24
"""Images of at least this many pixels are decoded at a reduced size to save memory. For JPEGs there is no minimum."""
# imported here, because memory may be short later
_simplejpeg: Any = import_module("simplejpeg") if find_spec("simplejpeg") else None
SIMPLEJPEG = _simplejpeg is not None
"""Whether libjpeg-turbo is installed and decodes most JPEGs. Otherwise, Pillow decodes all JPEGs."""
_ORIENTED = (b"Exif\0", b"tiff:Orientation")
"""Every file that declares an orientation contains one of these byte strings."""
_DATA_LEFT = "extraneous bytes before marker 0xd9"
"""libjpeg's message for a valid JPEG with data after its last row."""
_turn = threading.Condition()
_held = [0]
"""Number of pixels that are being decoded."""


@dataclass(frozen=True)
class Pixels:
    """The pixels of an image at full, half, quarter or eighth size."""

    values: UInt8[np.ndarray, "h w 3"]
    height: float
    width: float
    """Size of the image in these pixels. If the full size is not divisible by the reduction factor, this size is not a
    whole number, because the last row or column covers less of the image than other rows or columns."""


@dataclass(frozen=True)
class OpenedImage:
    """An image whose header was read: its size is known before its pixels are decoded."""

    height: int
    width: int
    """Size of the upright image, in pixels."""
    _decode: Callable[[float, int | None], Pixels]
    is_jpeg: bool = False
    """Whether libjpeg-turbo decodes the image, at a reduced size if requested."""

    @contextmanager
    def in_turn(self) -> Iterator[None]:
        """Wait until this image can be decoded within the limit `AT_ONCE`. Decode and resize it in this context.

        A failed memory allocation in the context raises BadImage.
        """
        pixels = self.height * self.width // (4 if self.is_jpeg else 1)
        with _turn:
            _turn.wait_for(lambda: not _held[0] or _held[0] + pixels <= AT_ONCE)
            _held[0] += pixels
        try:
            with image_file.within_memory():
                yield
        finally:
            with _turn:
                _held[0] -= pixels
                _turn.notify_all()

    def decode(self, at_most: float, rows: int | None = None) -> Pixels:
        """The pixels of the image at a reduced size. Raises BadImage as `decode.decode` does.

        Args:
            at_most: Maximum factor by which height and width are reduced.
            rows: Number of rows that are needed, from the top of the full-size image; default: all. With fewer rows,
                most JPEGs are decoded faster, but damage below these rows is noticed only if data is missing.
        """
        return self._decode(at_most, rows)


def open_small(source: ImageInput, max_pixels: int = image_file.MAX_PIXELS) -> OpenedImage:
    """Read the header of an image that will be made smaller. `OpenedImage.decode` is then faster than `decode.decode`.

    JPEGs can be decoded at a half, a quarter or an eighth of their size with less work; each pixel of the result is the
    mean of the pixels it covers. Other formats are decoded at full size. They are reduced right after decoding if they
    have at least `LARGE` pixels.

    Raises:
        BadImage: As for `decode.decode`, if the header shows the problem; `OpenedImage.decode` reports other problems.
    """
    if isinstance(source, np.ndarray | Image.Image):
        values = _pixels(decode(source, max_pixels))
        height, width, _ = values.shape
        return OpenedImage(height, width, lambda *_: Pixels(values, height, width))
    with image_file.reasons_as_bad_image():
        data = image_file.read_file(source)
        return _opened_by_libjpeg(data, max_pixels) or _opened_by_pillow(data, max_pixels)


def _opened_by_libjpeg(data: bytes, max_pixels: int) -> OpenedImage | None:
    """An upright JPEG in YCbCr or gray; None for all other images, which Pillow opens."""
    oriented = any(mark in data for mark in _ORIENTED)
    if not SIMPLEJPEG or (oriented and image_file.orientation(image_file.open_header(data)) != 1):
        return None

    def pixels(at_most: float, rows: int | None) -> Pixels:
        shrink = _shrink(at_most)
        top, seen = (data, height) if rows is None else _cut(data, height, rows)
        size = -(-seen // shrink), -(-width // shrink)
        least = {"min_height": size[0], "min_width": size[1]} if shrink > 1 else {}
        values = np.empty((*size, 3), np.uint8)
        try:
            _simplejpeg.decode_jpeg(top, buffer=values, **least)
        except ValueError as error:
            if seen == height or _DATA_LEFT not in str(error):  # it is damaged: Pillow gives the reason
                del values
                with image_file.reasons_as_bad_image():
                    return _opened_by_pillow(data, max_pixels).decode(at_most)
        return Pixels(values, height / shrink, width / shrink)

    try:
        height, width, colors, _ = _simplejpeg.decode_jpeg_header(data)
    except ValueError:
        return None
    if colors not in ("YCbCr", "Gray") or height * width > max_pixels:
        return None
    image_file.check_scans(data, height * width)
    return OpenedImage(height, width, pixels, is_jpeg=True)


def _cut(data: bytes, height: int, rows: int) -> tuple[bytes, int]:
    """Write a smaller height into a JPEG's header, to stop decoding early. Returns the JPEG and the new height.

    A JPEG that is not sequential is returned unchanged, because its decoding cannot stop early.
    """
    enough = 16 * (rows // 16 + 2)  # more than `rows`, because upsampling reads neighboring rows
    position = 2
    while enough < height and data[position : position + 1] == b"\xff":
        kind, length = data[position + 1], int.from_bytes(data[position + 2 : position + 4])
        if kind in (0xC0, 0xC1):
            return b"".join((data[: position + 5], enough.to_bytes(2), data[position + 7 :])), enough
        if kind == 0xC2:
            break
        position += 2 + length
    return data, height


def _opened_by_pillow(data: bytes, max_pixels: int) -> OpenedImage:
    image = image_file.open_checked(data, max_pixels)
    stored = pixel_format(image)
    width, height = image.size
    upright = image_file.upright_size(image)

    def pixels(at_most: float, _: int | None) -> Pixels:
        shrink = _shrink(at_most)
        with image_file.reasons_as_bad_image():
            small = shrink > 1 and image.draft(None, (max(1, width // shrink), max(1, height // shrink))) is not None
            ImageOps.exif_transpose(image, in_place=True)
            reduced = shrink if not small and width * height >= LARGE else 1
            values = _pixels(to_8_bits(image, stored), reduced)
        if small or reduced > 1:
            return Pixels(values, upright[0] / shrink, upright[1] / shrink)
        return Pixels(values, *values.shape[:2])

    return OpenedImage(*upright, pixels)


def _pixels(image: Image.Image, shrink: int = 1) -> UInt8[np.ndarray, "h w 3"]:
    """RGB values of an image with 8 bits per value, averaged over blocks of `shrink` by `shrink` pixels."""
    values = np.empty((-(-image.height // shrink), -(-image.width // shrink), 3), np.uint8)
    for top, strip in rgb_strips(image):
        part = strip.reduce(shrink) if shrink > 1 else strip
        values[top // shrink : top // shrink + part.height] = np.asarray(part)
    return values


def _shrink(at_most: float) -> int:
    """The largest factor, up to `at_most`, by which the decoders can reduce an image."""
    return next((shrink for shrink in (8, 4, 2) if shrink <= at_most), 1)
