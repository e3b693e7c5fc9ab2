"""COCO's shapes of objects, and the areas that annotation files give for them."""

import math
from typing import Any

import numpy as np

Segment = tuple[np.ndarray, ...] | dict[str, Any]
"""An object's shape: polygons, each x, y, x, y, … in pixels; or COCO's run-length code, with `size` and `counts`."""

TOLERANCE, ROUNDING = 0.25, 8.0
"""Share, and pixels, by which a stated area may differ from the mask's or the box's: polygons overlap, tools round."""
LEAST_FILLED = 1 / 200
"""Of a box: a smaller area cannot be that of an object without a mask."""


def numbers(value: Any) -> list[float] | None:
    """A list of finite numbers, or None."""
    if not isinstance(value, list) or not all(isinstance(x, int | float) and math.isfinite(x) for x in value):
        return None
    return [float(x) for x in value]


def read_segment(value: Any, height: int, width: int) -> Segment | None:
    """None where it is no shape in an image of this size."""
    if isinstance(value, dict):
        size, counts = value.get("size"), value.get("counts")
        if size != [height, width] or not isinstance(counts, str | list):
            return None
        if isinstance(counts, list) and (numbers(counts) is None or sum(counts) != height * width):
            return None
        return {"size": size, "counts": counts}
    if not isinstance(value, list):
        return None
    polygons = [points for part in value if (points := numbers(part)) and len(points) >= 6 and len(points) % 2 == 0]
    return tuple(np.array(points) for points in polygons) or None


def plausible(area: float, segment: Segment | None, box: float) -> bool:
    """Whether a stated area can be that of an object with this mask, or with a box of this area."""
    if not area > 0:
        return False
    if segment is None:
        return LEAST_FILLED * box <= area <= box or _close(area, box)
    return _close(area, box) or _close(area, enclosed(segment))


def enclosed(segment: Segment) -> float:
    """Area of a mask in pixels: of polygons the sum that COCO's files give, of a run-length code its pixels."""
    if isinstance(segment, dict):
        counts = segment["counts"]
        return float(sum((_unpacked(counts) if isinstance(counts, str) else counts)[1::2]))
    total = 0.0
    for points in segment:
        x, y = points[::2], points[1::2]
        total += abs(float(x @ np.roll(y, 1) - y @ np.roll(x, 1))) / 2
    return total


def _close(area: float, expected: float) -> bool:
    return abs(area - expected) <= max(TOLERANCE * expected, ROUNDING)


def _unpacked(packed: str) -> list[int]:
    """Run lengths from COCO's string: five bits a character, and from the fourth on the difference to the last but one.

    Source: `rleFrString` of cocoapi.
    """
    counts: list[int] = []
    value = shift = 0
    for character in packed:
        code = ord(character) - 48
        value |= (code & 31) << shift
        shift += 5
        if not code & 32:
            if code & 16:
                value -= 1 << shift
            counts.append(value + (counts[-2] if len(counts) > 2 else 0))
            value = shift = 0
    return counts
