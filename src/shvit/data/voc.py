"""Read Pascal VOC datasets: an XML file for each image, with the boxes and class names of its objects.

Source: M. Everingham et al., "The PASCAL Visual Object Classes Challenge", 2010.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

from ..errors import DataError
from ..files import MAX_TEXT
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
    annotations: Path | None = None
    """The folder of the XML files; None if they lie beside the images."""
    images: Path | None = None
    """The folder of the images, in which they lie as their XML files in `annotations`."""
    problems: Problems = field(default_factory=Problems)


def find_voc(path: Path) -> VocLayout | None:
    """The layout of a Pascal VOC folder; None if it is none."""
    if not path.is_dir():
        return None
    for level in _levels(path):
        children = {child.name.lower(): child for child in folders_in(level)}
        annotations = children.get("annotations")
        images = children.get("jpegimages") or children.get("images")
        if annotations and images and (files := _xml_files(annotations)):
            problems = Problems()
            splits = _listed(children.get("imagesets"), annotations, files, problems)
            return VocLayout(level, splits, annotations, images, problems)
        splits: dict[str, list[Path]] = {}
        for child in children.values():
            if (name := split_of(child.name)) and (files := _xml_files(child)):
                splits[name] = splits.get(name, []) + files
        if splits:
            return VocLayout(level, splits)
        if files := _xml_files(level, direct=True):
            return VocLayout(level, {"all": files})
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
    if layout.images and "all" in splits:
        known = {image for split in splits.values() for image in split.images}
        for image in files_below(layout.images):
            if is_image(image) and image not in known:
                layout.problems.add("image", "not used: there is no XML file for it", image.name)
    warnings = layout.problems.lines()
    return dataset_of_splits(data, names, label_of, splits, Holdout(seed, val_share, drawn_by), warnings)


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


def _listed(lists: Path | None, annotations: Path, files: list[Path], problems: Problems) -> dict[str, list[Path]]:
    """The XML files of each split that the folder `lists` (`ImageSets`) names; without lists, all of them."""
    by_name = {file.stem: file for file in files} | {
        file.relative_to(annotations).with_suffix("").as_posix(): file for file in files
    }
    named = {name: rows for name in LISTS if lists and (rows := _list(lists, name, by_name, problems)) is not None}
    if not named:
        return {"all": files}
    if both := named.pop("trainval", None):
        if named.keys() >= {"train", "val"}:
            pass
        elif "train" in named:
            named["val"] = both - named["train"]
        elif "val" in named:
            named["train"] = both - named["val"]
        else:
            named["train" if "test" in named else "all"] = both
    for file in sorted(set(files).difference(*named.values())):
        problems.add("XML file", "not used: no list in ImageSets names it", file.name)
    return {name: sorted(rows) for name, rows in named.items() if rows}


def _list(folder: Path, name: str, by_name: Mapping[str, Path], problems: Problems) -> set[Path] | None:
    """The XML files that ImageSets/Main/NAME.txt or ImageSets/NAME.txt lists; None if there is no such file.

    A line is the name of an image, with or without suffix; other words may follow.
    """
    path = next((path for parent in (folder / "Main", folder) if is_file(path := parent / f"{name}.txt")), None)
    if path is None:
        return None
    try:
        lines = [line.strip().replace("\\", "/") for line in read_text(path, MAX_TEXT).splitlines()]
    except DataError as error:
        raise DataError(f"{path} is not a list of images: {error}") from None
    found = set()
    for line in filter(None, lines):
        tried = (one for text in (line, line.split()[0]) for one in (text, text.rpartition(".")[0]))
        if file := next((by_name[one] for one in tried if one in by_name), None):
            found.add(file)
        else:
            problems.add("line", "not used: there is no XML file for it", f"{path.name}: {line:.40}")
    return found


def _read(files: list[Path], layout: VocLayout, problems: Problems) -> LabelledSplit:
    split, parsed, by_stem = LabelledSplit(problems), [], dict[Path, dict[str, Path]]()
    for path in files:
        try:
            tree = parse_xml(path)
        except DataError as error:
            problems.add("XML file", f"left out: {error}", path.name)
            continue
        parsed.append((_image(path, tree, layout, by_stem), path, tree))
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


def _image(path: Path, tree: Element, layout: VocLayout, by_stem: dict[Path, dict[str, Path]]) -> Path:
    """The image of an XML file: the one that it names, or one of the same name as the XML file.

    Args:
        by_stem: The images of each folder that was searched, by name without suffix; added to.
    """
    folders = [path.parent]
    if layout.images and layout.annotations:
        folders = [layout.images / path.parent.relative_to(layout.annotations), layout.images]
    named = (tree.findtext("filename") or "").replace("\\", "/").rpartition("/")[2]
    for folder in folders:
        if named and is_file(folder / named):
            return folder / named
    for folder in filter(Path.is_dir, folders):
        if folder not in by_stem:
            files = (file for file in sorted(folder.iterdir(), reverse=True) if file.suffix and is_image(file))
            by_stem[folder] = {file.stem: file for file in files if is_file(file)}
        if path.stem in by_stem[folder]:
            return by_stem[folder][path.stem]
    return folders[-1] / (named or path.stem)


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
