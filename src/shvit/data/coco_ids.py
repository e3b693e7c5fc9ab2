"""Ids of images and classes in COCO annotations, for results in COCO's format."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import DataError
from .coco_files import ROBOFLOW, annotation_files, posix
from .coco_rows import common_categories, file_name, read_categories, read_document, whole_number
from .folders import find_coco


@dataclass(frozen=True)
class CocoIds:
    """Image ids by path, and category ids by class name; see `read_ids`."""

    images: dict[Path, int]
    """Id of each requested image that the annotations list."""
    categories: dict[str, int]
    missing: tuple[Path, ...]
    """Requested images that the annotations do not list."""


def read_ids(data: Path, paths: Sequence[Path]) -> CocoIds:
    """Find the ids of these images, and of all categories, in COCO annotations.

    An image matches the entry whose `file_name`, including its folders, is the end of the image's path. If there is no
    such entry, folders are ignored, and the image matches the only entry with the same file name.

    Args:
        data: A COCO JSON file; or a dataset folder, in which all annotation files are read.

    Raises:
        DataError: There are no COCO annotations, different images have the same id, an image matches several entries,
            or several images match one entry.
    """
    entries, categories = _listing(data)
    by_name: dict[str, list[tuple[tuple[str, ...], int]]] = defaultdict(list)
    for name, id_ in entries:
        if parts := posix(name).parts:
            by_name[parts[-1]].append((parts, id_))
    images: dict[Path, int] = {}
    taken: dict[int, Path] = {}
    for path in paths:
        if (id_ := _id_of(path, by_name.get(path.name, []), data)) is None:
            continue
        if id_ in taken:
            raise DataError(f"{taken[id_]} and {path} both match image {id_} of {data}: give only one of them")
        images[path], taken[id_] = id_, path
    return CocoIds(images, categories, tuple(path for path in paths if path not in images))


def _listing(data: Path) -> tuple[list[tuple[str, int]], dict[str, int]]:
    """File name and id of each listed image, and the id of each category name. Raises DataError."""
    files = annotation_files(find_coco(data) or data) if data.is_dir() else [data]
    if not files:
        raise DataError(f"{data} holds no COCO annotations: expected annotations/instances_*.json or */{ROBOFLOW}")
    names: dict[int, str] = {}
    read: list[dict[int, str]] = []
    for path in files:
        document = read_document(path, ("images", "categories"))
        read.append(read_categories(document["categories"], path))
        for row in document["images"]:
            if (name := file_name(row)) is None or (id_ := whole_number(row, "id")) is None:
                continue
            if names.setdefault(id_, name) != name:
                raise DataError(f"{data}: {names[id_]} and {name} have the same image id {id_}: give one JSON file")
    categories = {name: id_ for id_, name in common_categories(read, data).items()}
    return [(name, id_) for id_, name in names.items()], categories


def _id_of(path: Path, entries: list[tuple[tuple[str, ...], int]], data: Path) -> int | None:
    """The id of an image; None if no entry has the image's name."""
    whole = path.resolve().parts
    fitting = [(parts, id_) for parts, id_ in entries if whole[-len(parts) :] == parts]
    longest = max((len(parts) for parts, _ in fitting), default=0)
    ids = sorted({id_ for parts, id_ in fitting if len(parts) == longest} or {id_ for _, id_ in entries})
    if len(ids) > 1:
        raise DataError(
            f"{path} matches images {ids[0]} and {ids[1]} of {data}: give annotations with unique file names"
        )
    return ids[0] if ids else None
