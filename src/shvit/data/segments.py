"""Parse masks of objects in COCO's formats, and check the areas that files state."""

import math
from typing import Any

import numpy as np
from jaxtyping import Int64

Mask = tuple[np.ndarray, ...] | dict[str, Any]
"""Polygons, each x, y, x, y, … in pixels; or COCO's run-length encoding with `size` and `counts`."""

TOLERANCE, SLACK_PIXELS = 0.25, 8.0
"""Relative and absolute tolerance (the latter in pixels) for stated areas, because tools round and polygons overlap."""
MAX_OUTLINE = 100
"""Maximum length of an object's outline, relative to the image's height plus width."""
MAX_CHARACTERS = 7
"""Maximum characters per number in COCO's compressed strings: 34 bits and a sign, enough for 32-bit pixel counts."""
MIN_FILLED = 1 / 200
"""Minimum plausible area of an object without a mask, as a share of the area of its box."""


def numbers(value: Any) -> list[float] | None:
    """The value as floats if it is a list of finite numbers; otherwise None."""
    if not isinstance(value, list) or not all(isinstance(x, int | float) for x in value):
        return None
    try:
        floats = [float(x) for x in value]
    except OverflowError:  # a whole number of more than 300 digits
        return None
    return floats if all(map(math.isfinite, floats)) else None


def read_segment(value: Any, height: int, width: int) -> Mask | None:
    """Parse a mask. None if it is invalid for an image of this size, or would be too costly to draw.

    Parts that are not polygons are left out.
    """
    if isinstance(value, dict):
        counts = value.get("counts")
        lengths = _unpacked(counts) if isinstance(counts, str) else _whole_numbers(counts)
        if value.get("size") != [height, width] or lengths is None or lengths.min(initial=0) < 0:
            return None
        if float(lengths.sum(dtype=np.float64)) != height * width:
            return None
        return {"size": [height, width], "counts": counts if isinstance(counts, str) else lengths.tolist()}
    if not isinstance(value, list):
        return None
    polygons = tuple(np.array(points) for part in value if (points := _polygon(part)))
    return polygons if polygons and _drawable(polygons, height, width) else None


def _polygon(value: Any) -> list[float] | None:
    points = numbers(value)
    return points if points and len(points) >= 6 and len(points) % 2 == 0 else None


def _whole_numbers(value: Any) -> Int64[np.ndarray, " n"] | None:
    floats = numbers(value)
    whole = floats is not None and all(x.is_integer() and abs(x) < 2**53 for x in floats)
    return np.array(floats, np.int64) if whole else None


def _drawable(polygons: tuple[np.ndarray, ...], height: int, width: int) -> bool:
    """Whether polygons lie near the image and have short outlines: COCO's tools store each outline pixel five times."""
    length = 0.0
    for points in polygons:
        x, y = points[::2], points[1::2]
        for values, side in ((x, width), (y, height)):
            if values.min() < -side or values.max() > 2 * side:
                return False
        length += float(np.maximum(abs(x - np.roll(x, 1)), abs(y - np.roll(y, 1))).sum())
    return length <= MAX_OUTLINE * (height + width)


def plausible(area: float, segment: Mask | None, box: float) -> bool:
    """Whether a stated area agrees with the mask or with the area of the box."""
    if not area > 0:
        return False
    if segment is None:
        return MIN_FILLED * box <= area <= box or _close(area, box)
    return _close(area, box) or _close(area, enclosed(segment))


def enclosed(segment: Mask) -> float:
    """Area of a mask: the sum of its polygons' areas, as in COCO files, or the number of pixels in an encoded mask."""
    if isinstance(segment, dict):
        counts: Any = segment["counts"]
        if isinstance(counts, str):
            counts = _unpacked(counts)
        return float(sum(counts[1::2]))
    corners = ((points[::2], points[1::2]) for points in segment)
    return sum(abs(float(x @ np.roll(y, 1) - y @ np.roll(x, 1))) / 2 for x, y in corners)


def _close(area: float, expected: float) -> bool:
    return abs(area - expected) <= max(TOLERANCE * expected, SLACK_PIXELS)


def _unpacked(packed: str) -> Int64[np.ndarray, " n"] | None:
    """Run lengths from COCO's compressed string; None if it is invalid.

    Each character stores five bits. From the fourth run on, the difference from the run two places before is stored.
    Source: `rleFrString` of cocoapi.
    """
    codes = np.frombuffer(packed.encode(errors="surrogatepass"), np.uint8).astype(np.int64) - 48
    if not len(codes) or codes.min() < 0 or codes.max() > 63 or codes[-1] & 32:
        return None
    last = np.flatnonzero(codes & 32 == 0)
    first = np.append(0, last[:-1] + 1)
    characters = last - first + 1
    if characters.max() > MAX_CHARACTERS:
        return None
    bits = 5 * (np.arange(len(codes)) - first.repeat(characters))
    counts = np.add.reduceat((codes & 31) << bits, first) - ((codes[last] >> 4 & 1) << 5 * characters)
    for start in (1, 2):
        counts[start::2] = counts[start::2].cumsum()
    return counts
