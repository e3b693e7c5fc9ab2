"""Open COCO folders: images with boxes, masks and classes. Problems of the same kind are counted in one warning.

Source: T.-Y. Lin et al., "Microsoft COCO: common objects in context", 2014; format: https://cocodataset.org/#format-data
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from reprlib import repr as shown
from typing import Any, ClassVar, Self, TypeVar

import numpy as np
from jaxtyping import Bool, Float32, Int64

from ..errors import DataError, counted, few
from .coco_files import annotation_files, files_by_split, image_folder, is_annotations, located, posix
from .coco_rows import common_categories, file_name, is_crowd, read_categories, read_document, whole_number
from .dataset import AnyDataset, DrawnBy, Holdout, Samples, fingerprint_of, untested
from .folders import find_coco, refuse_format
from .image_file import BadImage, read_size
from .images import images_by_name
from .problems import Problems, cut_box
from .segments import Mask, enclosed, numbers, plausible, read_segment
from .walk import is_file

T = TypeVar("T")
SMALL, MEDIUM = 32**2, 96**2
"""Areas in pixels at which COCO's size classes `medium` and `large` begin."""


@dataclass(frozen=True)
class Objects:
    """The objects of one image. Crowds (regions with many objects) are ignored in training and evaluation."""

    boxes: Float32[np.ndarray, "n 4"]
    """Left, top, right and bottom in pixels. Each box lies inside the image and is not empty."""
    labels: Int64[np.ndarray, " n"]
    """Class numbers."""
    crowd: Bool[np.ndarray, " n"]
    areas: Float32[np.ndarray, " n"]
    """Area of each object in pixels; if the file states no plausible area, it is computed from the mask or box."""
    segments: Sequence[Mask | None]
    """Mask of each object; None for an object without a usable mask."""

    def __len__(self) -> int:
        return len(self.labels)


NOTHING = Objects(np.empty((0, 4), np.float32), np.empty(0, np.int64), np.empty(0, bool), np.empty(0, np.float32), ())


@dataclass(frozen=True)
class CocoSplit(Samples):
    """Images with their objects, in the order of the annotation file."""

    columns: ClassVar[tuple[str, ...]] = ("images", "ids", "sizes", "objects")

    images: Sequence[Path]
    ids: Sequence[int]
    """Image ids, as used in COCO results."""
    sizes: Int64[np.ndarray, "images 2"]
    """Height and width of each image in pixels; both 0 if the image is unusable and its size is unknown."""
    objects: Sequence[Objects]
    bad: Mapping[int, str] = field(default_factory=dict)

    @property
    def names(self) -> Sequence[str]:  # pyright: ignore[reportIncompatibleVariableOverride]: a field of `Split`
        """The image paths, as names for reports."""
        return [str(path) for path in self.images]

    def example(self, index: int, read: Callable[["CocoSplit", int], T]) -> T:
        return read(self, index)

    def relabelled(self, numbers: Sequence[int]) -> "CocoSplit":
        """A copy in which each label `i` is replaced by `numbers[i]`."""
        table = np.array(numbers, np.int64)
        return replace(self, objects=[replace(one, labels=table[one.labels]) for one in self.objects])

    def joined(self, other: Self) -> Self:
        """These samples, followed by those of `other`. If an id is in both, all images of `other` get new ids."""
        both = super().joined(other)
        if set(self.ids).isdisjoint(other.ids):
            return both
        first = max(self.ids) + 1
        return replace(both, ids=[*self.ids, *range(first, first + len(other))])


@dataclass(frozen=True)
class CocoDataset(AnyDataset[CocoSplit]):
    """A dataset for detection and segmentation."""

    categories: tuple[int, ...] = ()
    """For each class, its category id in the annotation files."""

    def check_trainable(self, masks: bool = False) -> None:
        """Raises DataError if a split has no usable images or no objects; with `masks`, also if it has no masks."""
        for kind, split in (("training", self.train), ("validation", self.val)):
            if len(split) == len(split.bad):
                raise DataError(f"{self.name} has no {kind} images")
            if not any((~objects.crowd).any() for objects in split.objects):
                raise DataError(f"{self.name}: no {kind} image has an object")
            if masks and not any(segment for objects in split.objects for segment in objects.segments):
                raise DataError(f"{self.name}: no {kind} image has a mask, which segmentation needs")


def open_coco(data: str | Path, seed: int = 0, val_share: float = 0.2, drawn_by: DrawnBy = "hash") -> CocoDataset:
    """Open a COCO folder. Images and annotations that cannot be used are left out and counted in the warnings.

    Args:
        data: An annotation file, or a folder in COCO's or Roboflow's layout. COCO's has
            `annotations/instances_train*.json`, `…_val*.json` (also named `…_valid*`) and `…_test*`, or files with
            other names in `annotations` or beside it, and folders for images, such as `train*/` or `images/`.
            Roboflow's has `train/`, `valid/` and `test/`, each with its images and `_annotations.coco.json`. Without a
            file for validation, validation images are drawn from the training images, or from those of a single file.
        seed, val_share, drawn_by: As in `open_source`.

    Raises:
        DataError: There are no annotation files, one of them is not a COCO file, or the categories differ by file. For
            the test split, these are warnings, and the split is not used.
    """
    holdout = Holdout(seed, val_share, drawn_by)
    root, single = find_coco(Path(data)), None
    if root is None and is_annotations(Path(data)):
        root, single = Path(data).parent, Path(data)
    if root is None:
        if Path(data).is_dir():
            refuse_format(Path(data))
        expected = f"{data}/annotations/instances_train….json and …_val….json"
        raise DataError(f"{data} is not a COCO folder: expected {expected}")
    files, warnings = holdout.arrange({"all": single} if single else files_by_split(root))
    test_file = files.pop("test", None)
    read = {split: _read(path, root) for split, path in files.items()}
    stated = [one.categories for one in read.values()] or [_read(path, root).categories for path in [test_file] if path]
    categories = common_categories(stated, root)
    splits = {split: one.split({id_: label for label, id_ in enumerate(categories)}) for split, one in read.items()}
    warnings += [f"{files[split].name}: {line}" for split, one in read.items() for line in one.problems.lines()]
    known = {*files.values(), test_file}
    listed = [] if single else annotation_files(root)
    if unused := [str(path.relative_to(root)) for path in listed if path not in known]:
        warnings.append(f"not used: {', '.join(unused)}")
    test, problems = _read_test(test_file, root, categories) if test_file else (None, [])
    return assembled(str(data), categories, splits, test, holdout, [*warnings, *problems], str(test_file))


def assembled(
    name: str,
    categories: Mapping[int, str],
    splits: Mapping[str, CocoSplit],
    test: CocoSplit | None,
    holdout: Holdout,
    warnings: Sequence[str],
    test_source: str = "",
) -> CocoDataset:
    """Make a dataset from the split `all`, or from at least one of the splits `train`, `val` and `test`.

    Args:
        categories: Class names by category id, in the order of the labels.
        test_source: Where the test split comes from, for a warning if it has no objects.
    """
    classes = tuple(categories.values())
    seen = {label for split in splits.values() for one in split.objects for label in one.labels.tolist()}
    lines = list(warnings)
    if missing := [label for index, label in enumerate(classes) if index not in seen]:
        lines.append(f"{counted(len(missing), 'class', 'classes')} without objects, such as {missing[0]}")
    fingerprint = fingerprint_of(classes, splits.values(), _contents)
    whole = splits.get("all") or splits.get("train", CocoSplit([], [], np.empty((0, 2), np.int64), []))
    drawn = bool(splits) and "val" not in splits
    train, val = holdout.divide(whole) if drawn else (whole, splits.get("val", whole))
    if test is not None:
        test, problems = _usable_test(test, classes, _labels(*(splits or {"test": test}).values()), test_source)
        lines += problems
    return CocoDataset(
        name,
        classes,
        train,
        val,
        drawn,
        fingerprint,
        tuple(lines),
        categories=tuple(categories),
        test=test,
        test_fingerprint=fingerprint_of(classes, [test], _contents) if test else "",
    )


def _read_test(path: Path, root: Path, categories: dict[int, str]) -> tuple[CocoSplit | None, list[str]]:
    """The test split and its warnings; None if the file cannot be used."""
    try:
        read = _read(path, root)
        common_categories([categories, read.categories], root)
    except DataError as error:
        return None, [f"not used: the test split, because {error}"]
    split = read.split({id_: label for label, id_ in enumerate(categories)})
    return split, [f"{path.name}: {line}" for line in read.problems.lines()]


def _usable_test(
    split: CocoSplit, classes: Sequence[str], known: set[int], source: str
) -> tuple[CocoSplit | None, list[str]]:
    """The test split, or None if it has no objects; and warnings. `known` has the labels of the other splits."""
    if not (tested := _labels(split)):
        return None, [f"not used: the test split, because no image in {source} has an object"]
    new = [name for label, name in enumerate(classes) if label in tested - known]
    only = [f"only the test split has objects of {few(new)}"] if new else []
    return split, [*only, *untested(classes, known, tested)]


def _labels(*splits: CocoSplit) -> set[int]:
    """The labels of the objects, except crowds."""
    return {label for split in splits for one in split.objects for label in one.labels[~one.crowd].tolist()}


@dataclass(frozen=True)
class _File:
    """A parsed annotation file. The images and categories have been checked; the annotations have not."""

    categories: dict[int, str]
    images: CocoSplit
    """The listed images, without their objects."""
    annotations: list[Any]
    problems: Problems

    def split(self, labels: dict[int | None, int]) -> CocoSplit:
        """The images with their objects. `labels` gives the class number of each category id."""
        index_of: dict[int | None, int] = {id_: index for index, id_ in enumerate(self.images.ids)}
        rows: list[list[tuple[Any, ...]]] = [[] for _ in self.images.ids]
        seen: set[Any] = set()
        for row in self.annotations:
            if (read := self._object(row, index_of, labels, seen)) is not None:
                index, values = read
                rows[index].append(values)
        return replace(self.images, objects=[objects_of(values) for values in rows])

    def _object(
        self, row: Any, index_of: dict[int | None, int], labels: dict[int | None, int], seen: set[Any]
    ) -> tuple[int, tuple[Any, ...]] | None:
        """The image's index, and (box, label, crowd, area, segment); None if the annotation cannot be used."""
        add = self.problems.add
        if not isinstance(row, dict):
            return add("annotation", "left out: not a JSON object", shown(row)[:40])
        about = f"annotation {shown(row.get('id'))}"
        if (index := index_of.get(whole_number(row, "image_id"))) is None:
            return add("annotation", "left out: unknown image_id", f"{about} (image_id {shown(row.get('image_id'))})")
        if (label := labels.get(whole_number(row, "category_id"))) is None:
            category = shown(row.get("category_id"))
            return add("annotation", "left out: unknown category_id", f"{about} (category_id {category})")
        box = numbers(row.get("bbox"))
        if box is None or len(box) != 4:
            return add("annotation", "left out: bbox is not four numbers", about)
        if box[2] <= 0 or box[3] <= 0:
            return add("annotation", "left out: bbox has no width or no height", about)
        if (crowd := is_crowd(row.get("iscrowd"))) is None:
            return add("annotation", "left out: iscrowd is neither 0 nor 1", about)
        height, width = self.images.sizes[index].tolist()
        if not height:  # the image cannot be used
            return None
        corners = box[0], box[1], box[0] + box[2], box[1] + box[3]
        if (cut := cut_box(corners, height, width, lambda kind: add("annotation", kind, about))) is None:
            return None
        if (same := (index, label, *box, whole_number(row, "id"))) in seen:
            return add("annotation", "left out: already listed", about)
        seen.add(same)
        segment = self._segment(row.get("segmentation"), about, height, width)
        boxed = (cut[2] - cut[0]) * (cut[3] - cut[1])
        if (area := _stated_area(row)) is None or (crowd and not 0 < area <= height * width):
            area = boxed
        elif not crowd and not plausible(area, segment, box[2] * box[3]):
            stated, area = area, (enclosed(segment) if segment else 0) or boxed
            change = f"{stated:,.10g} instead of {area:,.10g}"
            add("area", "recomputed: the stated area contradicts the mask or box", f"{about}: {change}")
        return index, (cut, label, crowd, min(area, height * width), segment)

    def _segment(self, value: Any, about: str, height: int, width: int) -> Mask | None:
        segment = read_segment(value, height, width)
        if segment is None and value:
            self.problems.add("mask", "left out: neither polygons nor run lengths for the image's size", about)
        if isinstance(segment, tuple) and len(segment) < len(value):
            self.problems.add("mask", "used without the parts that are not polygons", about)
        return segment


def _read(path: Path, root: Path) -> _File:
    """Read an annotation file. Raises DataError if it is not a COCO file, or if it has no usable image."""
    document = read_document(path, ("images", "annotations", "categories"))
    problems = Problems()
    listed = _listed_images(document["images"], path, root, problems)
    if not listed.images:
        rows = document["images"]
        first = f"; the first of {len(rows):,} entries is {shown(rows[0])}" if rows else ""
        raise DataError(f"{path} lists no images with a file_name and an id that is a whole number{first}")
    if (count := len(listed.images)) == len(listed.bad):
        first = f"{listed.images[0]}: {listed.bad[0]}"
        raise DataError(f"{path}: none of its {counted(count, 'image')} can be used; the first is {first}")
    return _File(read_categories(document["categories"], path), listed, document["annotations"], problems)


def _listed_images(rows: list[Any], path: Path, root: Path, problems: Problems) -> CocoSplit:
    """The images that an annotation file lists, without their objects."""
    images: list[Path] = []
    ids: dict[int, None] = {}
    sizes: list[tuple[int, int]] = []
    bad: dict[int, str] = {}
    names = [name for row in rows if (name := file_name(row))]
    folder = image_folder(names, path, root)
    found = any(is_file(located(folder, name)) for name in names[:100])
    elsewhere = {} if found else images_by_name(root)  # annotation tools write paths of their own storage
    for row in rows:
        if (name := file_name(row)) is None or (id_ := whole_number(row, "id")) is None:
            problems.add("image", "left out: no id or no file_name", shown(row)[:40])
            continue
        if id_ in ids:
            problems.add("image", "left out: another image has the same id", f"{name} with id {id_}")
            continue
        ids[id_] = None
        if not isinstance(row["id"], int):
            problems.add("image id", "converted to whole numbers", shown(row["id"])[:40])
        file = located(folder, name)
        file = elsewhere.get(posix(name).name, file)
        size = row.get("height"), row.get("width")
        try:
            if not is_file(file):
                raise BadImage("no such file")
            if not _is_size(size):
                size = read_size(file)
        except BadImage as error:
            problems.add("image", "cannot be used", f"{name}: {error}")
            bad[len(images)] = str(error)
        images.append(file)
        sizes.append(size if _is_size(size) else (0, 0))
    return CocoSplit(images, list(ids), np.array(sizes, np.int64).reshape(-1, 2), [NOTHING] * len(images), bad)


def _is_size(size: tuple[Any, Any]) -> bool:
    return all(isinstance(side, int) and 0 < side < 2**31 for side in size)


def _stated_area(row: dict[str, Any]) -> float | None:
    """The area that the annotation states; None if it is not a number."""
    value = row.get("area")
    try:
        return float(value) if isinstance(value, int | float) else None
    except OverflowError:
        return math.inf


def objects_of(rows: Sequence[tuple[Any, ...]]) -> Objects:
    """The objects of an image from rows of (box, label, crowd, area, segment)."""
    if not rows:
        return NOTHING
    boxes, labels, crowd, areas, segments = zip(*rows, strict=True)
    areas = np.array(areas, np.float32)
    return Objects(np.array(boxes, np.float32), np.array(labels), np.array(crowd), areas, segments)


def _contents(split: CocoSplit) -> Iterator[bytes]:
    """The bytes that the fingerprint covers: file names, sizes and objects."""
    yield b"split\n" + split.sizes.astype("<i8").tobytes()
    for path, objects in zip(split.images, split.objects, strict=True):
        yield path.name.encode(errors="surrogatepass") + objects.boxes.astype("<f4").tobytes()
        yield objects.labels.astype("<i8").tobytes() + objects.crowd.tobytes()
