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
from .coco import CocoDataset
from .dataset import DrawnBy, Holdout
from .image_labels import LabelledObject, LabelledSplit, dataset_of_splits, listed_names, read_text, unique
from .images import is_image
from .problems import Problems
from .splits import split_of
from .walk import exists, files_below, folders_in, is_file

YAML = (".yaml", ".yml")
YOLO_NAMES = ("classes.txt", "obj.names", "names.txt")
"""Files with one class name per line, for folders without a YAML file."""
SPLIT_KEYS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
LABELS_READ = 50
"""Number of label files that are looked at to recognize the format."""


@dataclass(frozen=True)
class YoloLayout:
    """Where the images of each split are, and the class names if they are given."""

    root: Path
    splits: dict[str, list[Path]]
    """Images by split: folders, images, or text files that list images. `all` if there are no splits."""
    names: tuple[str, ...] | None
    warnings: tuple[str, ...] = ()


def find_yolo(path: Path) -> YoloLayout | None:
    """The layout of a YOLO dataset: a YAML file or a folder. None if it is none. Raises DataError for an unusable YAML
    file."""
    if path.suffix.lower() in YAML and is_file(path):
        return _from_yaml(path, required=True)
    if not path.is_dir():
        return None
    for level in _levels(path):
        files = sorted(file for file in level.iterdir() if file.suffix.lower() in YAML and is_file(file))
        files.sort(key=lambda file: file.stem not in ("data", "dataset"))
        if layout := next(filter(None, (_from_yaml(file) for file in files)), None):
            return layout
        if splits := _folders(level):
            labels = [level / "labels", *(child / "labels" for child in folders_in(level))]
            return YoloLayout(level, splits, listed_names((level, *labels), YOLO_NAMES))
    return None


def open_yolo(
    layout: YoloLayout, data: str | Path, seed: int = 0, val_share: float = 0.2, drawn_by: DrawnBy = "hash"
) -> CocoDataset:
    """Open a YOLO dataset. Images are in the order of their paths. A missing or empty label file means no objects.

    Raises:
        DataError: The dataset has no usable images, or no classes.
    """
    problems = {name: Problems() for name in layout.splits}
    splits = {name: _read(places, layout.root, problems[name]) for name, places in layout.splits.items()}
    count = 1 + max((int(one.name) for split in splits.values() for row in split.objects for one in row), default=-1)
    names = layout.names or tuple(map(str, range(count)))
    if not names:
        raise DataError(f"{data} has no labels: expected text files with lines such as `0 0.5 0.5 0.2 0.3`")
    label_of: dict[str | int, int] = {number: number for number in range(len(names))}
    return dataset_of_splits(data, names, label_of, splits, Holdout(seed, val_share, drawn_by), layout.warnings)


def _from_yaml(path: Path, required: bool = False) -> YoloLayout | None:
    """The layout that a YAML file describes. None if it is not about a dataset, unless it is `required` to be."""
    try:
        facts = yaml.safe_load(read_text(path, 2**20))
    except (DataError, yaml.YAMLError, RecursionError) as error:
        if not required:
            return None
        raise DataError(f"{path} is not a YAML file: {str(error).splitlines()[0]}") from None
    if not isinstance(facts, dict) or "names" not in facts or not SPLIT_KEYS.keys() & facts.keys():
        if not required:
            return None
        raise DataError(f"{path} describes no dataset: expected the keys names, and train or val")
    names, warnings = _names(facts["names"], path), []
    if isinstance(facts.get("nc"), int) and facts["nc"] != len(names):
        warnings.append(f"{path.name}: nc is {facts['nc']}, but there are {counted(len(names), 'name')}: nc is ignored")
    base = path.parent / str(facts.get("path") or "")
    splits: dict[str, list[Path]] = {}
    for key, split in SPLIT_KEYS.items():
        if (value := facts.get(key)) in (None, "", []):
            continue
        places = value if isinstance(value, list) else [value]
        if not all(isinstance(place, str) for place in places):
            raise DataError(f"{path}: {key} must be a folder, a text file or a list of them, got {value!r:.60}")
        splits[split] = [_located(place, base, path, key) for place in places]
    if not splits:
        raise DataError(f"{path} names no images: expected the keys train and val")
    return YoloLayout(path.parent, splits, names, tuple(warnings))


def _names(value: Any, path: Path) -> tuple[str, ...]:
    if isinstance(value, dict):
        if not value or not all(isinstance(key, int) and 0 <= key < 10**5 for key in value):
            raise DataError(f"{path}: the keys of names must be class indices from 0, got {list(value)[:3]}")
        value = [value.get(index, str(index)) for index in range(max(value) + 1)]
    if not isinstance(value, list) or not all(isinstance(name, str | int | float) for name in value):
        raise DataError(f"{path}: names must be a list of class names, got {value!r:.60}")
    return unique(tuple(map(str, value)), path)


def _located(place: str, base: Path, path: Path, key: str) -> Path:
    """The folder or text file of a split. Roboflow's `../train/images` may lie beside the YAML file."""
    inner = place.replace("\\", "/")
    while inner.startswith("../"):
        inner = inner[3:]
    tried = [base / place, path.parent / place, path.parent / inner]
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
    splits = {split_of(name): child for name, child in children.items() if split_of(name)}
    if images := children.get("images"):
        if not _has_labels(images):
            return None
        inner = {split_of(child.name): child for child in folders_in(images) if split_of(child.name)}
        return {name: [folder] for name, folder in inner.items() if name} or {"all": [images]}
    if splits:
        folders = {name: child / "images" if (child / "images").is_dir() else child for name, child in splits.items()}
        if not any(map(_has_labels, folders.values())):
            return None
        return {name: [folder] for name, folder in folders.items() if name}
    return {"all": [level]} if _has_labels(level, direct=True) else None


def _has_labels(folder: Path, direct: bool = False) -> bool:
    """Whether one of the first images has a label file in YOLO's format."""
    files = sorted(folder.iterdir()) if direct else files_below(folder)
    images = islice((file for file in files if is_image(file)), LABELS_READ)
    return any(_is_label_file(label) for image in images if (label := label_file(image)))


def _is_label_file(path: Path) -> bool:
    """Whether the first line of a file is a class index and at least four numbers."""
    try:
        with path.open("rb") as file:
            first = next(filter(None, (line.split() for line in file.read(4096).splitlines())), [])
        numbers = [float(value) for value in first]
        return len(numbers) >= 5 and numbers[0].is_integer()
    except (OSError, ValueError, OverflowError):
        return False


def label_file(image: Path) -> Path | None:
    """The label file of an image: in `labels` instead of the last folder `images`, or beside the image."""
    parts = list(image.parts[:-1])
    named = [index for index, part in enumerate(parts) if part.lower() == "images"]
    if named:
        parts[named[-1]] = "labels"
        if is_file(label := Path(*parts, image.name).with_suffix(".txt")):
            return label
    return beside if is_file(beside := image.with_suffix(".txt")) else None


def _read(places: Sequence[Path], root: Path, problems: Problems) -> LabelledSplit:
    split, unlabelled, used = LabelledSplit(problems), [], set()
    for image in sorted(dict.fromkeys(image for place in places for image in _images(place, root, problems))):
        size = split.add(image)
        if (label := label_file(image)) is None:
            unlabelled.append(image)
        elif size is not None:
            split.objects[-1] = list(_objects(label, *size, problems))
        used.add(label)
    for image in unlabelled:
        problems.add("image", "without a label file: used as images without objects", image.name)
    for place in places:
        folder = Path(*("labels" if part.lower() == "images" else part for part in place.parts))
        for file in files_below(folder) if folder.is_dir() else ():
            left = file.suffix.lower() == ".txt" and file not in used and file.name not in YOLO_NAMES
            if left and (folder != place or _is_label_file(file)):
                problems.add("label file", "not used: there is no image for it", str(file.relative_to(folder)))
    return split


def _images(place: Path, root: Path, problems: Problems) -> Iterator[Path]:
    """The images of a folder, or those that a text file lists."""
    if place.is_dir():
        yield from (file for file in files_below(place) if is_image(file))
    elif is_image(place):
        yield place
    else:
        try:
            lines = read_text(place).splitlines()
        except DataError as error:
            raise DataError(f"{place} is not a list of images: {error}") from None
        for line in filter(None, map(str.strip, lines)):
            found = next((each for base in (place.parent, root) if is_file(each := base / line)), place.parent / line)
            yield found


def _objects(path: Path, height: int, width: int, problems: Problems) -> Iterator[LabelledObject]:
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
        if not index.is_integer() or not 0 <= index < 10**6:
            problems.add("label", "left out: the class is not an index from 0", f"{where}: {values[0]:.20}")
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
