"""Where COCO's annotation files lie in a folder, which split each is of, and where its images are."""

import re
from pathlib import Path, PurePosixPath

from ..errors import DataError
from .splits import TRAIN_NAMES, VAL_NAMES, split_of, splits_within
from .walk import folders_in, is_file

BESIDE = "_annotations.coco.json"
"""What Roboflow writes into the folder of each split."""
OTHERS = ("captions", "panoptic", "stuff", "image_info")
"""What the names of COCO's other files begin with, which lie beside those with objects."""
HEAD = 1 << 16
"""Bytes of a file in which one of COCO's lists is named."""


def annotation_files(root: Path) -> list[Path]:
    """COCO's and Roboflow's by their names; else those in `annotations` that are COCO's by their content."""
    named = [*sorted(root.glob("annotations/instances_*.json")), *sorted(root.glob(f"*/{BESIDE}"))]
    return named or [
        path
        for path in sorted(root.glob("[aA]nnotations/*.json"))
        if not path.name.lower().startswith(OTHERS) and is_annotations(path)
    ]


def is_annotations(path: Path) -> bool:
    """Whether a file begins as COCO's do."""
    if path.suffix.lower() != ".json" or not path.is_file():
        return False
    with path.open("rb") as file:
        head = file.read(HEAD)
    return head.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"{") and bool(
        re.search(rb'"(images|annotations|categories)"\s*:\s*\[', head)
    )


def files_by_split(root: Path) -> dict[str, Path]:
    """`train` and `val`, or `all`. Raises DataError where it is not clear which is which."""
    files = annotation_files(root)
    if len(files) == 1:
        return {"all": files[0]}
    found = {}
    for split, names, kinds in (("train", TRAIN_NAMES, ("train",)), ("val", VAL_NAMES, ("val", "test"))):
        groups = [[path for path in files if _about(path).lower().startswith(name)] for name in names]
        groups += [[path for path in files if splits_within(_about(path)) == {kind}] for kind in kinds]
        found[split] = next((group for group in groups if group), [])
    if any(len(group) != 1 for group in found.values()):
        listed = ", ".join(str(path.relative_to(root)) for path in files)
        raise DataError(f"{root} needs one file named train and one named val, or a single file; it has {listed}")
    return {split: group[0] for split, group in found.items()}


def image_folder(names: list[str], path: Path, root: Path) -> Path:
    """Where the first of the images that is found lies; else where they are expected."""
    if path.name == BESIDE:
        return path.parent
    name, kinds = _about(path), splits_within(path.stem)
    places = [root / name, root / "images" / name]
    for folder in (root, root / "images"):
        if folder.is_dir():
            places += [child for child in folders_in(folder) if kinds and {split_of(child.name)} == kinds]
    places += [root / "images", root, path.parent]
    return next((place for file in names[:100] for place in places if is_file(located(place, file))), places[0])


def located(folder: Path, name: str) -> Path:
    """The file of this name, which may have Windows' backslashes."""
    return folder / posix(name) if "\\" in name and is_file(folder / posix(name)) else folder / name


def posix(name: str) -> PurePosixPath:
    """A relative path with slashes or backslashes."""
    return PurePosixPath(name.replace("\\", "/"))


def _about(path: Path) -> str:
    """The text that names a file's split: its folder's name, or its own name without `instances_`."""
    return path.parent.name if path.name == BESIDE else path.stem.removeprefix("instances_")
