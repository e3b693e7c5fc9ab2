"""Pictures of what a detector found: boxes, masks, classes and scores, legible whatever the image's size."""

import colorsys
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageFont

from ..data.decode import BadImage, decode
from ..errors import notice
from ..files import writing
from ..tasks.base import Prediction

Colour = tuple[int, int, int]
Area = tuple[float, float, float, float]
SHADE = 0.4
"""Opacity of a mask."""
GOLDEN = 0.618034
"""Of a turn of the colour circle, from one class to the next: neighbours never look alike."""
ENLARGED = 320
"""Shorter side in pixels up to which a picture is enlarged, so that its labels can be read."""


JPEG_SIDE = 65_500
"""The longest that a JPEG can have; larger pictures are PNGs."""
LARGEST = 4096
"""Longer side in pixels that no picture is enlarged beyond."""


def draw(image: Image.Image, prediction: Prediction, classes: Sequence[str]) -> Image.Image:
    """A copy of the image with all that was found in it.

    Args:
        image: Upright, in RGB.
        prediction: Of a detector, in pixels of the image.
        classes: Of the detector; each has its own colour, the same in every picture.
    """
    factor = max(1, min(-(-ENLARGED // min(image.size)), LARGEST // max(image.size)))
    picture = image.resize((factor * image.width, factor * image.height), Image.Resampling.BICUBIC)
    side = (picture.width * picture.height) ** 0.5
    line, font = max(2, round(side / 320)), ImageFont.truetype(font_file(), max(12.0, side / 45))
    colours = {name: _colour(place) for place, name in enumerate(classes)}
    names = legible(tuple(classes))
    found = list(zip(prediction.labels, prediction.scores, prediction.boxes or (), strict=True))
    masks = prediction.masks or [None] * len(found)
    worst_first = list(zip(found, masks, strict=True))[::-1]
    for (label, _, _), mask in worst_first:
        if mask is not None:
            _shade(picture, mask, colours[label], line)
    canvas = ImageDraw.Draw(picture)
    boxes: list[Area] = [tuple(factor * side for side in box) for _, _, box in found]  # pyright: ignore
    for (label, _, _), box in zip(found[::-1], boxes[::-1], strict=True):
        canvas.rectangle(box, outline=colours[label], width=line)
    taken: list[Area] = []
    for (label, score, _), box in zip(found, boxes, strict=True):
        _write(canvas, picture.size, f"{names[label]} {score:.0%}", box, colours[label], font, taken)
    return picture


def draw_file(prediction: Prediction, classes: Sequence[str], path: Path) -> None:
    """Write the picture of a file's prediction to `path`, which lacks its suffix; nothing where it is unreadable.

    Raises:
        Failure: There is no space left.
    """
    try:
        image = decode(prediction.path)
    except BadImage:
        return
    path = path.with_name(path.name + (".jpg" if max(image.size) <= JPEG_SIDE else ".png"))
    with writing(path):
        draw(image, prediction, classes).save(path, quality=92, subsampling=0)


def free_name(path: str, taken: set[str]) -> str:
    """The file's name without suffix, with the first number that makes it new, whatever its case; taken from now on."""
    stem = name = Path(path).stem
    number = 1
    while name.casefold() in taken:
        number += 1
        name = f"{stem}-{number}"
    taken.add(name.casefold())
    return name


def font_file() -> str:
    """DejaVu Sans, which comes with matplotlib: Latin, Greek, Cyrillic, Arabic and Hebrew letters, not Chinese."""
    from matplotlib import get_data_path

    return str(Path(get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf")


@cache
def legible(classes: tuple[str, ...]) -> dict[str, str]:
    """How each class is written in a picture: its name, or its number from 1 where the font lacks a letter of it."""
    from matplotlib.ft2font import FT2Font

    known = FT2Font(font_file()).get_charmap().keys()
    names = {name: name for name in classes}
    lacking = {name: f"class {place}" for place, name in enumerate(classes, 1) if not set(map(ord, name)) <= known}
    if lacking:
        name, number = next(iter(lacking.items()))
        notice(f"pictures have the numbers of {len(lacking)} classes, whose letters the font lacks: {number} is {name}")
    return names | lacking


def _colour(place: int) -> Colour:
    hue, bright = (place * GOLDEN) % 1, (1.0, 0.8)[place % 2]
    red, green, blue = colorsys.hsv_to_rgb(hue, 0.85, bright)
    return round(255 * red), round(255 * green), round(255 * blue)


def _shade(picture: Image.Image, code: dict, colour: Colour, line: int) -> None:
    """Lay the colour over the mask, and a line around it."""
    from faster_coco_eval.core import mask as tools

    mask = Image.fromarray(255 * tools.decode(code).astype(np.uint8)).resize(picture.size)
    area = mask.getbbox()
    if area is None:
        return
    area = (max(0, area[0] - line), max(0, area[1] - line), area[2] + line, area[3] + line)
    mask = mask.crop(area)
    edge = ImageChops.subtract(mask, mask.filter(ImageFilter.MinFilter(2 * (line // 2) + 1)))
    opacity = ImageChops.lighter(mask.point([round(SHADE * value) for value in range(256)]), edge)
    picture.paste(colour, (area[0], area[1]), opacity)


def _write(
    canvas: ImageDraw.ImageDraw,
    size: tuple[int, int],
    text: str,
    box: Area,
    colour: Colour,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
    taken: list[Area],
) -> None:
    """The text on a ground of this colour: above the box, in it or below, where no other text is yet."""
    left, top, right, bottom = canvas.textbbox((0, 0), text, font=font)
    room = max(2.0, (bottom - top) / 4)
    width, height = right - left + 2 * room, bottom - top + 2 * room
    places = [(box[0], y) for y in (box[1] - height, box[1], box[3] - height, box[3])]
    places += [(box[2] - width, y) for y in (box[1] - height, box[1], box[3] - height, box[3])]
    areas = []
    for x, y in places:
        x, y = min(max(0.0, x), max(0.0, size[0] - width)), min(max(0.0, y), max(0.0, size[1] - height))
        areas.append((x, y, x + width, y + height))
    area = min(areas, key=lambda one: sum(_overlap(one, other) for other in taken))  # the first of the best
    taken.append(area)
    canvas.rectangle(area, fill=colour)
    light = 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2]
    ink = "black" if light > 140 else "white"
    canvas.text((area[0] + room - left, area[1] + room - top), text, fill=ink, font=font)


def _overlap(one: Area, other: Area) -> float:
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    return max(0.0, width) * max(0.0, height)
