"""Find the COCO annotation files in a folder, the split of each file, and the images that each file lists."""

import re
from pathlib import Path, PurePosixPath

from ..errors import DataError
from .splits import TEST_NAMES, TRAIN_NAMES, VAL_NAMES, split_of, splits_within
from .walk import folders_in, is_file

ROBOFLOW = "_annotations.coco.json"
"""Name of the annotation file that Roboflow writes into each split's folder."""
OTHERS = ("captions", "panoptic", "stuff", "image_info")
"""COCO files whose names begin with one of these words contain no objects."""
HEAD = 1 << 16
"""Number of bytes that are read to recognize a file."""


def annotation_files(root: Path) -> list[Path]:
    """The annotation files with COCO's or Roboflow's names; if there are none, other COCO files in `annotations`, or
    directly in `root`."""
    if named := _named(root):
        return named
    for pattern in ("[aA]nnotations/*.json", "*.json"):
        files = (path for path in sorted(root.glob(pattern)) if not path.name.lower().startswith(OTHERS))
        if found := [path for path in files if is_annotations(path)]:
            return found
    return []


def has_train_file(root: Path) -> bool:
    """Whether there is a file with training annotations that has COCO's or Roboflow's name."""
    kinds = (splits_within(_about(path)) for path in _named(root))
    return any(not named or "train" in named for named in kinds)


def _named(root: Path) -> list[Path]:
    return [*sorted(root.glob("annotations/instances_*.json")), *sorted(root.glob(f"*/{ROBOFLOW}"))]


def is_annotations(path: Path) -> bool:
    """Whether a file looks like COCO annotations: its list of images or annotations begins in the first 64 KiB.

    In a larger file, the list of categories may precede them. Label Studio's `notes.json` has nothing but categories.
    """
    if path.suffix.lower() != ".json" or not path.is_file():
        return False
    with path.open("rb") as file:
        head = file.read(HEAD)
    lists = rb"images|annotations|categories" if len(head) == HEAD else rb"images|annotations"
    return head.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"{") and bool(
        re.search(rb'"(' + lists + rb')"\s*:\s*\[', head)
    )


def files_by_split(root: Path) -> dict[str, Path]:
    """The annotation files by split: `train`, `val` and `test`; or `all` for a single file, unless its name has a
    split other than train.

    `val` or `test` may be missing.

    Raises:
        DataError: The split of a file is ambiguous.
    """
    files = annotation_files(root)
    if len(files) == 1:
        named = splits_within(_about(files[0]))
        return {"val" if named == {"val"} else "test" if named == {"test"} else "all": files[0]}
    by_split: dict[str, list[Path]] = {}
    for split, names in (("train", TRAIN_NAMES), ("val", VAL_NAMES), ("test", TEST_NAMES)):
        groups = [[path for path in files if _about(path).lower().startswith(name)] for name in names]
        groups.append([path for path in files if splits_within(_about(path)) == {split}])
        by_split[split] = next(filter(None, groups), [])
    train, val, test = map(len, by_split.values())
    trainable = train == 1 and (val or test) == 1
    if not trainable and not (val == 1 and len(files) == val + test):
        listed = ", ".join(str(path.relative_to(root)) for path in files)
        raise DataError(f"{root} must have one file named train and one named val, or a single file; got {listed}")
    return {split: group[0] for split, group in by_split.items() if len(group) == 1}


def image_folder(names: list[str], path: Path, root: Path) -> Path:
    """The folder that contains any of the first 100 listed images; if no folder does, COCO's usual folder."""
    if path.name == ROBOFLOW:
        return path.parent
    name, kinds = _about(path), splits_within(path.stem)
    folders = [root / name, root / "images" / name]
    for folder in (root, root / "images"):
        if folder.is_dir():
            folders += [child for child in folders_in(folder) if kinds and {split_of(child.name)} == kinds]
    folders += [root / "images", root, path.parent]
    return next((each for file in names[:100] for each in folders if is_file(located(each, file))), folders[0])


def located(folder: Path, name: str) -> Path:
    """The path of the file `name`, which may contain Windows' backslashes."""
    return folder / posix(name) if "\\" in name and is_file(folder / posix(name)) else folder / name


def posix(name: str) -> PurePosixPath:
    """Parse a relative path that is written with slashes or backslashes."""
    return PurePosixPath(name.replace("\\", "/"))


def _about(path: Path) -> str:
    """The part of a path that names the split: the folder (Roboflow), or the file's name without `instances_`."""
    return path.parent.name if path.name == ROBOFLOW else path.stem.removeprefix("instances_")
