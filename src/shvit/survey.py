"""What a data set holds and what is amiss with it, as plain data: to be looked at before training."""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .data.coco import MEDIUM, SMALL, Scenes, is_coco, open_coco
from .data.decode import BadImage, decode
from .data.sources import Source, Split, duplicates, open_source

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
    splits: dict[str, dict[str, Any]]
    if Path(data).is_dir() and is_coco(Path(data)):
        task, source = "detect", open_coco(data, seed, val_share)
        scenes = {"train": source.train, "val": source.val}
        splits = {name: _of_scenes(part) for name, part in scenes.items()}
        labels = {
            name: [int(label) for one in part.objects for label in one.labels[~one.crowd]]
            for name, part in scenes.items()
        }
        problems = list(source.warnings)
    else:
        task, source = "classify", open_source(data, seed, val_share)
        images = {"train": source.train, "val": source.val}
        looked_at = {name: _look(part, seed) for name, part in images.items()}
        splits = {name: looked_at[name][0] for name in images}
        labels = {name: [label for label in part.labels if label >= 0] for name, part in images.items()}
        problems = [*source.warnings, *(f"{name}: {line}" for name, (_, lines) in looked_at.items() for line in lines)]
        problems += _shared(source)
    count = len(source.classes)
    counts = {name: np.bincount(np.array(part, np.int64), minlength=count) for name, part in labels.items()}
    classes = [
        {"name": name, **{split: int(numbers[place]) for split, numbers in counts.items()}}
        for place, name in enumerate(source.classes)
    ]
    about = {"data": str(data), "task": task, "drawn": source.drawn}
    return {**about, "classes": classes, "splits": splits, "problems": problems}


def _of_scenes(scenes: Scenes) -> dict[str, Any]:
    """Images, objects by size as COCO counts them, crowds, masks, and sizes in pixels by the annotations."""
    usable = [place for place in range(len(scenes)) if place not in scenes.bad]
    objects = [scenes.objects[place] for place in usable]
    areas = np.concatenate([one.areas[~one.crowd] for one in objects] or [np.empty(0)])
    return {
        "images": len(usable),
        "unusable": len(scenes.bad),
        "without_objects": sum(not len(one) for one in objects),
        "objects": len(areas),
        "small": int((areas < SMALL).sum()),
        "medium": int(((areas >= SMALL) & (areas < MEDIUM)).sum()),
        "large": int((areas >= MEDIUM).sum()),
        "crowds": sum(int(one.crowd.sum()) for one in objects),
        "with_mask": sum(segment is not None for one in objects for segment in one.segments),
        **_sizes(scenes.sizes[usable]),
    }


def _look(split: Split, seed: int) -> tuple[dict[str, Any], list[str]]:
    """Images, and the sizes in pixels of those that were looked at; and what is amiss with these."""
    drawn = random.Random(seed).sample(range(len(split)), min(SAMPLED, len(split)))
    sizes, bad = [], dict(split.bad)
    for place in sorted(drawn):
        try:
            image = decode(split.source(place))
        except BadImage as error:
            bad[place] = str(error)
        else:
            sizes.append((image.height, image.width))
    problems = []
    if bad:
        place, reason = next(iter(bad.items()))
        seen = f" (of {len(drawn):,} that were looked at)" if len(drawn) < len(split) else ""
        problems.append(f"{len(bad):,} images cannot be used{seen}, such as {split.names[place]}: {reason}")
    facts = {"images": len(split), "unusable": len(bad), "looked_at": len(drawn), **_sizes(sizes)}
    return facts, problems


def _sizes(sizes: Sequence[tuple[int, int]] | np.ndarray) -> dict[str, Any]:
    """Least, median and greatest height and width in pixels."""
    if not len(sizes):
        return {"height": None, "width": None}
    columns = np.array(sizes).T
    return {
        name: [int(column.min()), int(np.median(column)), int(column.max())]
        for name, column in zip(("height", "width"), columns, strict=True)
    }


def _shared(source: Source) -> list[str]:
    pairs = duplicates(source.train, source.val)
    if not pairs:
        return []
    count = len({val for _, val in pairs})
    return [f"{count:,} validation images are training images too, such as {pairs[0][1]}"]
