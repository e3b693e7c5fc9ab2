"""Folders of class folders, with and without splits; folders that hold something else are refused by name."""

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import NoReturn

from ..errors import DataError, few
from .coco_files import annotation_files, is_annotations
from .images import PassedOver, is_image
from .splits import TRAIN_NAMES, VAL_NAMES, Kind, Listing, split_of
from .walk import files_below, folders_in, is_hidden

PICTURES = frozenset({"images", "image", "imgs", "img", "jpegimages", "photos", "pictures"})
"""Names of folders that hold the images of all classes."""
BESIDE_PICTURES = frozenset(
    {"annotations", "annotation", "annots", "xmls", "labels", "label", "masks", "mask", "segmentation", "segmentations"}
)
"""Names of folders that lie beside those and say what is in each image."""
FORMATS = {
    ".xml": "VOC (an .xml file for each image)",
    ".txt": "YOLO (a .txt file for each image)",
    "masks": "images and masks (an image for each image)",
}
"""What is recognised and not read, by the files that it has for each image."""


def read_folder(path: Path) -> Listing:
    """The images of `path/<class>/**`, or of `path/train/<class>/**` and `path/val/<class>/**`, in order.

    A folder that holds nothing but another one stands for that one. Splits are recognised by `split_of` and by their
    class folders; a folder named as a split that holds images and no folders is a class if there are others beside it.

    Raises:
        DataError: There are no class folders, or it is not clear what they are.
    """
    levels = list(layers(path))
    for level in levels:
        if annotation_files(level):
            raise DataError(f"{path} is a COCO folder, of boxes and masks: --task detect or segment learns from it")
    root, passed = levels[-1], PassedOver()
    children = folders_in(root)
    named = [child for child in children if split_of(child.name)]
    if any(map(_has_classes, named)):
        listing = _read_splits(root, named, passed)
    else:
        flat = [child for child in named if _holds_images(child)]
        if flat and not any(_holds_images(child) for child in children if child not in named):
            _refuse_flat(path, [*levels, *named], flat)
        listing = _read_pile(path, root, passed)
    _refuse_foreign(path, [*levels, *named], {name for rows in listing.splits.values() for _, name in rows})
    return Listing(listing.splits, (*listing.warnings, *passed.lines()))


def find_coco(path: Path) -> Path | None:
    """The folder that holds COCO's annotations: `path`, or the only folder in it."""
    return next((level for level in layers(path) if annotation_files(level)), None) if path.is_dir() else None


def layers(path: Path) -> Iterator[Path]:
    """The folder; and where it holds nothing but one folder of folders with images, that one, and so on."""
    while True:
        yield path
        inside = list(islice(filter(_holds_images, folders_in(path)), 2))
        if len(inside) != 1 or _has_images(path) or _has_images(inside[0]):
            return
        if (kind := split_of(inside[0].name)) and split_of(path.name) != kind:
            return
        path = inside[0]


def refuse_format(path: Path) -> None:
    """Raises DataError where a folder, or a split in it, is of a format that is recognised and not read."""
    levels = list(layers(path))
    _refuse_foreign(path, [*levels, *(child for child in folders_in(levels[-1]) if split_of(child.name))])


def _read_splits(root: Path, named: list[Path], passed: PassedOver) -> Listing:
    by_kind: dict[Kind | None, list[Path]] = {"train": [], "val": [], "test": []}
    for child in named:
        by_kind[split_of(child.name)].append(child)
    train = _chosen(root, by_kind["train"], TRAIN_NAMES)
    val = _chosen(root, by_kind["val"], VAL_NAMES)
    val = val or _chosen(root, [child for child in by_kind["test"] if _has_classes(child)], VAL_NAMES)
    if flat := [child for child in (train, val) if child and not _has_classes(child)]:
        _refuse_flat(root, [root, *named], flat)
    splits, warnings = {}, []
    for kind, child in (("train", train), ("val", val)):
        splits[kind] = _read_classes(_base(child), passed, warnings) if child else []
    if unused := [child.name for child in folders_in(root) if child not in (train, val) and _holds_images(child)]:
        used = " and ".join(child.name for child in (train, val) if child)
        warnings.append(f"not used: {few(unused)}; only {used} of {root} are read")
    return Listing(splits, tuple(warnings))


def _chosen(root: Path, folders: list[Path], names: Sequence[str]) -> Path | None:
    """The one that has the first of these names, or the only one. Raises DataError where it is not clear."""
    exact = {folder.name.lower(): folder for folder in folders}
    if first := next((exact[name] for name in names if name in exact), None):
        return first
    if len(folders) > 1:
        raise DataError(f"{root} has {few([folder.name for folder in folders])} for one split: name one {names[0]}")
    return folders[0] if folders else None


def _read_pile(path: Path, root: Path, passed: PassedOver) -> Listing:
    warnings: list[str] = []
    pile = _read_classes(root, passed, warnings)
    if not pile:
        split = next((child for child in folders_in(root) if split_of(child.name)), None)
        if split:
            raise DataError(f"{path} holds no images: expected {split}/<class>/<image>")
        raise DataError(f"{path} holds no class folders with images: expected {path}/<class>/<image>")
    _refuse_repeated(root, _folders_inside(root, pile))
    return Listing({"all": pile}, tuple(warnings))


def _read_classes(folder: Path, passed: PassedOver, warnings: list[str]) -> list[tuple[Path, str]]:
    """(image, class) of `folder/<class>/**/<image>`."""
    by_class = {child: passed.images_below(child) for child in folders_in(folder)}
    rows = [(image, child.name) for child, images in by_class.items() for image in images]
    if empty := [str(child) for child, images in by_class.items() if not images]:
        warnings.append(f"no images in {few(empty)}")
    if beside := sum(map(is_image, _own_files(folder))):
        warnings.append(f"passed over: {beside:,} images in {folder}, beside the class folders")
    inside = _folders_inside(folder, rows)
    if nested := [name for name, names in inside.items() if len(names) > 1 and "" not in names]:
        warnings.append(
            f"{len(nested):,} classes in {folder} hold folders and no images of their own, such as {nested[0]}: "
            f"{few(sorted(inside[nested[0]]))}"
        )
    return rows


def _folders_inside(folder: Path, rows: Iterable[tuple[Path, str]]) -> dict[str, set[str]]:
    """Of each class the names of the folders with images right below it; an empty one where it has images itself."""
    found: dict[str, set[str]] = {}
    for parent, name in sorted({(image.parent, name) for image, name in rows}):
        found.setdefault(name, set()).add("".join(parent.relative_to(folder).parts[1:2]))
    return found


def _refuse_repeated(root: Path, inside: dict[str, set[str]]) -> None:
    """Raises DataError where classes hold folders of the same names, or of other classes' names."""
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
                f"{root}: {one} and {other} hold folders of the same names, such as {min(shared)}, so they are no "
                f"classes: expected {root}/<class>/<image>, or {root}/train/<class>/<image> and "
                f"{root}/val/<class>/<image>"
            )


def _refuse_flat(path: Path, places: list[Path], flat: list[Path]) -> NoReturn:
    """Raises DataError for splits without class folders."""
    _refuse_foreign(path, places)
    names = " and ".join(child.name for child in flat)
    found = [file for folder in flat for file in _own_files(folder) if is_annotations(file)]
    raise DataError(
        f"{path}: no class folders in {names}: expected {flat[0]}/<class>/<image>, or a CSV of path,label"
        + (f"; for the boxes of {found[0].name}, {path}/annotations/instances_train.json" if found else "")
    )


def _refuse_foreign(path: Path, places: Iterable[Path], classes: set[str] | None = None) -> None:
    """Raises DataError for a format that is not read; of classes that can be meant only if one is named `images`."""
    if classes is not None and len(classes) > 1 and not any(name.lower() in PICTURES for name in classes):
        return
    for place in places:
        if kind := _format(place):
            raise DataError(
                f"{path} looks like {FORMATS[kind]}, which is not read: expected {path}/<class>/<image>, or for boxes "
                f"and masks {path}/annotations/instances_train.json and …_val.json in COCO's format"
            )


def _format(folder: Path) -> str | None:
    """A key of `FORMATS`; None for a folder that is none of these."""
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
    pictures = any(name in PICTURES for name in children)
    return "masks" if pictures and any(map(_holds_images, beside)) else None


def _has_classes(split: Path) -> bool:
    """Whether a split has class folders; one alone that is named `images` is none."""
    found = list(islice(filter(_holds_images, folders_in(_base(split))), 2))
    return len(found) > 1 or any(child.name.lower() not in PICTURES for child in found)


def _base(split: Path) -> Path:
    """Where the class folders of a split are: in seg_train/seg_train, for one."""
    *_, base = layers(split)
    return base


def _has_images(folder: Path) -> bool:
    """Whether there are images in the folder itself."""
    return any(map(is_image, _own_files(folder)))


def _holds_images(folder: Path) -> bool:
    """Whether there are images in the folder or below it; ends at the first, where it need not follow links."""
    for _, folders, files in os.walk(folder):
        folders[:] = (name for name in folders if not is_hidden(name))
        if any(is_image(Path(name)) for name in files if not is_hidden(name)):
            return True
    return any(map(is_image, files_below(folder)))


def _own_files(folder: Path) -> Iterator[Path]:
    with os.scandir(folder) as entries:
        yield from (Path(entry.path) for entry in entries if not is_hidden(entry.name) and not entry.is_dir())
