"""Open image files safely: supported formats, size limits, and the reasons why files cannot be used."""

import io
import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import BinaryIO

from PIL import ExifTags, Image

from ..errors import one_line
from ..suppress import unwarned

MAX_PIXELS = 89_478_485
"""Images with more pixels are refused as decompression bombs. Pillow warns above the same limit, 256 MiB of RGB."""
PILLOW_FORMATS = (
    "JPEG", "PNG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "PPM", "AVIF", "JPEG2000", "PCX", "PSD", "SGI", "SUN", "TGA",
)  # fmt: skip
"""Formats that Pillow may read. Pillow's other decoders start programs (EPS), open nested images of any size (ICO,
ICNS), or are slow because they loop in Python."""
HEIC = (b"ftypheic", b"ftypheix", b"ftypheim", b"ftypheis", b"ftyphevc", b"ftyphevx", b"ftypmif1", b"ftypmsf1")
"""Bytes 4 to 12 (exclusive) of files that pillow-heif can read."""
SMALL_FILE = 1 << 26
BYTES_PER_PIXEL = 8
"""A file may have at most `SMALL_FILE` bytes plus this number for each pixel, enough for 16-bit RGBA."""
MAX_BYTES = SMALL_FILE + BYTES_PER_PIXEL * MAX_PIXELS
READ_WHOLE = re.compile(rb"RIFF|....ftyp", re.DOTALL)
"""First bytes of WebP, AVIF and HEIC files. Pillow reads such a file completely before it knows the image's size."""
MAX_SCANS, MAX_SCANNED = 100, 1_500_000_000
"""Maximum number of scans of a JPEG, and maximum number of scans times number of pixels. Many scans are slow,
because each scan may change every pixel. Common tools write up to 20 scans."""
NO_MEMORY = "not enough memory to decode it"

_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
"""A JPEG marker that begins a segment and cannot occur in compressed pixels."""
_open_lock = threading.Lock()


class BadImage(ValueError):
    """An image that cannot be used. The message is the reason, in a few words."""


@contextmanager
def reasons_as_bad_image() -> Iterator[None]:
    """Turn decoding errors into BadImage. Pillow's warnings about damaged metadata are suppressed."""
    try:
        with unwarned():
            yield
    except (BadImage, ImportError):  # a missing library is no fault of the image
        raise
    except Image.UnidentifiedImageError:
        raise BadImage("not an image in a known format") from None
    except MemoryError:
        raise BadImage(NO_MEMORY) from None
    except Exception as error:  # Pillow's decoders raise almost any exception for a damaged file
        raise BadImage(f"cannot be decoded: {one_line(error)}") from error


@contextmanager
def within_memory() -> Iterator[None]:
    """Turn a failed memory allocation by Python, NumPy or torch into BadImage."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "can't allocate memory" not in str(error):
            raise
        raise BadImage(NO_MEMORY) from None


def read_file(source: Path | str | bytes) -> bytes:
    """The bytes of an image file. Raises BadImage if it is missing, empty, or too large for its number of pixels."""
    data = source if isinstance(source, bytes) else _read_bounded(Path(source))
    if not data:
        raise BadImage("file is empty")
    return data


def _read_bounded(path: Path) -> bytes:
    if not path.is_file():  # reading a pipe may block forever, and a device may have no end
        raise BadImage("not a regular file" if path.exists() and not path.is_dir() else "no such file")
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size > SMALL_FILE:
            if READ_WHOLE.match(file.read(8)):
                raise BadImage(f"its {size:,} bytes are more than the limit of {SMALL_FILE:,} for WebP, AVIF and HEIC")
            file.seek(0)
            width, height = open_header(file).size
            if size > SMALL_FILE + BYTES_PER_PIXEL * width * height:
                raise BadImage(f"its {size:,} bytes are more than {width}x{height} pixels can need")
            file.seek(0)
        return file.read(size)


def read_size(path: Path) -> tuple[int, int]:
    """Height and width of the upright image, from the file's header. Raises BadImage."""
    with reasons_as_bad_image():
        return upright_size(open_header(read_file(path)))


@cache
def _formats() -> tuple[str, ...]:
    """The formats in `PILLOW_FORMATS` that the installed Pillow supports, and HEIF if pillow-heif is installed."""
    Image.init()
    if find_spec("pillow_heif"):
        import_module("pillow_heif").register_heif_opener()
    return tuple(name for name in (*PILLOW_FORMATS, "HEIF") if name in Image.OPEN)


def open_header(data: bytes | BinaryIO) -> Image.Image:
    """Open an image by reading only its header. Pillow's size limit is disabled; callers use `check_size` instead."""
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


def open_checked(data: bytes, max_pixels: int) -> Image.Image:
    """Open an image by reading its header. Raises BadImage if decoding would take too much time or memory."""
    image = open_header(data)
    check_size(image.size, max_pixels)
    if image.format in ("JPEG", "MPO"):
        check_scans(data, image.width * image.height)
    return image


def check_scans(data: bytes, pixels: int) -> None:
    """Raises BadImage for a JPEG with too many scans."""
    most = min(MAX_SCANS, MAX_SCANNED // pixels)
    if data.count(b"\xff\xda") > most and (scans := _scans(data)) > most:
        raise BadImage(f"a JPEG with {scans} scans, more than the limit of {most} for an image of this size")


def _scans(data: bytes) -> int:
    """Number of scans of a JPEG, not counting the scans of previews in its metadata."""
    scans, position = 0, 2
    while marker := _MARKER.search(data, position):
        kind, position = data[marker.start() + 1], marker.end()
        if kind == 0xD9:
            break
        scans += kind == 0xDA
        position += int.from_bytes(data[position : position + 2])
    return scans


def orientation(image: Image.Image) -> int:
    """EXIF orientation: 1 for an upright image, 5 to 8 if width and height are swapped."""
    return image.getexif().get(ExifTags.Base.Orientation, 1)


def upright_size(image: Image.Image) -> tuple[int, int]:
    """Height and width after the EXIF orientation is applied."""
    return image.size if orientation(image) in (5, 6, 7, 8) else (image.height, image.width)


def check_size(size: tuple[int, int], max_pixels: int) -> None:
    """Raises BadImage for an image without pixels or with too many pixels. `size` is (width, height)."""
    width, height = size
    if not width * height:
        raise BadImage(f"{width}x{height} is an image without pixels")
    if width * height > max_pixels:
        raise BadImage(f"{width}x{height} is more than the limit of {max_pixels} pixels")


def is_plain_jpeg(data: bytes) -> bool:
    """Whether an image file is an upright JPEG in RGB, YCbCr or gray."""
    image = open_header(data)
    return image.format == "JPEG" and image.mode in ("RGB", "L") and orientation(image) == 1
