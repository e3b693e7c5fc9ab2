"""Read Pascal VOC datasets: an XML file for each image, with the boxes and class names of its objects.

Source: M. Everingham et al., "The PASCAL Visual Object Classes Challenge", 2010.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

from ..errors import DataError
from .coco import CocoDataset
from .dataset import DrawnBy, Holdout
from .image_labels import LabelledObject, LabelledSplit, dataset_of_splits, listed_names, read_text
from .images import is_image
from .problems import Problems
from .splits import split_of
from .walk import files_below, folders_in, is_file

VOC_NAMES = ("classes.txt", "labels.txt")
"""Files with one class name per line, which give the order of the classes."""
MAX_XML = 2**20
LISTS = ("train", "val", "test", "trainval")
"""Names of the text files in `ImageSets` that list the images of a split."""
_HEADS_READ = 20


@dataclass(frozen=True)
class VocLayout:
    """The XML files of each split, and where their images are."""

    root: Path
    splits: dict[str, list[Path]]
    """XML files by split; `all` if there are no splits."""
    images: Path | None
    """The folder of the images; None if they lie beside the XML files."""


def find_voc(path: Path) -> VocLayout | None:
    """The layout of a Pascal VOC folder; None if it is none."""
    if not path.is_dir():
        return None
    for level in _levels(path):
        children = {child.name.lower(): child for child in folders_in(level)}
        annotations = children.get("annotations")
        images = children.get("jpegimages") or children.get("images")
        if annotations and images and (files := _xml_files(annotations)):
            return VocLayout(level, _listed(children.get("imagesets"), files), images)
        splits = {name: _xml_files(child) for child in children.values() if (name := split_of(child.name))}
        if found := {name: files for name, files in splits.items() if files}:
            return VocLayout(level, found, None)
        if files := _xml_files(level, direct=True):
            return VocLayout(level, {"all": files}, None)
    return None


def open_voc(
    layout: VocLayout, data: str | Path, seed: int = 0, val_share: float = 0.2, drawn_by: DrawnBy = "hash"
) -> CocoDataset:
    """Open a Pascal VOC dataset. Images are in the order of their paths. Objects marked as difficult become crowds,
    which training and evaluation ignore.

    Raises:
        DataError: The dataset has no usable images, or no objects.
    """
    splits = {name: _read(files, layout, Problems()) for name, files in layout.splits.items()}
    found = sorted({str(one.name) for split in splits.values() for row in split.objects for one in row})
    names = listed_names((layout.root,), VOC_NAMES) or tuple(found)
    if not names:
        raise DataError(f"{data}: no XML file has an object with a name and a bndbox")
    label_of: dict[str | int, int] = {name: number for number, name in enumerate(names)}
    return dataset_of_splits(data, names, label_of, splits, Holdout(seed, val_share, drawn_by), ())


def _levels(path: Path) -> Iterator[Path]:
    """A folder, and the folders in it (as in VOCdevkit/VOC2007) if there is only one with annotations."""
    yield path
    nested = [child for child in folders_in(path) if (child / "Annotations").is_dir()]
    if len(nested) == 1:
        yield nested[0]
    elif len(inside := folders_in(path)) == 1 and split_of(inside[0].name) is None:
        yield from (inside[0], *(child for child in folders_in(inside[0]) if (child / "Annotations").is_dir()))


def _xml_files(folder: Path, direct: bool = False) -> list[Path]:
    """The XML files in a folder, sorted; empty unless one of the first is an annotation."""
    files = sorted(folder.iterdir()) if direct else files_below(folder)
    found = [file for file in files if file.suffix.lower() == ".xml" and is_file(file)]
    return found if any(b"<annotation" in _head(file) for file in islice(found, _HEADS_READ)) else []


def _head(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(4096)
    except OSError:
        return b""


def _listed(folder: Path | None, files: list[Path]) -> dict[str, list[Path]]:
    """The XML files of each split that `ImageSets` lists; without lists, all of them."""
    lists = {} if folder is None else {name: _list(folder, name) for name in LISTS}
    named = {name: rows for name, rows in lists.items() if rows is not None}
    if "trainval" in named and not ("train" in named and "val" in named):
        named["train" if "test" in named or "val" in named else "all"] = named["trainval"]
    named.pop("trainval", None)
    by_stem = {file.stem: file for file in files}
    if not named:
        return {"all": files}
    return {name: [by_stem[stem] for stem in rows if stem in by_stem] for name, rows in named.items()}


def _list(folder: Path, name: str) -> list[str] | None:
    """The image names in ImageSets/Main/NAME.txt or ImageSets/NAME.txt; None if there is no such file."""
    path = next((path for parent in (folder / "Main", folder) if is_file(path := parent / f"{name}.txt")), None)
    if path is None:
        return None
    try:
        return sorted({line.split()[0] for line in read_text(path).splitlines() if line.strip()})
    except DataError as error:
        raise DataError(f"{path} is not a list of images: {error}") from None


def _read(files: list[Path], layout: VocLayout, problems: Problems) -> LabelledSplit:
    split, parsed = LabelledSplit(problems), []
    for path in files:
        try:
            tree = parse_xml(path)
        except DataError as error:
            problems.add("XML file", f"left out: {error}", path.name)
            continue
        parsed.append((_image(path, tree, layout), path, tree))
    for image, path, tree in sorted(parsed, key=lambda row: row[0]):
        if (size := split.add(image)) is None:
            continue
        stated = tuple(_number(tree, f"size/{side}") for side in ("height", "width"))
        if all(stated) and stated not in (size, size[::-1]):
            problems.add(
                "image", "not of the size that its XML file states", f"{path.name}: {stated[1]:g}x{stated[0]:g}"
            )
        split.objects[-1] = list(_objects(path, tree, problems))
        if not split.objects[-1]:
            problems.add("XML file", "without objects: its image is used as one without objects", path.name)
    return split


def _image(path: Path, tree: Element, layout: VocLayout) -> Path:
    """The image of an XML file: the one that it names, or one of the same name as the XML file."""
    folder = layout.images or path.parent
    named = (tree.findtext("filename") or "").replace("\\", "/").rpartition("/")[2]
    if named and is_file(folder / named):
        return folder / named
    return next((file for file in sorted(folder.glob(f"{_escaped(path.stem)}.*")) if is_image(file)), folder / named)


def _escaped(stem: str) -> str:
    return "".join(f"[{character}]" if character in "*?[" else character for character in stem)


def _objects(path: Path, tree: Element, problems: Problems) -> Iterator[LabelledObject]:
    for number, one in enumerate(tree.iter("object"), 1):
        where, name = f"{path.name} object {number}", (one.findtext("name") or "").strip()
        sides = [_number(one, f"bndbox/{side}") for side in ("xmin", "ymin", "xmax", "ymax")]
        if not name or None in sides:
            problems.add("label", "left out: no name, or no bndbox with four numbers", where)
            continue
        left, top, right, bottom = (float(side) for side in sides if side is not None)
        box = left - 1, top - 1, right, bottom  # pixels are counted from 1, and the last one belongs to the box
        yield LabelledObject(name, box, where, crowd=(one.findtext("difficult") or "").strip() == "1")


def _number(tree: Element, path: str) -> float | None:
    try:
        return float((tree.findtext(path) or "").strip())
    except ValueError:
        return None


def parse_xml(path: Path) -> Element:
    """Parse a small XML file. Entities are never resolved. Raises DataError with the reason if it cannot be used."""
    text, builder, parser = read_text(path, MAX_XML), TreeBuilder(), expat.ParserCreate()

    def refuse(*_: Any) -> None:
        raise DataError("it has a DOCTYPE, which is not read for safety")

    parser.StartDoctypeDeclHandler = refuse
    parser.StartElementHandler = lambda tag, _: builder.start(tag, {})
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.data
    try:
        parser.Parse(text, True)
    except expat.ExpatError as error:
        raise DataError("not an XML file") from error
    return builder.close()
