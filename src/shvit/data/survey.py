"""The contents and problems of a dataset, for `shvit info DATA`."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import counted
from ..redact import redacted
from .coco import MEDIUM, NOTHING, SMALL, CocoSplit
from .dataset import Split, shared_files
from .image_file import BadImage
from .letterbox import open_as
from .loader import draw_some, probe
from .object_formats import has_objects, open_objects
from .sources import open_source
from .splits import SPLIT_ADJECTIVES

SAMPLED = 512
"""Maximum number of images of each split that are decoded, to find image sizes and bad images."""


def survey(data: str | Path, seed: int = 0, val_share: float = 0.2) -> dict[str, Any]:
    """Describe a dataset that `shvit train` accepts: classes, counts, sizes and problems.

    Args:
        data: Anything that `open_source` or `open_objects` opens.
        seed, val_share: For drawing validation images, as in `open_source`. `seed` also selects the images to decode.

    Returns:
        A dict with the keys `data`; `task` (`detect` for data with boxes, which may also have masks);
        `drawn` (whether validation images were drawn); `classes` (for each class: its name, and its numbers of images
        or objects in `train`, `val` and, if there is a test split, `test`); `splits` (counts, and sizes in pixels); and
        `problems` (lines of text).

    Raises:
        DataError: The data does not exist, or none of it can be used.
    """
    if has_objects(data):
        task, describe, dataset, shared = "detect", _of_objects, open_objects(data, seed, val_share), {}
    else:
        task, describe, dataset = "classify", _of_images, open_source(data, seed, val_share)
        shared = shared_files(dataset)
    splits: dict[str, Any] = {"train": dataset.train, "val": dataset.val}
    if dataset.test is not None:
        splits["test"] = dataset.test
    parts = {name: describe(split, seed) for name, split in splits.items()}
    counts = {split: np.bincount(part.labels, minlength=len(dataset.classes)) for split, part in parts.items()}
    return {
        "data": redacted(str(data)),
        "task": task,
        "drawn": dataset.drawn,
        "classes": [
            {"name": name, **{split: int(numbers[label]) for split, numbers in counts.items()}}
            for label, name in enumerate(dataset.classes)
        ],
        "splits": {split: part.facts for split, part in parts.items()},
        "problems": [
            *dataset.warnings,
            *(f"{split}: {line}" for split, part in parts.items() for line in part.problems),
            *(
                f"{counted(len(files), f'{SPLIT_ADJECTIVES[other]} image')} also in the {SPLIT_ADJECTIVES[one]} split, "
                f"such as {files[0][1]}"
                for (one, other), files in shared.items()
            ),
        ],
    }


@dataclass(frozen=True)
class _Part:
    """The description of one split."""

    facts: dict[str, Any]
    labels: np.ndarray
    """Labels of the images, or of the objects except crowds."""
    problems: list[str]


def _of_objects(split: CocoSplit, seed: int) -> _Part:
    """Count images, crowds, masks, and objects by COCO's size classes. Image sizes are those in the annotations."""
    usable = [index for index in range(len(split)) if index not in split.bad]
    objects = [split.objects[index] for index in usable]
    areas, labels = (
        np.concatenate([getattr(NOTHING, name), *(getattr(one, name)[~one.crowd] for one in objects)])
        for name in ("areas", "labels")
    )
    drawn = sorted(random.Random(seed).sample(usable, min(SAMPLED, len(usable))))
    sizes, bad = probe(split, drawn)
    problems = _unusable(bad, drawn, len(usable), lambda index: split.images[index].name)
    turned = [index for index, size in sizes.items() if size != tuple(split.sizes[index])]
    other = [index for index in turned if not _is_stored_as_annotated(split, index)]
    if other:
        height, width = sizes[other[0]]
        size = f"{split.images[other[0]].name}: {width}x{height}"
        problems.append(f"{counted(len(other), 'image')} not of the size that the annotations state, such as {size}")
    if stored := [index for index in turned if index not in other]:
        problems.append(
            f"{counted(len(stored), 'image')} annotated as stored: the EXIF orientation is ignored, such as in "
            f"{split.images[stored[0]].name}"
        )
    facts = {
        "images": len(usable),
        "unusable": len(split.bad) + len(bad),
        "looked_at": len(drawn),
        "without_objects": sum(not len(one) for one in objects),
        "objects": len(areas),
        "small": int((areas < SMALL).sum()),
        "medium": int(((areas >= SMALL) & (areas < MEDIUM)).sum()),
        "large": int((areas >= MEDIUM).sum()),
        "crowds": sum(int(one.crowd.sum()) for one in objects),
        "with_mask": sum(segment is not None for one in objects for segment in one.segments),
        **_sizes(split.sizes[usable]),
    }
    return _Part(facts, labels, problems)


def _is_stored_as_annotated(split: CocoSplit, index: int) -> bool:
    """Whether an image has the size of its annotations before its EXIF orientation is applied."""
    height, width = split.sizes[index].tolist()
    try:
        open_as(split.images[index], (height, width))
    except BadImage:
        return False
    return True


def _of_images(split: Split, seed: int) -> _Part:
    """Count all images, and find the sizes of the images that are decoded."""
    drawn = draw_some(split, SAMPLED, seed)
    sizes, bad = probe(split, drawn)
    bad |= split.bad
    labels = np.asarray(split.labels, np.int64)
    sides = _sizes(np.array(list(sizes.values())))
    facts = {"images": len(split), "unusable": len(bad), "looked_at": len(drawn), **sides}
    return _Part(facts, labels[labels >= 0], _unusable(bad, drawn, len(split), lambda index: split.names[index]))


def _unusable(bad: dict[int, str], looked_at: Sequence[int], images: int, name: Callable[[int], str]) -> list[str]:
    """A line about bad images, if there are any."""
    if not bad:
        return []
    index, reason = next(iter(bad.items()))
    seen = f" (of {len(looked_at):,} that were decoded)" if len(looked_at) < images else ""
    return [f"{counted(len(bad), 'image')} cannot be used{seen}, such as {name(index)}: {reason}"]


def _sizes(sizes: np.ndarray) -> dict[str, Any]:
    """Minimum, median and maximum of height and width in pixels."""
    if not len(sizes):
        return {"height": None, "width": None}
    return {
        name: [int(column.min()), int(np.median(column)), int(column.max())]
        for name, column in zip(("height", "width"), sizes.T, strict=True)
    }
