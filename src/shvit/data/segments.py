"""COCO's shapes of objects, and the areas that annotation files give for them."""

import math
from typing import Any

import numpy as np
from jaxtyping import Int64

Mask = tuple[np.ndarray, ...] | dict[str, Any]
"""An object's shape: polygons, each x, y, x, y, … in pixels; or COCO's run-length code, with `size` and `counts`."""

TOLERANCE, ROUNDING = 0.25, 8.0
"""Share, and pixels, by which a stated area may differ from the mask's or the box's: polygons overlap, tools round."""
LONGEST = 100
"""How many times an image's height and width the outline of an object may be long."""
MOST_CHARACTERS = 7
"""Of a number in COCO's strings: 34 bits and a sign, where pixels are counted with 32."""
LEAST_FILLED = 1 / 200
"""Of a box: a smaller area cannot be that of an object without a mask."""


def numbers(value: Any) -> list[float] | None:
    """A list of finite numbers, or None."""
    if not isinstance(value, list) or not all(isinstance(x, int | float) for x in value):
        return None
    try:
        found = [float(x) for x in value]
    except OverflowError:  # a whole number of more than 300 digits
        return None
    return found if all(map(math.isfinite, found)) else None


def read_segment(value: Any, height: int, width: int) -> Mask | None:
    """None where it is no shape in an image of this size, or one that would take unbounded time and memory to draw."""
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


def lost_parts(value: Any, segment: Mask | None) -> bool:
    """Whether a shape was read from some of its polygons only, since others are none."""
    return isinstance(segment, tuple) and len(segment) < len(value)


def _polygon(value: Any) -> list[float] | None:
    points = numbers(value)
    return points if points and len(points) >= 6 and len(points) % 2 == 0 else None


def _whole_numbers(value: Any) -> Int64[np.ndarray, " n"] | None:
    found = numbers(value)
    if found is None or not all(x.is_integer() and abs(x) < 2**53 for x in found):
        return None
    return np.array(found, np.int64)


def _drawable(polygons: tuple[np.ndarray, ...], height: int, width: int) -> bool:
    """Whether they are near the image and of bounded length: COCO's tools hold each pixel of an outline five times."""
    length = 0.0
    for points in polygons:
        x, y = points[::2], points[1::2]
        for places, side in ((x, width), (y, height)):
            if places.min() < -side or places.max() > 2 * side:
                return False
        length += float(np.maximum(abs(x - np.roll(x, 1)), abs(y - np.roll(y, 1))).sum())
    return length <= LONGEST * (height + width)


def plausible(area: float, segment: Mask | None, box: float) -> bool:
    """Whether a stated area can be that of an object with this mask, or with a box of this area."""
    if not area > 0:
        return False
    if segment is None:
        return LEAST_FILLED * box <= area <= box or _close(area, box)
    return _close(area, box) or _close(area, enclosed(segment))


def enclosed(segment: Mask) -> float:
    """Area of a mask in pixels: of polygons the sum that COCO's files give, of a run-length code its pixels."""
    if isinstance(segment, dict):
        counts: Any = segment["counts"]
        if isinstance(counts, str):
            counts = _unpacked(counts)
        return float(sum(counts[1::2]))
    total = 0.0
    for points in segment:
        x, y = points[::2], points[1::2]
        total += abs(float(x @ np.roll(y, 1) - y @ np.roll(x, 1))) / 2
    return total


def _close(area: float, expected: float) -> bool:
    return abs(area - expected) <= max(TOLERANCE * expected, ROUNDING)


def _unpacked(packed: str) -> Int64[np.ndarray, " n"] | None:
    """Run lengths from COCO's string; None where it is none.

    Five bits a character, and from the fourth on the difference to the last but one. Source: `rleFrString` of cocoapi.
    """
    codes = np.frombuffer(packed.encode(errors="surrogatepass"), np.uint8).astype(np.int64) - 48
    if not len(codes) or codes.min() < 0 or codes.max() > 63 or codes[-1] & 32:
        return None
    last = np.flatnonzero(codes & 32 == 0)
    first = np.append(0, last[:-1] + 1)
    characters = last - first + 1
    if characters.max() > MOST_CHARACTERS:
        return None
    bits = 5 * (np.arange(len(codes)) - first.repeat(characters))
    counts = np.add.reduceat((codes & 31) << bits, first) - ((codes[last] >> 4 & 1) << 5 * characters)
    for start in (1, 2):
        counts[start::2] = counts[start::2].cumsum()
    return counts
