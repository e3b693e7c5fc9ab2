"""From the bytes of an image file to 8-bit RGB pixels, or a reason why not."""

import io
import struct
import threading
import warnings
import zlib
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

Source = Path | str | bytes | np.ndarray | Image.Image
"""A file's path, a file's bytes, pixels (height, width[, 3]) in uint8, or an opened image."""

MAX_PIXELS = 89_478_485
"""Images with more pixels are refused as decompression bombs. The number from which Pillow warns: 256 MiB of RGB."""

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
)
"""What Pillow's decoders raise on damaged files."""

_open_lock = threading.Lock()


class BadImage(ValueError):
    """An image that cannot be used; the message is the reason, in a few words."""


def decode(source: Source, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """An upright 8-bit RGB image: EXIF orientation applied, the first frame of an animation, transparency on white.

    Args:
        source: A path, the bytes of a file, pixels (height, width) or (height, width, 3) in uint8, or an opened image.
        max_pixels: Larger images are refused before they are decoded.

    Raises:
        BadImage: Missing, empty, not an image, truncated, damaged, too large, or of a kind without 8-bit meaning.
    """
    if isinstance(source, np.ndarray):
        return _from_array(source)
    try:
        image = source if isinstance(source, Image.Image) else _open(source)
        if image.width * image.height > max_pixels:
            raise BadImage(f"{image.width}x{image.height} is more than the limit of {max_pixels} pixels")
        image.load()
        if image is source:
            return _to_rgb(ImageOps.exif_transpose(image))
        ImageOps.exif_transpose(image, in_place=True)  # our own, so no copy where nothing is to be turned
        return _to_rgb(image)
    except BadImage:
        raise
    except Image.UnidentifiedImageError:
        raise BadImage("not an image in a known format") from None
    except _DECODER_ERRORS as error:
        raise BadImage(f"cannot be decoded: {' '.join(str(error).split()) or type(error).__name__}") from error


def _open(source: Path | str | bytes) -> Image.Image:
    """Reads the header only. Pillow's own limit rests meanwhile: `decode` judges by its caller's."""
    if isinstance(source, str | Path) and not Path(source).is_file():
        raise BadImage("no such file")
    data = source if isinstance(source, bytes) else Path(source).read_bytes()
    if not data:
        raise BadImage("file is empty")
    with _open_lock, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            return Image.open(io.BytesIO(data))
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def _from_array(pixels: np.ndarray) -> Image.Image:
    if pixels.dtype != np.uint8 or pixels.ndim not in (2, 3) or (pixels.ndim == 3 and pixels.shape[2] != 3):
        raise BadImage(f"pixels must be uint8 (height, width) or (height, width, 3), got {pixels.dtype} {pixels.shape}")
    return Image.fromarray(pixels).convert("RGB")


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB":
        return image
    if image.mode.startswith("I"):  # 16 bits a pixel, whatever the container calls it: keep the upper 8
        pixels = np.asarray(image).astype(np.int64).clip(0, 65535)
        return Image.fromarray((pixels >> 8).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise BadImage("floating-point pixels have no defined range; save them with 8 or 16 bits")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")
