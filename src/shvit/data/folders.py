"""Read image datasets stored as class folders, with or without split folders. Other known formats are refused."""

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import NoReturn

import numpy as np

from ..errors import DataError, counted, few
from .coco_files import annotation_files, is_annotations
from .images import Skipped, is_image
from .listing import Labelled, Listing
from .sequences import Files
from .splits import TEST_NAMES, TRAIN_NAMES, VAL_NAMES, Kind, split_of
from .walk import files_below, folders_in, is_hidden

PICTURES = frozenset({"images", "image", "imgs", "img", "jpegimages", "photos", "pictures"})
"""Names of folders that hold images of all classes."""
BESIDE_PICTURES = frozenset(
    {"annotations", "annotation", "annots", "xmls", "labels", "label", "masks", "mask", "segmentation", "segmentations"}
)
"""Names of annotation folders, which lie beside the folders in `PICTURES`."""
FOREIGN = {
    ".xml": "VOC data (an .xml file for each image)",
    ".txt": "YOLO data (a .txt file for each image)",
    "masks": "images and masks (a mask image for each image)",
}
"""Formats that are not class folders, by the suffix of the annotation files. `masks` are not supported at all."""


def read_folder(path: Path) -> Listing:
    """Find the images in `path/<class>/**`, or in `path/train/<class>/**` and likewise `path/val` and `path/test`.

    If a folder contains only one folder and no images, the inner folder is read instead. A folder with a name that
    `split_of` knows is a split if it contains class folders; otherwise it is a class if other classes exist.

    Raises:
        DataError: There are no class folders, or the layout is ambiguous or not supported.
    """
    levels = list(layers(path))
    for level in levels:
        if annotation_files(level):
            raise DataError(f"{path} is a COCO folder with boxes and masks: use --task detect or --task segment")
    root, skipped = levels[-1], Skipped()
    children = folders_in(root)
    named = [child for child in children if split_of(child.name)]
    if any(map(_has_classes, named)):
        listing = _read_splits(root, named, skipped)
    else:
        flat = [child for child in named if _holds_images(child)]
        if flat and not any(_holds_images(child) for child in children if child not in named):
            _refuse_flat(path, [*levels, *named], flat)
        listing = _read_unsplit(path, root, skipped)
    _refuse_foreign(path, [*levels, *named], set().union(*(split.present() for split in listing.splits.values())))
    return Listing(listing.splits, (*listing.warnings, *skipped.lines()))


def find_coco(path: Path) -> Path | None:
    """The folder that holds COCO annotations: `path`, or the only folder inside it; None if neither holds them."""
    return next((level for level in layers(path) if annotation_files(level)), None) if path.is_dir() else None


def layers(path: Path) -> Iterator[Path]:
    """Yields a folder, then its only subfolder with images, and so on, while neither folder holds images itself."""
    while True:
        yield path
        inside = list(islice(filter(_holds_images, folders_in(path)), 2))
        if len(inside) != 1 or any(is_image(file) for folder in (path, inside[0]) for file in _own_files(folder)):
            return
        if (kind := split_of(inside[0].name)) and split_of(path.name) != kind:
            return
        path = inside[0]


def refuse_format(path: Path) -> None:
    """Raises DataError if a folder, or a split in it, has a known format other than COCO."""
    levels = list(layers(path))
    for folder in [*levels, *(child for child in folders_in(levels[-1]) if split_of(child.name))]:
        if kind := _format(folder):
            what = "which is not supported" if kind == "masks" else f"but none of the {kind} files can be read"
            raise DataError(f"{path} looks like {FOREIGN[kind]}, {what}")


def _read_splits(root: Path, named: list[Path], skipped: Skipped) -> Listing:
    by_kind: dict[Kind | None, list[Path]] = {"train": [], "val": [], "test": []}
    for child in named:
        by_kind[split_of(child.name)].append(child)
    train = _chosen(root, by_kind["train"], TRAIN_NAMES)
    val = _chosen(root, by_kind["val"], VAL_NAMES)
    test = _chosen(root, [child for child in by_kind["test"] if _has_classes(child)], TEST_NAMES)
    if flat := [child for child in (train, val) if child and not _has_classes(child)]:
        _refuse_flat(root, [root, *named], flat)
    splits, warnings = {}, []
    for kind, child in (("train", train), ("val", val), ("test", test)):
        splits[kind] = _read_classes(_base(child), skipped, warnings) if child else Labelled.of([])
    if unused := [child.name for child in folders_in(root) if child not in (train, val, test) and _holds_images(child)]:
        used = " and ".join(child.name for child in (train, val, test) if child)
        warnings.append(f"not used: {few(unused)}; only {used} of {root} are read")
    return Listing(splits, tuple(warnings))


def _chosen(root: Path, folders: list[Path], names: Sequence[str]) -> Path | None:
    """The folder whose name comes first in `names`, or the only folder. Raises DataError if several are possible."""
    exact = {folder.name.lower(): folder for folder in folders}
    if first := next((exact[name] for name in names if name in exact), None):
        return first
    if len(folders) > 1:
        raise DataError(f"{root} has {few([folder.name for folder in folders])} for a split: rename one to {names[0]}")
    return folders[0] if folders else None


def _read_unsplit(path: Path, root: Path, skipped: Skipped) -> Listing:
    warnings: list[str] = []
    images = _read_classes(root, skipped, warnings)
    if not len(images):
        split = next((child for child in folders_in(root) if split_of(child.name)), None)
        what = "images" if split else "class folders with images"
        raise DataError(f"{path} holds no {what}: expected {split or path}/<class>/<image>")
    _refuse_repeated(root, _folders_inside(root, images))
    return Listing({"all": images}, tuple(warnings))


def _read_classes(folder: Path, skipped: Skipped, warnings: list[str]) -> Labelled:
    """The image and class of each `folder/<class>/**/<image>`."""
    children, counts = folders_in(folder), list[int]()

    def paths() -> Iterator[Path]:
        for child in children:
            images = skipped.images_below(child)
            counts.append(len(images))
            yield from images

    files = Files(paths())
    found = Labelled(
        files, [child.name for child in children], np.repeat(np.arange(len(counts), dtype=np.int32), counts)
    )
    if empty := [str(child) for child, count in zip(children, counts, strict=True) if not count]:
        warnings.append(f"no images in {few(empty)}")
    if beside := sum(map(is_image, _own_files(folder))):
        warnings.append(f"skipped: {counted(beside, 'image')} in {folder}, beside the class folders")
    inside = _folders_inside(folder, found)
    if nested := [name for name, names in inside.items() if len(names) > 1 and "" not in names]:
        example = f"{nested[0]}: {few(sorted(inside[nested[0]]))}"
        classes = counted(len(nested), "class", "classes")
        warnings.append(f"{classes} in {folder} with images only in subfolders, such as {example}")
    return found


def _folders_inside(folder: Path, images: Labelled) -> dict[str, set[str]]:
    """For each class, the names of its subfolders with images; an empty name stands for the class folder itself."""
    inside: dict[str, set[str]] = {}
    for parent, name in images.folders():
        inside.setdefault(name, set()).add("".join(parent.relative_to(folder).parts[1:2]))
    return inside


def _refuse_repeated(root: Path, inside: dict[str, set[str]]) -> None:
    """Raises DataError if subfolders of different classes have the same names, or the names of other classes."""
    counts = Counter(name for names in inside.values() for name in names)
    for one, names in inside.items():
        shared = {name for name in names if name and counts[name] > 1}
        other = None
        if len(copied := names & inside.keys()) > 1:
            shared, other = copied, root.name
        elif len(shared) > 1:
            other = next((name for name in inside if name != one and len(inside[name] & shared) > 1), None)
        if other is not None:
            raise DataError(
                f"{root}: {one} and {other} hold folders with the same names, such as {min(shared)}, so they are not "
                f"classes: expected {root}/<class>/<image>, or {root}/train/<class>/<image> and val/<class>/<image>"
            )


def _refuse_flat(path: Path, folders: list[Path], flat: list[Path]) -> NoReturn:
    """Raises DataError for splits without class folders."""
    _refuse_foreign(path, folders)
    names = " and ".join(child.name for child in flat)
    annotations = [file for folder in flat for file in _own_files(folder) if is_annotations(file)]
    raise DataError(
        f"{path}: no class folders in {names}: expected {flat[0]}/<class>/<image>, or a CSV of path,label"
        + (f"; for boxes, move {annotations[0].name} to {path}/annotations/instances_train.json" if annotations else "")
    )


def _refuse_foreign(path: Path, folders: Iterable[Path], classes: set[str] | None = None) -> None:
    """Raises DataError if a folder has another format, such as YOLO or VOC.

    The check is skipped if there are two or more classes and no class has a name in `PICTURES`.
    """
    if classes is not None and len(classes) > 1 and not any(name.lower() in PICTURES for name in classes):
        return
    for folder in folders:
        if kind := _format(folder):
            looks = f"{path} looks like {FOREIGN[kind]}"
            if kind != "masks":
                raise DataError(f"{looks}: use --task detect, or for polygons --task segment")
            raise DataError(
                f"{looks}, which is not supported: expected {path}/<class>/<image>, or for masks "
                f"{path}/annotations/instances_train.json and …_val.json in COCO's format"
            )


def _format(folder: Path) -> str | None:
    """The key of the folder's format in `FOREIGN`, or None."""
    children = {child.name.lower(): child for child in folders_in(folder)}
    beside = [child for name, child in children.items() if name in BESIDE_PICTURES]
    suffixes = {file.suffix.lower() for child in beside for file in files_below(child)}
    suffixes |= {
        file.suffix.lower()
        for image in islice(filter(is_image, _own_files(folder)), 20)
        for file in (image.with_suffix(".xml"), image.with_suffix(".txt"))
        if file.exists()
    }
    if kind := next((kind for kind in (".xml", ".txt") if kind in suffixes), None):
        return kind
    return "masks" if PICTURES.intersection(children) and any(map(_holds_images, beside)) else None


def _has_classes(split: Path) -> bool:
    """Whether a split has class folders. A single folder with a name in `PICTURES` does not count."""
    first = list(islice(filter(_holds_images, folders_in(_base(split))), 2))
    return len(first) > 1 or any(child.name.lower() not in PICTURES for child in first)


def _base(split: Path) -> Path:
    """The folder that holds a split's class folders: the split, or a folder nested in it, as in seg_train/seg_train."""
    *_, base = layers(split)
    return base


def _holds_images(folder: Path) -> bool:
    """Whether images lie in or below a folder. Links are followed only if no images are found without them."""
    for _, folders, files in os.walk(folder):
        folders[:] = (name for name in folders if not is_hidden(name))
        if any(is_image(Path(name)) for name in files if not is_hidden(name)):
            return True
    return any(map(is_image, files_below(folder)))


def _own_files(folder: Path) -> Iterator[Path]:
    with os.scandir(folder) as entries:
        yield from (Path(entry.path) for entry in entries if not is_hidden(entry.name) and not entry.is_dir())
