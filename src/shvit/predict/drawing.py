"""Draw detected objects: boxes, masks, classes and scores, legible at any image size."""

import colorsys
from collections.abc import Sequence
from functools import cache
from itertools import chain, count
from pathlib import Path

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageFont

from ..data.decode import BadImage, decode
from ..errors import counted, notice
from ..files import writing
from ..tasks.base import Prediction

Color = tuple[int, int, int]
Area = tuple[float, float, float, float]
SHADE = 0.4
"""Opacity of a mask."""
GOLDEN = 0.618034
"""Step in hue from one class to the next, as a share of the color circle. Makes consecutive classes look different."""
ENLARGED, LARGEST = 320, 4096
"""Images whose shorter side is below the first number are enlarged, so that labels can be read. The second number
is the maximum length of the longer side of an enlarged image."""
JPEG_SIDE = 65_500
"""Longest side of a JPEG. Larger images are written as PNG."""


def draw_objects(image: Image.Image, prediction: Prediction, classes: Sequence[str]) -> Image.Image:
    """Draw the objects that a detector found, on a copy of the upright RGB image.

    A class has the same color in every image. The color depends on the position of the class in `classes`.
    """
    factor = max(1, min(-(-ENLARGED // min(image.size)), LARGEST // max(image.size)))
    picture = image.resize((factor * image.width, factor * image.height), Image.Resampling.BICUBIC)
    side = (picture.width * picture.height) ** 0.5
    line, font = max(2, round(side / 320)), ImageFont.truetype(font_file(), max(12.0, side / 45))
    colors = {name: _color(index) for index, name in enumerate(classes)}
    names = legible(tuple(classes))
    found = list(zip(prediction.labels, prediction.scores, prediction.boxes or (), strict=True))
    masks = prediction.masks or [None] * len(found)
    worst_first = list(zip(found, masks, strict=True))[::-1]
    for (label, _, _), mask in worst_first:
        if mask is not None:
            _shade(picture, mask, colors[label], line)
    canvas = ImageDraw.Draw(picture)
    boxes: list[Area] = [tuple(factor * side for side in box) for _, _, box in found]  # pyright: ignore
    for (label, _, _), box in zip(found[::-1], boxes[::-1], strict=True):
        canvas.rectangle(box, outline=colors[label], width=line)
    taken: list[Area] = []
    for (label, score, _), box in zip(found, boxes, strict=True):
        _write(canvas, picture.size, f"{names[label]} {score:.0%}", box, colors[label], font, taken)
    return picture


def draw_file(prediction: Prediction, classes: Sequence[str], path: Path) -> None:
    """Draw the prediction on its image, and write it to `path` with the suffix .jpg or .png appended.

    Nothing is written if the image cannot be read. Raises Failure if no space is left.
    """
    try:
        image = decode(prediction.path)
    except BadImage:
        return
    path = path.with_name(path.name + (".jpg" if max(image.size) <= JPEG_SIDE else ".png"))
    with writing(path):
        draw_objects(image, prediction, classes).save(path, quality=92, subsampling=0)


def free_name(path: str, taken: set[str]) -> str:
    """The file's name without its suffix, and with a number if the name is in `taken`. Adds the result to `taken`."""
    stem = Path(path).stem
    names = chain([stem], (f"{stem}-{number}" for number in count(2)))
    name = next(name for name in names if name.casefold() not in taken)
    taken.add(name.casefold())
    return name


def font_file() -> str:
    """Path of DejaVu Sans in matplotlib. It has Latin, Greek, Cyrillic, Arabic and Hebrew letters, but no Chinese."""
    from matplotlib import get_data_path

    return str(Path(get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf")


@cache
def legible(classes: tuple[str, ...]) -> dict[str, str]:
    """The label of each class: its name, or `class N` (counted from 1) if the font lacks a letter of the name."""
    from matplotlib.ft2font import FT2Font

    known = FT2Font(font_file()).get_charmap().keys()
    names = {name: name for name in classes}
    lacking = {name: f"class {number}" for number, name in enumerate(classes, 1) if not set(map(ord, name)) <= known}
    if lacking:
        name, number = next(iter(lacking.items()))
        notice(f"the font cannot draw {counted(len(lacking), 'class name')}: in drawings, {number} stands for {name}")
    return names | lacking


def _color(index: int) -> Color:
    hue, bright = (index * GOLDEN) % 1, (1.0, 0.8)[index % 2]
    red, green, blue = colorsys.hsv_to_rgb(hue, 0.85, bright)
    return round(255 * red), round(255 * green), round(255 * blue)


def _shade(picture: Image.Image, code: dict, color: Color, line: int) -> None:
    """Fill the mask with a translucent color, and outline it."""
    from faster_coco_eval.core import mask as tools

    mask = Image.fromarray(255 * tools.decode(code).astype(np.uint8)).resize(picture.size)
    area = mask.getbbox()
    if area is None:
        return
    area = (max(0, area[0] - line), max(0, area[1] - line), area[2] + line, area[3] + line)
    mask = mask.crop(area)
    edge = ImageChops.subtract(mask, mask.filter(ImageFilter.MinFilter(2 * (line // 2) + 1)))
    opacity = ImageChops.lighter(mask.point([round(SHADE * value) for value in range(256)]), edge)
    picture.paste(color, (area[0], area[1]), opacity)


def _write(
    canvas: ImageDraw.ImageDraw,
    size: tuple[int, int],
    text: str,
    box: Area,
    color: Color,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
    taken: list[Area],
) -> None:
    """Write text on a background of this color above, in or below the box, wherever it overlaps other text least."""
    left, top, right, bottom = canvas.textbbox((0, 0), text, font=font)
    room = max(2.0, (bottom - top) / 4)
    width, height = right - left + 2 * room, bottom - top + 2 * room
    areas, rows = [], (box[1] - height, box[1], box[3] - height, box[3])
    for x, y in [(x, y) for x in (box[0], box[2] - width) for y in rows]:
        x, y = min(max(0.0, x), max(0.0, size[0] - width)), min(max(0.0, y), max(0.0, size[1] - height))
        areas.append((x, y, x + width, y + height))
    area = min(areas, key=lambda one: sum(_overlap(one, other) for other in taken))  # the first if several are best
    taken.append(area)
    canvas.rectangle(area, fill=color)
    light = 0.299 * color[0] + 0.587 * color[1] + 0.114 * color[2]
    ink = "black" if light > 140 else "white"
    canvas.text((area[0] + room - left, area[1] + room - top), text, fill=ink, font=font)


def _overlap(one: Area, other: Area) -> float:
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    return max(0.0, width) * max(0.0, height)
