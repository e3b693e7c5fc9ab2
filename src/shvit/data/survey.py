"""What a data set holds and what is amiss with it, as plain data: to be looked at before training."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..redact import redacted
from .coco import MEDIUM, NOTHING, SMALL, CocoSplit, is_coco, open_coco
from .dataset import Dataset, Split, duplicates
from .decode import decode
from .image_file import BadImage
from .letterbox import open_as
from .loader import draw_some
from .sources import open_source

SAMPLED = 512
"""Images of each split that are decoded, for their sizes and to find bad ones."""


def survey(data: str | Path, seed: int = 0, val_share: float = 0.2) -> dict[str, Any]:
    """Classes, counts, sizes and problems of what `shvit train` takes as data.

    Args:
        data: As `shvit.data.sources.open_source` takes it, or a COCO folder.
        seed: Draws the validation images where the data is one pile, and the images that are looked at.
        val_share: Share of the validation images, where they are drawn.

    Returns:
        data, task (`detect` for COCO folders, which serve segmentation too), drawn, classes (a row for each: name,
        train, val: its images, or its objects), splits (counts, and sizes in pixels), problems (lines).

    Raises:
        DataError: There is no such data, or it is not usable as a whole.
    """
    if Path(data).is_dir() and is_coco(Path(data)):
        task, source = "detect", open_coco(data, seed, val_share)
        found = {"train": _of_scenes(source.train, seed), "val": _of_scenes(source.val, seed)}
        shared = []
    else:
        task, source = "classify", open_source(data, seed, val_share)
        found = {"train": _of_images(source.train, seed), "val": _of_images(source.val, seed)}
        shared = _shared(source)
    problems = [*source.warnings, *(f"{split}: {line}" for split, part in found.items() for line in part.problems)]
    counts = {split: np.bincount(part.labels, minlength=len(source.classes)) for split, part in found.items()}
    classes = [
        {"name": name, **{split: int(numbers[place]) for split, numbers in counts.items()}}
        for place, name in enumerate(source.classes)
    ]
    splits = {split: part.facts for split, part in found.items()}
    about = {"data": redacted(str(data)), "task": task, "drawn": source.drawn}
    return {**about, "classes": classes, "splits": splits, "problems": problems + shared}


@dataclass(frozen=True)
class _Part:
    """A split."""

    facts: dict[str, Any]
    labels: np.ndarray
    """Of its images, or of its objects but crowds."""
    problems: list[str]


def _of_scenes(scenes: CocoSplit, seed: int) -> _Part:
    """Images, objects by size as COCO counts them, crowds, masks, and sizes in pixels by the annotations."""
    usable = [place for place in range(len(scenes)) if place not in scenes.bad]
    objects = [scenes.objects[place] for place in usable]
    areas, labels = (
        np.concatenate([getattr(NOTHING, name), *(getattr(one, name)[~one.crowd] for one in objects)])
        for name in ("areas", "labels")
    )
    drawn = sorted(random.Random(seed).sample(usable, min(SAMPLED, len(usable))))
    sizes, bad = _look(drawn, lambda place: scenes.images[place])
    other = {place: size for place, size in sizes.items() if not _is_of_size(scenes, place, size)}
    problems = _unusable(bad, drawn, len(usable), lambda place: scenes.images[place].name)
    if other:
        place, (height, width) = next(iter(other.items()))
        problems.append(
            f"{len(other):,} images have another size than their annotations say, such as {scenes.images[place].name}: "
            f"{width}x{height}"
        )
    stored = [place for place, size in sizes.items() if place not in other and size != tuple(scenes.sizes[place])]
    if stored:
        problems.append(
            f"{len(stored):,} images are annotated and read as stored, not turned as their EXIF data say, such as "
            f"{scenes.images[stored[0]].name}"
        )
    facts = {
        "images": len(usable),
        "unusable": len(scenes.bad) + len(bad),
        "looked_at": len(drawn),
        "without_objects": sum(not len(one) for one in objects),
        "objects": len(areas),
        "small": int((areas < SMALL).sum()),
        "medium": int(((areas >= SMALL) & (areas < MEDIUM)).sum()),
        "large": int((areas >= MEDIUM).sum()),
        "crowds": sum(int(one.crowd.sum()) for one in objects),
        "with_mask": sum(segment is not None for one in objects for segment in one.segments),
        **_sizes(scenes.sizes[usable]),
    }
    return _Part(facts, labels, problems)


def _is_of_size(scenes: CocoSplit, place: int, seen: tuple[int, int]) -> bool:
    """Whether an image, upright or as it is stored, is of the size that its annotations are for."""
    height, width = scenes.sizes[place].tolist()
    if seen == (height, width):
        return True
    try:
        open_as(scenes.images[place], (height, width))
    except BadImage:
        return False
    return True


def _of_images(split: Split, seed: int) -> _Part:
    """Images, and the sizes in pixels of those that were looked at."""
    drawn = draw_some(split, SAMPLED, seed)
    sizes, bad = _look(drawn, split.source)
    bad |= split.bad
    labels = np.asarray(split.labels, np.int64)
    facts = {
        "images": len(split),
        "unusable": len(bad),
        "looked_at": len(drawn),
        **_sizes(np.array(list(sizes.values()))),
    }
    return _Part(facts, labels[labels >= 0], _unusable(bad, drawn, len(split), lambda place: split.names[place]))


def _look(places: Sequence[int], source: Callable[[int], Any]) -> tuple[dict[int, tuple[int, int]], dict[int, str]]:
    """Height and width in pixels of these images; and why some cannot be used."""
    sizes, bad = {}, {}
    for place in places:
        try:
            image = decode(source(place))
        except BadImage as error:
            bad[place] = str(error)
        else:
            sizes[place] = image.height, image.width
    return sizes, bad


def _unusable(bad: dict[int, str], looked_at: Sequence[int], images: int, name: Callable[[int], str]) -> list[str]:
    """A line, where there are any."""
    if not bad:
        return []
    place, reason = next(iter(bad.items()))
    seen = f" (of {len(looked_at):,} that were looked at)" if len(looked_at) < images else ""
    return [f"{len(bad):,} images cannot be used{seen}, such as {name(place)}: {reason}"]


def _sizes(sizes: np.ndarray) -> dict[str, Any]:
    """Least, median and greatest height and width in pixels."""
    if not len(sizes):
        return {"height": None, "width": None}
    return {
        name: [int(column.min()), int(np.median(column)), int(column.max())]
        for name, column in zip(("height", "width"), sizes.T, strict=True)
    }


def _shared(source: Dataset) -> list[str]:
    groups = duplicates(source.train, source.val)
    if not groups:
        return []
    count = sum(len(val) for _, val in groups)
    return [f"{count:,} validation images are training images too, such as {groups[0][1][0]}"]
