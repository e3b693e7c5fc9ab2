"""Encode small pictures for a page."""

from io import BytesIO

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

PHOTO_SIDE = 256
"""Side of a photograph on a page, in pixels."""
FINE = 96
"""Side of a heat map's picture. The browser stretches it over the photograph."""
HOT = np.array([(20, 24, 40, 165), (20, 24, 40, 110), (200, 50, 40, 110), (245, 120, 20, 130), (255, 190, 40, 150)])
"""Colors and opacities (RGBA) of a heat map at equal steps from 0 to its largest value: dark, then warm."""


def jpeg(pixels: UInt8[np.ndarray, "h w 3"], quality: int = 82) -> bytes:
    """The pixels as a JPEG file."""
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=quality, optimize=True)
    return buffer.getvalue()


def heat_png(values: Float[np.ndarray, "h w"]) -> bytes | None:
    """A heat map as a translucent PNG file, smoothly enlarged. None if no value is above 0."""
    if not values.max() > 0:
        return None
    shares = Image.fromarray((values / values.max()).astype(np.float32))
    fine = np.asarray(shares.resize((FINE, FINE), Image.Resampling.BICUBIC)).clip(0, 1)
    stops = np.linspace(0, 1, len(HOT))
    pixels = np.stack([np.interp(fine, stops, column) for column in HOT.T], axis=2).round().astype(np.uint8)
    buffer = BytesIO()
    Image.fromarray(pixels, "RGBA").save(buffer, "PNG", optimize=True)
    return buffer.getvalue()
