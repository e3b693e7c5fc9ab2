"""Read YOLO datasets: a text file for each image, with a class index and a box or a polygon in each line.

Source: the format of Darknet and of https://docs.ultralytics.com/datasets/detect
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import yaml

from ..errors import DataError, counted
from ..files import MAX_TEXT
from .coco import CocoDataset
from .coco_files import located
from .dataset import DrawnBy, Holdout
from .image_labels import LabelledObject, LabelledSplit, dataset_of_splits, listed_names, read_text, unique
from .images import is_image
from .problems import Problems
from .splits import split_of
from .walk import exists, files_below, folders_in, is_file

YAML = (".yaml", ".yml")
YOLO_NAMES = ("classes.txt", "obj.names", "names.txt", "_darknet.labels")
"""Files with one class name per line, for folders without a YAML file."""
SPLIT_KEYS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
MAX_NAMES = 10_000
LABELS_READ = 50
"""Number of label files that are looked at to recognize the format."""


@dataclass(frozen=True)
class YoloLayout:
    """Where the images of each split are, and the class names if they are given."""

    root: Path
    splits: dict[str, list[Path]]
    """Images by split: folders, images, or text files that list images. `all` if there are no splits."""
    names: tuple[str, ...] | None
    keypoints: bool = False
    """Whether keypoints follow each box."""
    warnings: tuple[str, ...] = ()


class _Loader(yaml.BaseLoader):
    """Reads all values as text. Aliases are refused, because a short file can expand to a huge one with them."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.events.AliasEvent):
            raise yaml.YAMLError("it has aliases (*name), which are not read")
        return super().compose_node(parent, index)


def find_yolo(path: Path) -> YoloLayout | None:
    """The layout of a YOLO dataset: a YAML file or a folder. None if it is none. Raises DataError for an unusable YAML
    file."""
    if path.suffix.lower() in YAML and is_file(path):
        if (facts := _facts(path)) is None:
            raise DataError(f"{path} describes no dataset: expected the keys names, and train or val")
        return _described(path, facts)
    if not path.is_dir():
        return None
    for level in _levels(path):
        files = sorted(file for file in level.iterdir() if file.suffix.lower() in YAML and is_file(file))
        warnings = []
        for file in sorted(files, key=_is_other):
            try:
                if (facts := _facts(file)) is not None:
                    return _described(file, facts)
            except DataError as error:
                if not _is_other(file) and _folders(level):
                    raise
                warnings.append(f"not used: {error}")
        if splits := _folders(level):
            places = [place for split in splits.values() for place in split]
            names = listed_names((path, level, level / "labels", *places, *map(_label_folder, places)), YOLO_NAMES)
            return YoloLayout(level, splits, names, warnings=tuple(warnings))
    return None


def _is_other(file: Path) -> bool:
    """Whether a YAML file does not have the usual name of a dataset's file."""
    return file.stem not in ("data", "dataset")


def open_yolo(
    layout: YoloLayout, data: str | Path, seed: int = 0, val_share: float = 0.2, drawn_by: DrawnBy = "hash"
) -> CocoDataset:
    """Open a YOLO dataset. Images are in the order of their paths. A missing or empty label file means no objects.

    Raises:
        DataError: The dataset has no usable images, or no classes.
    """
    splits = {name: _read(places, layout, Problems()) for name, places in layout.splits.items()}
    names, warnings = layout.names, list(layout.warnings)
    if names is None:
        found = (int(one.name) for split in splits.values() for row in split.objects for one in row)
        names = tuple(map(str, range(1 + max(found, default=-1))))
        warnings.append(f"no class names: expected a YAML file, or {YOLO_NAMES[0]} with one name per line")
    if not names:
        raise DataError(f"{data} has no labels: expected text files with lines such as `0 0.5 0.5 0.2 0.3`")
    label_of: dict[str | int, int] = {number: number for number in range(len(names))}
    return dataset_of_splits(data, names, label_of, splits, Holdout(seed, val_share, drawn_by), warnings)


def _facts(path: Path) -> dict[str, Any] | None:
    """The content of a YAML file that describes a dataset, or None. Raises DataError if it cannot be parsed."""
    try:
        facts = yaml.load(read_text(path, 2**20), _Loader)
    except (DataError, yaml.YAMLError, RecursionError) as error:
        raise DataError(f"{path} is not a YAML file: {str(error).splitlines()[0]}") from None
    if not isinstance(facts, dict) or "names" not in facts or not SPLIT_KEYS.keys() & facts.keys():
        return None
    return {key: value for key, value in facts.items() if value not in ("", "~", "null", [])}


def _described(path: Path, facts: dict[str, Any]) -> YoloLayout:
    """The layout that the content of a YAML file describes. Raises DataError if it is incomplete."""
    names, warnings = _names(facts.get("names", []), path), []
    if (count := facts.get("nc", str(len(names)))) != str(len(names)):
        warnings.append(f"{path.name}: nc is {count!s:.20}, but there are {counted(len(names), 'name')}: nc is ignored")
    keypoints = "kpt_shape" in facts
    if keypoints:
        warnings.append(f"{path.name}: the keypoints in the labels (kpt_shape) are not used")
    base = path.parent / str(facts.get("path") or "")
    splits: dict[str, list[Path]] = {}
    for key, split in SPLIT_KEYS.items():
        places = [value] if isinstance(value := facts.get(key, []), str) else value
        if not isinstance(places, list) or not all(isinstance(place, str) for place in places):
            raise DataError(f"{path}: {key} must be a folder, a text file or a list of them, got {value!r:.60}")
        try:
            splits[split] = splits.get(split, []) + [_located(place, base, path, key) for place in places]
        except DataError as error:
            if split != "test":
                raise
            warnings.append(f"not used: the test split, because {error}")
    splits = {name: places for name, places in splits.items() if places}
    if not splits:
        raise DataError(f"{path} names no images: expected the keys train and val")
    return YoloLayout(path.parent, splits, names, keypoints, tuple(warnings))


def _names(value: Any, path: Path) -> tuple[str, ...]:
    if isinstance(value, dict):
        if not all(isinstance(key, str) and key.isdecimal() and len(key) < 6 for key in value):
            raise DataError(f"{path}: the keys of names must be class indices from 0, got {list(value)[:3]}")
        by_index = {int(key): name for key, name in value.items()}
        value = [by_index.get(index, str(index)) for index in range(max(by_index, default=-1) + 1)]
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise DataError(f"{path}: names must be a list of class names, got {value!r:.60}")
    if len(value) > MAX_NAMES:
        raise DataError(f"{path} names {len(value):,} classes: at most {MAX_NAMES:,} are supported")
    return unique(tuple(value), path)


def _located(place: str, base: Path, path: Path, key: str) -> Path:
    """The folder or text file of a split. Roboflow's `../train/images` may lie beside the YAML file."""
    inner = place.replace("\\", "/")
    while inner.startswith("../"):
        inner = inner[3:]
    tried = [base / place, base / inner, path.parent / place, path.parent / inner]
    if found := next(filter(exists, tried), None):
        return found
    raise DataError(f"{path}: {key} is {place!r}, but there is no {tried[0]}")


def _levels(path: Path) -> Iterator[Path]:
    yield path
    inside = folders_in(path)
    if len(inside) == 1 and split_of(inside[0].name) is None:
        yield inside[0]


def _folders(level: Path) -> dict[str, list[Path]] | None:
    """The image folders of each split, if label files lie in `labels` beside `images`, or beside the images."""
    children = {child.name.lower(): child for child in folders_in(level)}
    if images := children.get("images"):
        inner = _by_split(folders_in(images))
        return (inner or {"all": [images]}) if _has_labels(images) else None
    if splits := _by_split(list(children.values())):
        splits = {
            name: [child / "images" if (child / "images").is_dir() else child for child in folders]
            for name, folders in splits.items()
        }
        return splits if any(_has_labels(folder) for folders in splits.values() for folder in folders) else None
    return {"all": [level]} if _has_labels(level, direct=True) else None


def _by_split(folders: list[Path]) -> dict[str, list[Path]]:
    """The folders by the split that they are named after, also as in CVAT's `obj_train_data`."""
    splits: dict[str, list[Path]] = {}
    for folder in folders:
        if name := split_of(folder.name.removeprefix("obj_")):
            splits.setdefault(name, []).append(folder)
    return splits


def _has_labels(folder: Path, direct: bool = False) -> bool:
    """Whether one of the first text files that are not empty has YOLO's format."""
    files = (
        file
        for place in dict.fromkeys((_label_folder(folder), folder))
        if place.is_dir()
        for file in (sorted(place.iterdir()) if direct else files_below(place))
        if file.suffix.lower() == ".txt" and file.name not in YOLO_NAMES and is_file(file) and file.stat().st_size
    )
    return any(map(_is_label_file, islice(files, LABELS_READ)))


def _is_label_file(path: Path) -> bool:
    """Whether the first line of a file is a class index and at least four numbers."""
    try:
        with path.open("rb") as file:
            lines = file.read(4096).removeprefix(b"\xef\xbb\xbf").splitlines()
        numbers = [float(value) for value in next(filter(None, map(bytes.split, lines)), [])]
        return len(numbers) >= 5 and numbers[0].is_integer()
    except (OSError, ValueError, OverflowError):
        return False


def _label_folder(images: Path) -> Path:
    """The folder of the labels: `labels` instead of the last folder `images`. The same folder if there is none."""
    parts = list(images.parts)
    if named := [index for index, part in enumerate(parts) if part.lower() == "images"]:
        parts[named[-1]] = "labels"
    return Path(*parts)


def label_file(image: Path) -> Path | None:
    """The label file of an image, in the folder of the labels or beside the image."""
    if not image.name:
        return None
    tried = (folder / image.with_suffix(".txt").name for folder in (_label_folder(image.parent), image.parent))
    return next(filter(is_file, tried), None)


def _read(places: Sequence[Path], layout: YoloLayout, problems: Problems) -> LabelledSplit:
    split, unlabelled, used = LabelledSplit(problems), [], set()
    for image in sorted(dict.fromkeys(image for place in places for image in _images(place, layout.root))):
        size = split.add(image)
        if (label := label_file(image)) is None:
            unlabelled.append(image)
        elif size is not None:
            split.objects[-1] = list(_objects(label, *size, layout.keypoints, problems))
        used.add(label)
    for image in unlabelled:
        problems.add("image", "without a label file: used as images without objects", image.name)
    for place in places:
        folder = _label_folder(place)
        for file in files_below(folder) if folder.is_dir() else ():
            left = file.suffix.lower() == ".txt" and file not in used and file.name not in YOLO_NAMES
            if left and (folder != place or _is_label_file(file)):
                problems.add("label file", "not used: there is no image for it", str(file.relative_to(folder)))
    return split


def _images(place: Path, root: Path) -> Iterator[Path]:
    """The images of a folder, or those that a text file lists."""
    if place.is_dir():
        yield from (file for file in files_below(place) if is_image(file))
    elif is_image(place):
        yield place
    else:
        try:
            lines = read_text(place, MAX_TEXT).splitlines()
        except DataError as error:
            raise DataError(f"{place} is not a list of images: {error}") from None
        for line in filter(None, map(str.strip, lines)):
            tried = (located(base, line) for base in (place.parent, root))
            yield next(filter(is_file, tried), place.parent / line)


def _objects(path: Path, height: int, width: int, keypoints: bool, problems: Problems) -> Iterator[LabelledObject]:
    try:
        lines = read_text(path).splitlines()
    except DataError as error:
        return problems.add("label file", f"left out: {error}", path.name)
    for number, line in enumerate(lines, 1):
        values, where = line.split(), f"{path.name} line {number}"
        if not values:
            continue
        try:
            index, *numbers = map(float, values)
        except ValueError:
            problems.add("label", "left out: not numbers", f"{where}: {line:.40}")
            continue
        if keypoints:
            numbers = numbers[:4]
        if not index.is_integer() or not 0 <= index < MAX_NAMES:
            problems.add(
                "label", f"left out: the class is not an index from 0 to {MAX_NAMES - 1}", f"{where}: {values[0]:.20}"
            )
        elif len(numbers) == 4:
            x, y, w, h = numbers
            box = (x - w / 2) * width, (y - h / 2) * height, (x + w / 2) * width, (y + h / 2) * height
            yield LabelledObject(int(index), box, where)
        elif len(numbers) >= 6 and len(numbers) % 2 == 0:
            points = [value * side for value, side in zip(numbers, [width, height] * len(numbers), strict=False)]
            xs, ys = points[::2], points[1::2]
            yield LabelledObject(int(index), (min(xs), min(ys), max(xs), max(ys)), where, polygon=points)
        else:
            problems.add(
                "label", "left out: expected a class and 4 numbers, or a polygon", f"{where}: {len(values)} values"
            )
