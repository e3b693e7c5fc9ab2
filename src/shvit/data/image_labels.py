"""Splits of images whose labels are in separate files, one for each image, as in YOLO and Pascal VOC."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import DataError, counted, few
from .coco import CocoDataset, CocoSplit, assembled, objects_of
from .dataset import Holdout
from .image_file import BadImage, read_size
from .problems import Problems, cut_box
from .segments import Mask, enclosed, read_segment
from .walk import is_file

MAX_LABEL_BYTES = 4 * 2**20
"""Maximum size of a label file."""


@dataclass(frozen=True)
class LabelledObject:
    """An object as its label file states it."""

    name: str | int
    """Class name, or index of the class."""
    box: tuple[float, float, float, float]
    """Left, top, right and bottom in pixels; may lie outside the image."""
    where: str
    """File and line, or file and object, for messages."""
    crowd: bool = False
    polygon: Sequence[float] | None = None
    """x, y, x, y, … in pixels; None for an object without a mask."""


@dataclass
class LabelledSplit:
    """The images of a split and their objects, in the order of their paths."""

    problems: Problems
    images: list[Path] = field(default_factory=list)
    sizes: list[tuple[int, int]] = field(default_factory=list)
    bad: dict[int, str] = field(default_factory=dict)
    objects: list[list[LabelledObject]] = field(default_factory=list)

    def add(self, image: Path) -> tuple[int, int] | None:
        """Add an image without objects. Returns its height and width; None if it cannot be used."""
        size = (0, 0)
        try:
            if not is_file(image):
                raise BadImage("no such file")
            size = read_size(image)
        except BadImage as error:
            self.problems.add("image", "cannot be used", f"{image.name}: {error}")
            self.bad[len(self.images)] = str(error)
        self.images.append(image)
        self.sizes.append(size)
        self.objects.append([])
        return size if size[0] else None

    def made(self, label_of: Mapping[str | int, int]) -> CocoSplit:
        """The split with the labels of `label_of`. Objects that cannot be used are left out and counted."""
        objects = []
        for stated, size in zip(self.objects, self.sizes, strict=True):
            seen: set[Any] = set()
            rows = (self._row(one, *size, label_of, seen) for one in stated)
            objects.append(objects_of([row for row in rows if row is not None]))
        sizes = np.array(self.sizes, np.int64).reshape(-1, 2)
        return CocoSplit(self.images, list(range(1, 1 + len(objects))), sizes, objects, self.bad)

    def _row(
        self, one: LabelledObject, height: int, width: int, label_of: Mapping[str | int, int], seen: set[Any]
    ) -> tuple[Any, ...] | None:
        add = self.problems.add
        if (label := label_of.get(one.name)) is None:
            return add("label", "left out: unknown class", f"{one.where} (class {one.name})")
        if not height:  # the image cannot be used
            return None
        left, top, right, bottom = one.box
        if not all(map(math.isfinite, one.box)):
            return add("label", "left out: not finite numbers", one.where)
        if right <= left or bottom <= top:
            return add("label", "left out: bbox has no width or no height", one.where)
        if (cut := cut_box(one.box, height, width, lambda kind: add("label", kind, one.where))) is None:
            return None
        if (same := (label, *one.box, tuple(one.polygon or ()))) in seen:
            return add("label", "left out: already listed", one.where)
        seen.add(same)
        segment: Mask | None = None
        if one.polygon is not None and (segment := read_segment([list(one.polygon)], height, width)) is None:
            add("mask", "left out: not a polygon inside the image", one.where)
        area = (enclosed(segment) if segment else 0) or (cut[2] - cut[0]) * (cut[3] - cut[1])
        return cut, label, one.crowd, min(area, height * width), segment


def read_text(path: Path, most: int = MAX_LABEL_BYTES) -> str:
    """The text of a small UTF-8 file. Raises DataError with the reason if it cannot be read."""
    try:
        with path.open("rb") as file:
            content = file.read(most + 1)
    except OSError as error:
        raise DataError(error.strerror or str(error)) from None
    if len(content) > most:
        raise DataError(f"larger than {most >> 20} MiB")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise DataError("not UTF-8 text") from None


def listed_names(folders: Iterable[Path], files: Sequence[str]) -> tuple[str, ...] | None:
    """The class names in the first of these text files that exists, one per line; None if there is none.

    Raises:
        DataError: The file cannot be read, or a name is repeated.
    """
    for path in (folder / name for folder in folders for name in files):
        if is_file(path):
            try:
                lines = [line.strip() for line in read_text(path).splitlines()]
            except DataError as error:
                raise DataError(f"{path} cannot be used for class names: {error}") from None
            return unique(tuple(line for line in lines if line), path)
    return None


def unique(names: tuple[str, ...], source: Path) -> tuple[str, ...]:
    """The class names. Raises DataError if there are none, or if two are equal."""
    if not names:
        raise DataError(f"{source} names no classes")
    if repeated := [name for name, count in Counter(names).items() if count > 1]:
        raise DataError(f"{source}: two classes are named {few(repeated)}")
    return names


def dataset_of_splits(
    data: str | Path,
    classes: tuple[str, ...],
    label_of: Mapping[str | int, int],
    splits: Mapping[str, LabelledSplit],
    holdout: Holdout,
    warnings: Sequence[str],
) -> CocoDataset:
    """Make a dataset. Raises DataError if a split for training or validation has no usable image."""
    arranged, lines = holdout.arrange(splits)
    made = {name: split.made(label_of) for name, split in arranged.items()}
    for name, split in arranged.items():
        lines += [f"{name}: {line}" if len(arranged) > 1 else line for line in split.problems.lines()]
        if len(split.images) == len(split.bad) and name != "test":
            count = counted(len(split.images), "image")
            first = f"; the first is {split.images[0]}: {split.bad[0]}" if split.images else ""
            raise DataError(f"{data}: none of {count} of the split {name} can be used{first}")
    test = made.pop("test", None)
    categories = dict(enumerate(classes, 1))
    return assembled(str(data), categories, made, test, holdout, [*warnings, *lines], f"{data}, split test")
