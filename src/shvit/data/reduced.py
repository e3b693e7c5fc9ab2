"""Decoding images that will be made smaller: at a part of their size, by libjpeg-turbo or Pillow."""

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

from .decode import ImageInput, decode
from .image_file import (
    MAX_PIXELS,
    check_scans,
    open_checked,
    open_header,
    orientation,
    read_file,
    reasons_as_bad_image,
    within_memory,
)
from .rgb import pixel_format, rgb_strips, to_8_bits

AT_ONCE = 12_000_000 * (os.cpu_count() or 1)
"""Pixels that all threads of a process decode at once; a larger image is decoded alone. JPEGs count for a quarter."""
LARGE = 1 << 24
"""Images with this many pixels may be decoded at a part of their size, to save memory; JPEGs always may."""
_simplejpeg: Any = import_module("simplejpeg") if find_spec("simplejpeg") else None  # now: later, memory may be short
SIMPLEJPEG = _simplejpeg is not None
"""Whether libjpeg-turbo decodes JPEGs where it can. Otherwise Pillow decodes them all."""
_ORIENTED = (b"Exif\0", b"tiff:Orientation")
"""Every file that declares an orientation contains one of these."""
_AFTER_THE_CUT = "extraneous bytes before marker 0xd9"
"""libjpeg's message for a valid JPEG that ends before its data do."""
_turn = threading.Condition()
_held = [0]
"""Pixels that are being decoded."""


@dataclass(frozen=True)
class Pixels:
    """The pixels of an image at its full size, or at a half, a quarter or an eighth of it."""

    values: UInt8[np.ndarray, "h w 3"]
    height: float
    width: float
    """Size of the image in these pixels. Fractional if the size is not divisible: the last row or column then covers
    less of the image than the others."""


@dataclass(frozen=True)
class Opened:
    """An image whose header was read: its size is known before its pixels are decoded."""

    height: int
    width: int
    """Size of the upright image, in pixels."""
    _decode: Callable[[float, int | None], Pixels]
    is_jpeg: bool = False
    """Whether it may be decoded at a part of its size."""

    @contextmanager
    def in_turn(self) -> Iterator[None]:
        """Wait until decoding this image keeps all threads' pixels below `AT_ONCE`. Decode and resize it inside.

        A failed allocation inside raises BadImage.
        """
        pixels = self.height * self.width // (4 if self.is_jpeg else 1)
        with _turn:
            _turn.wait_for(lambda: not _held[0] or _held[0] + pixels <= AT_ONCE)
            _held[0] += pixels
        try:
            with within_memory():
                yield
        finally:
            with _turn:
                _held[0] -= pixels
                _turn.notify_all()

    def decode(self, at_most: float) -> Pixels:
        """The pixels, at most `at_most` times smaller than the image. Raises BadImage as `decode` does."""
        return self._decode(at_most, None)

    def decode_top(self, rows: int, at_most: float) -> Pixels:
        """At least the upper `rows`; faster for a JPEG whose decoder can stop after them.

        Damage below these rows is not noticed, unless data are missing. Raises BadImage as `decode` does.
        """
        return self._decode(at_most, rows)


def open_small(source: ImageInput, max_pixels: int = MAX_PIXELS) -> Opened:
    """Read the header of an image that will be made smaller. `Opened.decode` is faster than `decode`.

    JPEGs can be decoded at a half, a quarter or an eighth of their size with less work; each pixel is then the mean of
    the pixels it covers. Other images keep their size, unless they have `LARGE` pixels.

    Raises:
        BadImage: As `decode`, as far as the header shows it; `Opened.decode` raises the rest.
    """
    if isinstance(source, np.ndarray | Image.Image):
        values = _pixels(decode(source, max_pixels))
        height, width, _ = values.shape
        return Opened(height, width, lambda *_: Pixels(values, height, width))
    with reasons_as_bad_image():
        data = read_file(source)
        return _opened_by_libjpeg(data, max_pixels) or _opened_by_pillow(data, max_pixels)


def _opened_by_libjpeg(data: bytes, max_pixels: int) -> Opened | None:
    """An upright JPEG in YCbCr or grey; None for all other images, which Pillow opens."""
    if not SIMPLEJPEG or (any(mark in data for mark in _ORIENTED) and orientation(open_header(data)) != 1):
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
            if seen == height or _AFTER_THE_CUT not in str(error):  # it is damaged: Pillow gives the reason
                del values
                with reasons_as_bad_image():
                    return _opened_by_pillow(data, max_pixels).decode(at_most)
        return Pixels(values, height / shrink, width / shrink)

    try:
        height, width, colours, _ = _simplejpeg.decode_jpeg_header(data)
    except ValueError:
        return None
    if colours not in ("YCbCr", "Gray") or height * width > max_pixels:
        return None
    check_scans(data, height * width)
    return Opened(height, width, pixels, is_jpeg=True)


def _cut(data: bytes, height: int, rows: int) -> tuple[bytes, int]:
    """The JPEG with a smaller height in its header, so that decoding stops early; and that height.

    It is large enough for the wanted rows to keep their values, because upsampling reads neighbours. Only sequential
    JPEGs can end early.
    """
    enough = 16 * (rows // 16 + 2)
    position = 2
    while enough < height and data[position : position + 1] == b"\xff":
        kind, length = data[position + 1], int.from_bytes(data[position + 2 : position + 4])
        if kind in (0xC0, 0xC1):
            return b"".join((data[: position + 5], enough.to_bytes(2), data[position + 7 :])), enough
        if kind == 0xC2:
            break
        position += 2 + length
    return data, height


def _opened_by_pillow(data: bytes, max_pixels: int) -> Opened:
    image = open_checked(data, max_pixels)
    stored = pixel_format(image)
    width, height = image.size

    def pixels(at_most: float, _: int | None) -> Pixels:
        shrink = _shrink(at_most)
        with reasons_as_bad_image():
            small = shrink > 1 and image.draft(None, (max(1, width // shrink), max(1, height // shrink))) is not None
            ImageOps.exif_transpose(image, in_place=True)
            reduced = shrink if not small and width * height >= LARGE else 1
            values = _pixels(to_8_bits(image, stored), reduced)
        if small or reduced > 1:
            return Pixels(values, upright.height / shrink, upright.width / shrink)
        return Pixels(values, *values.shape[:2])

    turned = orientation(image) in (5, 6, 7, 8)
    upright = Opened(width, height, pixels) if turned else Opened(height, width, pixels)
    return upright


def _pixels(image: Image.Image, shrink: int = 1) -> UInt8[np.ndarray, "h w 3"]:
    """RGB values of an image with 8 bits per value, reduced `shrink` times in each direction by averaging."""
    values = np.empty((-(-image.height // shrink), -(-image.width // shrink), 3), np.uint8)
    for top, strip in rgb_strips(image):
        part = strip.reduce(shrink) if shrink > 1 else strip
        values[top // shrink : top // shrink + part.height] = np.asarray(part)
    return values


def _shrink(at_most: float) -> int:
    """The largest factor that the decoders support."""
    return next((shrink for shrink in (8, 4, 2) if shrink <= at_most), 1)
