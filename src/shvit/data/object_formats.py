"""Open datasets with boxes and masks in any known format. A new format is one file and one row of `OBJECT_FORMATS`."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from .coco import CocoDataset, open_coco
from .coco_files import has_train_file, is_annotations
from .dataset import DrawnBy
from .folders import find_coco
from .voc import find_voc, open_voc
from .yolo import find_yolo, open_yolo

OBJECT_FORMATS: tuple[tuple[Callable[[Path], Any], Callable[..., CocoDataset]], ...] = (
    (find_yolo, open_yolo),
    (find_voc, open_voc),
)
"""For each format besides COCO: a function that returns the layout of a dataset, or None if it has another format; and
a function that opens a dataset, given this layout and the arguments of `open_objects`."""


def open_objects(data: str | Path, seed: int = 0, val_share: float = 0.2, drawn_by: DrawnBy = "hash") -> CocoDataset:
    """Open a dataset in the format COCO (see `open_coco`), YOLO or Pascal VOC.

    Args:
        data: A folder, the YAML file of a YOLO dataset, or a COCO annotation file.
        seed, val_share, drawn_by: As in `open_source`.

    Raises:
        DataError: The data has none of these formats, or cannot be used.
    """
    path = Path(data)
    root = find_coco(path)
    # files with COCO's names come first, but other JSON files may be anything
    if not is_annotations(path) and (root is None or not has_train_file(root)):
        for find, open_layout in OBJECT_FORMATS:
            if layout := find(path):
                return open_layout(layout, data, seed, val_share, drawn_by)
    return open_coco(data, seed, val_share, drawn_by)


def has_objects(data: str | Path) -> bool:
    """Whether data has a format with boxes or masks. Raises DataError for an unusable YAML file."""
    path = Path(data)
    return is_coco(path) or any(find(path) for find, _ in OBJECT_FORMATS)


def is_coco(path: Path) -> bool:
    """Whether a path is a COCO annotation file, or a folder with one."""
    return is_annotations(path) or find_coco(path) is not None
