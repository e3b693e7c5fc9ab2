"""From the bytes of an image file to 8-bit RGB pixels, or a reason why not."""

import io
import os
import re
import struct
import threading
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from jaxtyping import UInt8
from PIL import ExifTags, Image, ImageOps

from ..errors import one_line
from ..suppress import unwarned

ImageInput = Path | str | bytes | np.ndarray | Image.Image
"""A file's path, a file's bytes, pixels (height, width[, 3]) in uint8, or an opened image."""

MAX_PIXELS = 89_478_485
"""Images with more pixels are refused as decompression bombs. The number from which Pillow warns: 256 MiB of RGB."""
FORMATS = (
    "JPEG", "PNG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "PPM", "AVIF", "JPEG2000", "PCX", "PSD", "SGI", "SUN",
    "TGA",
)  # fmt: skip
"""What Pillow may read. Its other decoders start programs (EPS), open images within images whatever their size (ICO,
ICNS), or are loops in Python."""
HEIC = (b"ftypheic", b"ftypheix", b"ftypheim", b"ftypheis", b"ftyphevc", b"ftyphevx", b"ftypmif1", b"ftypmsf1")
"""What files hold at byte 4 that pillow-heif reads, where it is installed."""
SMALL_FILE = 1 << 26
BYTES_A_PIXEL = 8
"""A file may have `SMALL_FILE` bytes, and so many more for each pixel: RGBA of 16 bits."""
MAX_BYTES = SMALL_FILE + BYTES_A_PIXEL * MAX_PIXELS
READ_WHOLE = re.compile(rb"RIFF|....ftyp", re.DOTALL)
"""How WebP, AVIF and HEIC begin. Pillow reads such a file whole before it tells the image's size."""
MAX_SCANS, MAX_SCANNED = 100, 1_500_000_000
"""Scans of a JPEG, and its pixels times these: each scan takes time for all pixels. Tools write up to 20."""
AT_ONCE = 12_000_000 * (os.cpu_count() or 1)
"""Pixels that all threads of a process decode at once; a larger image is decoded alone. JPEGs count for a quarter."""
LARGE = 1 << 24
"""Pixels from which any image may be decoded at a part of its size, for less memory; a JPEG always may."""
STRIP = 1 << 22
"""Pixels that are converted at once where that takes several times their memory."""

_DECODER_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    KeyError,
    TypeError,
    OverflowError,
    AttributeError,
    AssertionError,
    RuntimeError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)
"""What Pillow's decoders raise on damaged files."""

_simplejpeg: Any = (
    import_module("simplejpeg") if find_spec("simplejpeg") else None
)  # loaded now: later, memory may lack
SIMPLEJPEG = _simplejpeg is not None
"""Whether JPEGs are decoded by libjpeg-turbo alone where that is possible. Without it Pillow decodes them all."""

_TURNED = (b"Exif\0", b"tiff:Orientation")
"""One of these is in every file that says how its image is to be turned."""

_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
"""Of a JPEG: what begins a segment, and no part of compressed pixels."""
NO_MEMORY = "there is not enough memory for it"

_AFTER_THE_CUT = "extraneous bytes before marker 0xd9"
"""What libjpeg has to say of a sound JPEG that ends before its data do."""

SMIN_SAMPLE_VALUE, SMAX_SAMPLE_VALUE = 340, 341
"""TIFF's tags of the range of samples."""
DEEP_COLOURS = "RGB", "RGBX", "RGBA", "RGBa", "LA"
"""Modes in which Pillow keeps the upper 8 of 16 bits."""
RANGES = 8, 10, 12, 14, 16, 24, 31
"""Bits of the ranges that grey pixels are taken to have where the file declares none."""

_open_lock = threading.Lock()
_turn = threading.Condition()
_held = [0]
"""Pixels that are being decoded."""


class BadImage(ValueError):
    """An image that cannot be used; the message is the reason, in a few words."""


def decode(source: ImageInput, max_pixels: int = MAX_PIXELS, upright: bool = True) -> Image.Image:
    """An upright 8-bit RGB image: EXIF orientation applied, the first frame of an animation, transparency on white.

    Transparent is what an alpha channel, a palette, or a PNG's transparent grey or colour makes so. Grey pixels of more
    than 8 bits are scaled so that the white of their range becomes 255. The range is, in this order: what the file
    declares (a TIFF's SMinSampleValue and SMaxSampleValue, or 12 bits a sample); 16 bits where Pillow scales to them
    (PGM, JPEG 2000); the smallest of 8, 10, 12, 14, 16, 24 and 31 bits that holds the largest value in the image.
    Refused are pixels below zero, floating-point pixels without a declared range, and 16-bit colours that use only the
    lowest 12 bits.

    Args:
        source: A path, the bytes of a file, pixels (height, width) or (height, width, 3) in uint8, or an opened image.
        max_pixels: Larger images are refused before they are decoded.
        upright: Whether to turn a file's image as its EXIF data say; else it comes as it is stored.

    Raises:
        BadImage: Missing, empty, not a regular file, not an image in one of `FORMATS`, truncated, damaged, too large,
            a JPEG of too many scans, or of a kind without 8-bit meaning; or there is not enough memory.
    """
    if isinstance(source, np.ndarray):
        return _from_array(source, max_pixels)
    with _reasons():
        if isinstance(source, Image.Image):
            _check_size(source.size, max_pixels)
            samples = _samples(source)
            return _to_rgb(ImageOps.exif_transpose(source), samples)
        image = _open_checked(_read(source), max_pixels)
        samples = _samples(image)
        return _to_upright_rgb(image, samples) if upright else _to_rgb(image, samples)


@dataclass(frozen=True)
class Pixels:
    """An image as `decode` gives it, perhaps at a half, a quarter or an eighth of its size."""

    values: UInt8[np.ndarray, "h w 3"]
    height: float
    width: float
    """Of the image in these pixels. Not whole where the size could not be divided: the last row or column, then, shows
    less of the image than the others."""


@dataclass(frozen=True)
class Opened:
    """An image of which only the header was read: its size is known before its pixels are decoded."""

    height: int
    width: int
    """Of the upright image."""
    _decode: Callable[[float, int | None], Pixels]
    is_jpeg: bool = False
    """Whether it may be decoded at a part of its size."""

    @contextmanager
    def in_turn(self) -> Iterator[None]:
        """For decoding an image and making it smaller: threads wait where they would hold too many pixels at once.

        An allocation that fails inside raises BadImage.
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
        """The pixels, where they may be that many times smaller. Raises BadImage as `decode` does."""
        return self._decode(at_most, None)

    def decode_top(self, rows: int, at_most: float) -> Pixels:
        """The upper rows at least, for less work where a JPEG's decoder may stop after them.

        What is damaged further down is not noticed, unless it is missing. Raises BadImage as `decode` does.
        """
        return self._decode(at_most, rows)


def open_small(source: ImageInput, max_pixels: int = MAX_PIXELS) -> Opened:
    """What `decode` gives, faster, for an image that is to be made smaller: how much may depend on its size.

    A JPEG's decoder can give it at a half, a quarter or an eighth of its size for less work, each pixel the mean of
    those it stands for. Other images keep their size, unless they have `LARGE` pixels.

    Raises:
        BadImage: As `decode`, where the header shows it; what is wrong further on, `Opened.decode` raises.
    """
    if isinstance(source, np.ndarray | Image.Image):
        values = _pixels(decode(source, max_pixels))
        height, width, _ = values.shape
        return Opened(height, width, lambda *_: Pixels(values, height, width))
    with _reasons():
        data = _read(source)
        return _opened_by_libjpeg(data, max_pixels) or _opened_by_pillow(data, max_pixels)


def _opened_by_libjpeg(data: bytes, max_pixels: int) -> Opened | None:
    """A JPEG in plain colours that is not to be turned; None for all others, which are Pillow's to judge."""
    if not SIMPLEJPEG or (any(mark in data for mark in _TURNED) and _orientation(_open(data)) != 1):
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
            if seen == height or _AFTER_THE_CUT not in str(error):  # it is not sound: Pillow knows the reason
                del values
                with _reasons():
                    return _opened_by_pillow(data, max_pixels).decode(at_most)
        return Pixels(values, height / shrink, width / shrink)

    try:
        height, width, colours, _ = _simplejpeg.decode_jpeg_header(data)
    except ValueError:
        return None
    if colours not in ("YCbCr", "Gray") or height * width > max_pixels:
        return None
    _check_scans(data, height * width)
    return Opened(height, width, pixels, is_jpeg=True)


def _cut(data: bytes, height: int, rows: int) -> tuple[bytes, int]:
    """A JPEG that claims to have fewer rows, so that decoding ends there; and how many.

    These are enough for the rows that are wanted to come out as they are: upsampling looks at neighbours. Only
    sequential JPEGs can end early.
    """
    enough = 16 * (rows // 16 + 2)
    place = 2
    while enough < height and data[place : place + 1] == b"\xff":
        kind, length = data[place + 1], int.from_bytes(data[place + 2 : place + 4])
        if kind in (0xC0, 0xC1):
            return b"".join((data[: place + 5], enough.to_bytes(2), data[place + 7 :])), enough
        if kind == 0xC2:
            break
        place += 2 + length
    return data, height


def _opened_by_pillow(data: bytes, max_pixels: int) -> Opened:
    image = _open_checked(data, max_pixels)
    samples = _samples(image)
    width, height = image.size

    def pixels(at_most: float, _: int | None) -> Pixels:
        shrink = _shrink(at_most)
        with _reasons():
            small = shrink > 1 and image.draft(None, (max(1, width // shrink), max(1, height // shrink))) is not None
            ImageOps.exif_transpose(image, in_place=True)
            reduced = shrink if not small and width * height >= LARGE else 1
            values = _pixels(_prepared(image, samples), reduced)
        if small or reduced > 1:
            return Pixels(values, upright.height / shrink, upright.width / shrink)
        return Pixels(values, *values.shape[:2])

    turned = _orientation(image) in (5, 6, 7, 8)
    upright = Opened(width, height, pixels) if turned else Opened(height, width, pixels)
    return upright


def _pixels(image: Image.Image, shrink: int = 1) -> UInt8[np.ndarray, "h w 3"]:
    """What `_to_rgb` gives of a prepared image; of `shrink` times as many pixels each way the mean."""
    values = np.empty((-(-image.height // shrink), -(-image.width // shrink), 3), np.uint8)
    for top, strip in _rgb_strips(image):
        part = strip.reduce(shrink) if shrink > 1 else strip
        values[top // shrink : top // shrink + part.height] = np.asarray(part)
    return values


def _shrink(at_most: float) -> int:
    """The greatest of the decoders' divisors."""
    return next((shrink for shrink in (8, 4, 2) if shrink <= at_most), 1)


def is_plain_jpeg(data: bytes) -> bool:
    """Whether a file that can be decoded is a JPEG in RGB, YCbCr or grey that is not to be turned."""
    image = _open(data)
    return image.format == "JPEG" and image.mode in ("RGB", "L") and _orientation(image) == 1


@contextmanager
def _reasons() -> Iterator[None]:
    """What goes wrong inside becomes a BadImage. Pillow's warnings of damaged metadata are not shown."""
    try:
        with unwarned():
            yield
    except BadImage:
        raise
    except Image.UnidentifiedImageError:
        raise BadImage("not an image in a known format") from None
    except MemoryError:
        raise BadImage(NO_MEMORY) from None
    except _DECODER_ERRORS as error:
        raise BadImage(f"cannot be decoded: {one_line(error)}") from error


@contextmanager
def within_memory() -> Iterator[None]:
    """An allocation that fails inside, Python's, numpy's or torch's, becomes a BadImage."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "can't allocate memory" not in str(error):
            raise
        raise BadImage(NO_MEMORY) from None


def _read(source: Path | str | bytes) -> bytes:
    if isinstance(source, bytes):
        data = source
    else:
        path = Path(source)
        if not path.is_file():  # reading a pipe may wait for ever, and a device may have no end
            raise BadImage("not a regular file" if path.exists() and not path.is_dir() else "no such file")
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size > SMALL_FILE:
                if READ_WHOLE.match(file.read(8)):
                    raise BadImage(
                        f"its {size:,} bytes are more than the limit of {SMALL_FILE:,} for WebP, AVIF and HEIC"
                    )
                file.seek(0)
                width, height = _open(file).size
                if size > SMALL_FILE + BYTES_A_PIXEL * width * height:
                    raise BadImage(f"its {size:,} bytes are more than {width}x{height} pixels can need")
                file.seek(0)
            data = file.read(size)
    if not data:
        raise BadImage("file is empty")
    return data


def read_size(path: Path) -> tuple[int, int]:
    """Height and width as `decode` gives them, by the file's header. Raises BadImage."""
    with _reasons():
        image = _open(_read(path))
        turned = _orientation(image) in (5, 6, 7, 8)
        return (image.width, image.height) if turned else (image.height, image.width)


@cache
def _formats() -> tuple[str, ...]:
    """Those of `FORMATS` that the installed Pillow has, and HEIF where pillow-heif is installed."""
    Image.init()
    if find_spec("pillow_heif"):
        import_module("pillow_heif").register_heif_opener()
    return tuple(name for name in (*FORMATS, "HEIF") if name in Image.OPEN)


def _open(data: bytes | BinaryIO) -> Image.Image:
    """Reads the header only. Pillow's own limit rests meanwhile: `decode` judges by its caller's."""
    file = io.BytesIO(data) if isinstance(data, bytes) else data
    with _open_lock, unwarned():
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            return Image.open(file, formats=_formats())
        except Image.UnidentifiedImageError:
            file.seek(4)
            if file.read(8) in HEIC and "HEIF" not in _formats():
                raise BadImage("a HEIC image, which needs pillow-heif: pip install 'shvit[heic]'") from None
            raise
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def _open_checked(data: bytes, max_pixels: int) -> Image.Image:
    """Refuses by the header what would take too much time or memory to decode."""
    image = _open(data)
    _check_size(image.size, max_pixels)
    if image.format in ("JPEG", "MPO"):
        _check_scans(data, image.width * image.height)
    return image


def _check_scans(data: bytes, pixels: int) -> None:
    most = min(MAX_SCANS, MAX_SCANNED // pixels)
    if data.count(b"\xff\xda") > most and (scans := _scans(data)) > most:
        raise BadImage(f"a JPEG of {scans} scans, more than the limit of {most} for so many pixels")


def _scans(data: bytes) -> int:
    """How often a JPEG's pixels are gone over: previews within its metadata are not counted."""
    scans, place = 0, 2
    while marker := _MARKER.search(data, place):
        kind, place = data[marker.start() + 1], marker.end()
        if kind == 0xD9:
            break
        scans += kind == 0xDA
        place += int.from_bytes(data[place : place + 2])
    return scans


def _orientation(image: Image.Image) -> int:
    """1 where the image is upright, 5 to 8 where width and height change places."""
    return image.getexif().get(ExifTags.Base.Orientation, 1)


def _to_upright_rgb(image: Image.Image, samples: "_Samples") -> Image.Image:
    """Our own image, which may be changed: no copy where nothing is to be turned."""
    ImageOps.exif_transpose(image, in_place=True)
    return _to_rgb(image, samples)


def _check_size(size: tuple[int, int], max_pixels: int) -> None:
    width, height = size
    if not width * height:
        raise BadImage(f"{width}x{height} is an image without pixels")
    if width * height > max_pixels:
        raise BadImage(f"{width}x{height} is more than the limit of {max_pixels} pixels")


def _from_array(pixels: np.ndarray, max_pixels: int) -> Image.Image:
    if pixels.dtype != np.uint8:
        raise BadImage(f"arrays must hold uint8 values from 0 to 255, got {pixels.dtype}")
    if pixels.ndim not in (2, 3) or (pixels.ndim == 3 and pixels.shape[2] != 3):
        raise BadImage(f"arrays must have the shape (height, width) or (height, width, 3), got {pixels.shape}")
    _check_size((pixels.shape[1], pixels.shape[0]), max_pixels)
    return Image.fromarray(pixels).convert("RGB")


@dataclass(frozen=True)
class _Samples:
    """What a file's header says of the values that stand for a pixel."""

    bits: int = 8
    """Of each value of a PNG or TIFF, as it is stored."""
    black: float = 0.0
    white: float | None = None
    """The declared range; None where there is none."""
    white_is_zero: bool = False


def _samples(image: Image.Image) -> _Samples:
    """Of an image that was not loaded yet; Pillow does not keep all of it."""
    if image.format in ("PPM", "JPEG2000"):
        return _Samples(white=65535)
    if image.format not in ("PNG", "TIFF"):
        return _Samples()
    [raw, *_] = [re.search(r";(\d+)", str(tile[3])) for tile in getattr(image, "tile", ())[:1]] or [None]
    bits = int(raw[1]) if raw else 8
    tags: Any = getattr(image, "tag_v2", {})
    white_is_zero = tags.get(ExifTags.Base.PhotometricInterpretation) == 0
    low, high = (tags.get(tag, (None,))[0] for tag in (SMIN_SAMPLE_VALUE, SMAX_SAMPLE_VALUE))
    black = float(low or 0)
    if high is not None and float(high) > black:
        return _Samples(bits, black, float(high), white_is_zero)
    return _Samples(bits, 0.0, 4095.0 if bits == 12 else None, white_is_zero)


def _to_rgb(image: Image.Image, samples: _Samples) -> Image.Image:
    image = _prepared(image, samples)
    if image.mode == "RGB" and not image.has_transparency_data:
        return image
    if image.width * image.height <= STRIP:
        return _rgb(image)
    shown = Image.new("RGB", image.size)
    for top, strip in _rgb_strips(image):
        shown.paste(strip, (0, top))
    return shown


def _rgb_strips(image: Image.Image) -> Iterator[tuple[int, Image.Image]]:
    """The first row of each strip, and the strip in RGB."""
    rows = max(8, STRIP // image.width // 8 * 8)  # whole pixels of an image that is made 8 times smaller
    for top in range(0, image.height, rows):
        yield top, _rgb(image.crop((0, top, image.width, min(image.height, top + rows))))


def _rgb(image: Image.Image) -> Image.Image:
    """In RGB, on white."""
    if not image.has_transparency_data:
        return image.convert("RGB")
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")


def _prepared(image: Image.Image, samples: _Samples) -> Image.Image:
    """With 8 bits a value, and transparency as `_rgb` reads it."""
    image.load()  # which may tell more of transparency
    if image.mode.startswith("I") or image.mode == "F":
        return _from_deep_grey(image, samples)
    if samples.bits == 16 and image.mode in DEEP_COLOURS and _brightest(image) < 16:
        raise BadImage("its 16-bit colours use only the lowest 12 bits, if any; scale them to 16 bits or save 8 bits")
    if image.has_transparency_data:
        key = image.info.get("transparency")
        if samples.bits == 16 and isinstance(
            key, tuple
        ):  # Pillow keeps the upper 8 bits of each colour, but all 16 here
            image.info["transparency"] = tuple(value >> 8 for value in key)
        elif samples.bits in (2, 4) and image.mode == "L" and isinstance(key, int):  # scaled to 8 bits, but not this
            image.info["transparency"] = key * 255 // (2**samples.bits - 1)
    return image


def _brightest(image: Image.Image) -> float:
    """The greatest value of any colour."""
    bands: Any = zip(image.getbands(), image.getextrema(), strict=True)
    return max(high for band, (_, high) in bands if band not in ("A", "a", "X"))


def _from_deep_grey(image: Image.Image, samples: _Samples) -> Image.Image:
    """8-bit grey of pixels in 16 or 32 bits; see `decode` for their range."""
    values = np.asarray(image)
    whole, white = image.mode != "F", samples.white
    if not whole and (white is None or not np.isfinite(values).all()):
        raise BadImage("floating-point pixels have no defined range; save them with 8 or 16 bits")
    if white is None:
        if values.min() < 0:
            raise BadImage("pixels below zero have no defined range; save them with 8 or 16 bits")
        white = next(2.0**bits for bits in RANGES if values.max() < 2**bits) - 1
    levels, steps = (256, white - samples.black + 1) if whole else (255, white - samples.black)
    grey, rows = np.empty(values.shape, np.uint8), max(1, STRIP // image.width)
    for top in range(0, len(values), rows):
        scaled = (values[top : top + rows].astype(np.float64) - samples.black) * (levels / steps)
        grey[top : top + rows] = (scaled if whole else scaled.round()).clip(0, 255)
    if samples.white_is_zero:
        grey = 255 - grey
    if isinstance(key := image.info.get("transparency"), int):
        grey[values == key] = 255
    return Image.fromarray(grey)
