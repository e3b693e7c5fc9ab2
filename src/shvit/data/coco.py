"""COCO folders: images with boxes, masks and classes; what is amiss with them is said in a line for each kind.

Source: T.-Y. Lin et al., "Microsoft COCO: common objects in context", 2014; format: https://cocodataset.org/#format-data
"""

import hashlib
import math
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from reprlib import repr as shown
from typing import Any, TypeVar

import numpy as np
from jaxtyping import Bool, Float32, Int64

from ..errors import DataError
from .coco_files import annotation_files, files_by_split, image_folder, located
from .coco_rows import common_categories, file_name, is_crowd, read_categories, read_document, whole_number
from .decode import BadImage, read_size
from .folders import find_coco, refuse_format
from .identity import DrawnBy, held_out
from .segments import Mask, enclosed, lost_parts, numbers, plausible, read_segment
from .walk import is_file

T = TypeVar("T")
SLACK = 1.0
"""Pixels that a box may reach beyond its image before that is told: annotators' rounding."""
SMALL, MEDIUM = 32**2, 96**2
"""Areas in pixels up to which COCO calls an object small, and medium."""


@dataclass(frozen=True)
class Objects:
    """What is in one image. Crowds are regions of many objects, which are neither learnt nor counted."""

    boxes: Float32[np.ndarray, "n 4"]
    """Left, top, right, bottom in pixels of the image, of some width and height, within it."""
    labels: Int64[np.ndarray, " n"]
    """Places among the classes."""
    crowd: Bool[np.ndarray, " n"]
    areas: Float32[np.ndarray, " n"]
    """In pixels, by COCO's own count of the mask."""
    segments: Sequence[Mask | None]
    """None for an object without a usable mask."""

    def __len__(self) -> int:
        return len(self.labels)


NOTHING = Objects(np.empty((0, 4), np.float32), np.empty(0, np.int64), np.empty(0, bool), np.empty(0, np.float32), ())


@dataclass(frozen=True)
class CocoSplit:
    """Images with objects, in the order of their file."""

    images: Sequence[Path]
    ids: Sequence[int]
    """Of the images, as COCO results name them."""
    sizes: Int64[np.ndarray, "images 2"]
    """Height and width in pixels; 0 where they are not known, of images that cannot be used."""
    objects: Sequence[Objects]
    bad: dict[int, str] = field(default_factory=dict)
    """Place of each image that is known to be unusable, and why."""
    shards: None = None
    """Images are files of their own."""

    def __len__(self) -> int:
        return len(self.images)

    @property
    def names(self) -> Sequence[str]:
        """How each image is called in reports."""
        return [str(path) for path in self.images]

    def source(self, index: int) -> Path:
        """What to decode. Raises BadImage where it is known to be unusable."""
        if index in self.bad:
            raise BadImage(self.bad[index])
        return self.images[index]

    def example(self, index: int, read: Callable[["CocoSplit", int], T]) -> T:
        """What `read` makes of an image and its objects. Raises BadImage."""
        return read(self, index)

    def relabelled(self, numbers: Sequence[int]) -> "CocoSplit":
        """The same, each label replaced by the number at its place."""
        table = np.array(numbers, np.int64)
        return replace(self, objects=[replace(one, labels=table[one.labels]) for one in self.objects])

    def subset(self, indices: Iterable[int]) -> "CocoSplit":
        picked = list(indices)
        return CocoSplit(
            [self.images[i] for i in picked],
            [self.ids[i] for i in picked],
            self.sizes[picked],
            [self.objects[i] for i in picked],
            {place: self.bad[i] for place, i in enumerate(picked) if i in self.bad},
        )


@dataclass(frozen=True)
class CocoSource:
    """A data set for detection and segmentation."""

    name: str
    classes: tuple[str, ...]
    categories: tuple[int, ...]
    """The id that each class has in the files."""
    train: CocoSplit
    val: CocoSplit
    drawn: bool = False
    """Whether the validation images were drawn here, because all were in one file."""
    fingerprint: str = field(default="", compare=False)
    """Of file names, sizes and objects."""
    warnings: tuple[str, ...] = ()
    """What is amiss, a line for each kind, with how often it occurs and an example."""

    def whole(self) -> CocoSplit:
        """The images of both splits; where ids occur in both, those of the second are counted on from the first's."""
        one, other = self.train, self.val
        ids = list(other.ids)
        if not set(ids).isdisjoint(one.ids):
            ids = [max(one.ids) + 1 + place for place in range(len(ids))]
        return CocoSplit(
            [*one.images, *other.images],
            [*one.ids, *ids],
            np.concatenate([one.sizes, other.sizes]),
            [*one.objects, *other.objects],
            {**one.bad, **{len(one) + place: reason for place, reason in other.bad.items()}},
        )

    def check_trainable(self, masks: bool = False) -> None:
        """Raises DataError where a split has no usable images or no objects, or these have no masks though wanted."""
        for kind, scenes in (("training", self.train), ("validation", self.val)):
            if len(scenes) == len(scenes.bad):
                raise DataError(f"{self.name} has no {kind} images")
            if not any((~objects.crowd).any() for objects in scenes.objects):
                raise DataError(f"{self.name}: no {kind} image has an object")
            if masks and not any(segment for objects in scenes.objects for segment in objects.segments):
                raise DataError(f"{self.name}: no {kind} image has a mask, and to segment is to learn masks")


def is_coco(folder: Path) -> bool:
    """Whether a folder, or the only folder in it, holds annotations as COCO, or Roboflow, names them."""
    return find_coco(folder) is not None


def open_coco(data: str | Path, seed: int = 0, val_share: float = 0.2, drawn_by: DrawnBy = "content") -> CocoSource:
    """Read a COCO folder.

    Args:
        data: A folder with `annotations/instances_train*.json` and `…_val*.json` (or `valid`, `test`), whose images lie
            in `train*/`, `images/train*/` or `images/`; or with `train/_annotations.coco.json` beside the images, and
            `valid/` likewise. One file alone is divided.
        seed: Draws the validation images where there is one file; see `identity.held_out`.
        val_share: Share of these.
        drawn_by: `position` for the split that runs of earlier versions had.

    Raises:
        DataError: There are no such files, one is no COCO file, or files disagree about the classes. Whatever is wrong
            with single images and annotations leaves them out, and is among the warnings.
    """
    root = find_coco(Path(data))
    if root is None:
        if Path(data).is_dir():
            refuse_format(Path(data))
        expected = f"{data}/annotations/instances_train….json and …_val….json"
        raise DataError(f"{data} is no COCO folder: expected {expected}")
    files = files_by_split(root)
    read = {split: _read(path, root) for split, path in files.items()}
    categories = common_categories([one.categories for one in read.values()], root)
    classes, ids = tuple(categories.values()), tuple(categories)
    scenes = {split: one.scenes({key: place for place, key in enumerate(ids)}) for split, one in read.items()}
    warnings = [f"{files[split].name}: {line}" for split, one in read.items() for line in one.problems.lines()]
    if unused := [str(path.relative_to(root)) for path in annotation_files(root) if path not in files.values()]:
        warnings.append(f"not used: {', '.join(unused)}")
    if missing := _without_objects(classes, scenes.values()):
        warnings.append(f"{len(missing):,} classes have no object in any image, such as {missing[0]}")
    fingerprint = _fingerprint(classes, scenes.values())
    drawn = "all" in scenes
    if drawn:
        pile = scenes["all"]
        chosen = (
            _by_position(len(pile), seed, val_share)
            if drawn_by == "position"
            else held_out(pile.images, [0] * len(pile), seed, val_share)
        )
        scenes = {
            "train": pile.subset(np.delete(np.arange(len(pile)), chosen).tolist()),
            "val": pile.subset(chosen),
        }
    return CocoSource(str(data), classes, ids, scenes["train"], scenes["val"], drawn, fingerprint, tuple(warnings))


def _by_position(count: int, seed: int, share: float) -> list[int]:
    """As earlier versions drew them: one image more or less changes which they are."""
    order = random.Random(seed).sample(range(count), count)
    return sorted(order[: min(max(1, round(count * share)), count - 1)])


class _Problems:
    """Counts of each kind, and its first example."""

    def __init__(self) -> None:
        self._found: dict[str, tuple[int, str]] = {}

    def add(self, kind: str, example: str) -> None:
        count, first = self._found.get(kind, (0, example))
        self._found[kind] = count + 1, first

    def lines(self) -> list[str]:
        return [f"{count:,} {kind}, such as {example}" for kind, (count, example) in self._found.items()]


@dataclass(frozen=True)
class _File:
    """An annotation file whose images and categories are sound; its annotations were not yet looked at."""

    path: Path
    categories: dict[int, str]
    images: list[Path]
    ids: list[int]
    sizes: Int64[np.ndarray, "images 2"]
    bad: dict[int, str]
    annotations: list[Any]
    problems: _Problems

    def scenes(self, labels: dict[int, int]) -> CocoSplit:
        """With the objects, whose labels are `labels` of their categories."""
        places = {id_: place for place, id_ in enumerate(self.ids)}
        rows: list[list[tuple[Any, ...]]] = [[] for _ in self.ids]
        seen: set[Any] = set()
        for row in self.annotations:
            if (taken := self._object(row, places, labels, seen)) is not None:
                place, parts = taken
                rows[place].append(parts)
        return CocoSplit(self.images, self.ids, self.sizes, [_objects(parts) for parts in rows], self.bad)

    def _object(
        self, row: Any, places: dict[int, int], labels: dict[int, int], seen: set[Any]
    ) -> tuple[int, tuple[Any, ...]] | None:
        """The image's place, and box, label, crowd, area and shape; None where it cannot be used."""
        add = self.problems.add
        if not isinstance(row, dict):
            return add("annotations are no JSON objects and left out", shown(row)[:40])
        about = f"annotation {shown(row.get('id'))}"
        image_id, category_id = whole_number(row, "image_id"), whole_number(row, "category_id")
        place = None if image_id is None else places.get(image_id)
        label = None if category_id is None else labels.get(category_id)
        if place is None:
            return add(
                "annotations are of images that are not listed and left out",
                f"{about} of {shown(row.get('image_id'))}",
            )
        if label is None:
            return add(
                "annotations are of categories that are not listed and left out",
                f"{about} of {shown(row.get('category_id'))}",
            )
        box = numbers(row.get("bbox"))
        if box is None or len(box) != 4:
            return add("boxes are not four numbers, and left out", about)
        if box[2] <= 0 or box[3] <= 0:
            return add("boxes have no width or no height and are left out", about)
        if (crowd := is_crowd(row.get("iscrowd"))) is None:
            return add("annotations have an iscrowd that is neither 0 nor 1 and are left out", about)
        height, width = self.sizes[place].tolist()
        if not height:  # of an image that cannot be used
            return None
        left, top, right, bottom = box[0], box[1], box[0] + box[2], box[1] + box[3]
        cut = max(0.0, left), max(0.0, top), min(width, right), min(height, bottom)
        if cut[2] <= cut[0] or cut[3] <= cut[1]:
            return add("boxes lie outside of their images and are left out", about)
        if min(left, top) < -SLACK or right > width + SLACK or bottom > height + SLACK:
            add("boxes reach beyond their images and are cut off", about)
        if (same := (place, label, *box, whole_number(row, "id"))) in seen:
            return add("annotations come twice and are taken once", about)
        seen.add(same)
        shape = read_segment(row.get("segmentation"), height, width)
        if shape is None and row.get("segmentation"):
            add("masks are neither polygons nor run-length codes of their image's size, and not used", about)
        if lost_parts(row.get("segmentation"), shape):
            add("masks have parts that are no polygons and are left out", about)
        boxed = (cut[2] - cut[0]) * (cut[3] - cut[1])
        if (area := _area(row)) is None or (crowd and not 0 < area <= height * width):
            area = boxed
        elif not crowd and not plausible(area, shape, box[2] * box[3]):
            stated, area = area, (enclosed(shape) if shape else 0) or boxed
            add(
                "areas contradict masks or boxes and are computed from these",
                f"{about}: {stated:,.10g} instead of {area:,.10g}",
            )
        return place, (cut, label, crowd, min(area, height * width), shape)


def _read(path: Path, root: Path) -> _File:
    """Raises DataError where it is no COCO file, or none of its images is there."""
    document = read_document(path, ("images", "annotations", "categories"))
    problems = _Problems()
    listed = _listed_images(document["images"], path, root, problems)
    if not listed.images:
        rows = document["images"]
        found = f"; the first of {len(rows):,} entries is {shown(rows[0])}" if rows else ""
        raise DataError(f"{path} lists no images with a file_name and an id that is a whole number{found}")
    if len(listed.bad) == len(listed.images):
        raise DataError(
            f"{path}: none of its {len(listed.images):,} images can be used; first looked for {listed.images[0]}: "
            f"{listed.bad[0]}"
        )
    return _File(
        path,
        read_categories(document["categories"], path),
        listed.images,
        listed.ids,
        np.array(listed.sizes, np.int64).reshape(-1, 2),
        listed.bad,
        document["annotations"],
        problems,
    )


@dataclass
class _Listed:
    images: list[Path] = field(default_factory=list)
    ids: list[int] = field(default_factory=list)
    sizes: list[tuple[int, int]] = field(default_factory=list)
    bad: dict[int, str] = field(default_factory=dict)


def _listed_images(rows: list[Any], path: Path, root: Path, problems: _Problems) -> _Listed:
    found, known = _Listed(), set()
    folder = image_folder([name for row in rows if (name := file_name(row))], path, root)
    for row in rows:
        if (name := file_name(row)) is None or (id_ := whole_number(row, "id")) is None:
            problems.add("images lack an id or a file_name and are left out", shown(row)[:40])
            continue
        if id_ in known:
            problems.add("images have the id of another one and are left out", f"{name} with {id_}")
            continue
        known.add(id_)
        if not isinstance(row["id"], int):
            problems.add("images have ids that are not whole numbers and are read as such", shown(row["id"])[:40])
        file = located(folder, name)
        size = row.get("height"), row.get("width")
        reason = None if is_file(file) else "no such file"
        if not all(isinstance(side, int) and 0 < side < 2**31 for side in size):
            size, reason = ((0, 0), reason) if reason else _size(file)
        if reason is not None:
            problems.add("images cannot be used and are left out", f"{name}: {reason}")
            found.bad[len(found.images)] = reason
        found.images.append(file)
        found.ids.append(id_)
        found.sizes.append((int(size[0]), int(size[1])))  # pyright: ignore[reportArgumentType]
    return found


def _size(file: Path) -> tuple[tuple[int, int], str | None]:
    """Height and width of the upright image by the file's header, or why not."""
    try:
        return read_size(file), None
    except BadImage as error:
        return (0, 0), str(error)


def _without_objects(classes: tuple[str, ...], scenes: Iterable[CocoSplit]) -> list[str]:
    seen = {label for one in scenes for objects in one.objects for label in objects.labels.tolist()}
    return [name for label, name in enumerate(classes) if label not in seen]


def _area(row: dict[str, Any]) -> float | None:
    """As the file states it."""
    value = row.get("area")
    try:
        return float(value) if isinstance(value, int | float) else None
    except OverflowError:
        return math.inf


def _objects(rows: list[tuple[Any, ...]]) -> Objects:
    if not rows:
        return NOTHING
    boxes, labels, crowd, areas, segments = zip(*rows, strict=True)
    return Objects(
        np.array(boxes, np.float32), np.array(labels), np.array(crowd), np.array(areas, np.float32), segments
    )


def _fingerprint(classes: tuple[str, ...], scenes: Iterable[CocoSplit]) -> str:
    digest = hashlib.sha256("\0".join(classes).encode(errors="surrogatepass"))
    for one in scenes:
        digest.update(b"split\n" + one.sizes.astype("<i8").tobytes())
        for path, objects in zip(one.images, one.objects, strict=True):
            digest.update(path.name.encode(errors="surrogatepass") + objects.boxes.astype("<f4").tobytes())
            digest.update(objects.labels.astype("<i8").tobytes() + objects.crowd.tobytes())
    return digest.hexdigest()[:16]
