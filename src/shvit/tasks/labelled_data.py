"""The labelled images that a trained model is evaluated on."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from ..classnames import match_classes
from ..data.coco import CocoDataset, CocoSplit
from ..data.dataset import Dataset, Holdout, Split, drawn_before
from ..data.identity import TrainedOn
from ..errors import InputError, counted, few, notice
from . import Described, task_of

Which = Literal["auto", "train", "val", "test", "all"]


@dataclass(frozen=True)
class Chosen:
    """The images that a model is evaluated on; see `choose_split`."""

    split: str
    images: Split | CocoSplit
    left_out: int = 0
    """Number of images of the split that are left out because the model was trained on them."""
    trained_on: int = 0
    """Number of evaluated images that the model was trained on. 0 unless the split is `train` or `all`."""


def open_as_trained(data: str | Path, model: Described, which: Which = "auto") -> Any:
    """Open a dataset for the model's task. A dataset without a validation split is split as in the model's training.

    If `which` is `test`, a test split is always kept apart, even if the model's training used it for validation. In
    this case, a notice says so.

    Raises:
        InputError: There is no such dataset.
    """
    recipe = model.provenance.get("recipe", {})
    options = {key: recipe[key] for key in ("seed", "val_share") if key in recipe}
    drawn_by = model.provenance.get("drawn_by", drawn_before(recipe))
    source = task_of(model).open(data, **options, drawn_by=Holdout.by if which == "test" else drawn_by)
    for text in source.warnings:
        notice(text)
    if which == "test" and drawn_by != Holdout.by and source.drawn and source.test is not None:
        notice(
            f"an earlier version of shvit trained this model: if it trained on {source.name}, it used the test images "
            "for validation, and their accuracy may be too high"
        )
    return source


def choose_split(model: Described, source: Dataset | CocoDataset, which: Which = "auto") -> Chosen:
    """Choose the images to evaluate a model on. A notice states how many of them were used in training.

    Args:
        model: The model. Its provenance identifies its training images by their content.
        source: Labelled images.
        which: The split: `val`, `train`, `test` or `all` (training and validation images). `auto` is `all` if the
            dataset has no splits and the model was not trained on it, otherwise `val`. `auto`, `val` and `test` leave
            out images that were used in training.

    Raises:
        InputError: There is no such split, it has no images, or all of its images were used in training.
    """
    if which not in get_args(Which):
        raise InputError(f"unknown split {which!r}: choose from {', '.join(get_args(Which))}")
    split, known, splits = which, TrainedOn.recorded(model.provenance), source.splits()
    if which == "auto":
        trained_here = model.provenance.get("data_fingerprint") == source.fingerprint
        given = trained_here or not source.drawn or source.test is not None
        split = "val" if given and "val" in splits else "all"
    images = source.whole() if split == "all" else splits.get(split)
    if not images:
        only = "; evaluate its test images with --split test" if splits.keys() == {"test"} else ""
        raise InputError(f"{source.name} has no images in its split {split!r}; it has {few(list(splits))}{only}")
    count = len(images)
    if known is None:
        if which == "auto" and split == "all" and "data_fingerprint" in model.provenance:
            notice(
                "the model file does not name its training images, since an earlier version of shvit wrote it: some of "
                f"them may be among the {counted(count, 'evaluated image')}"
            )
        return Chosen(split, images)
    used = known.among(images.images)
    if not (number := int(used.sum())):
        return Chosen(split, images)
    if which in ("train", "all"):
        notice(f"{number:,} of {counted(count, 'image')} were used in training")
        return Chosen(split, images, 0, number)
    if number == count:
        raise InputError(
            f"all {count:,} images of {source.name}, split {split!r}, were used in training this model: evaluate it on "
            "other images, or use --split all to evaluate it on these"
        )
    notice(f"{number:,} of {count:,} images were used in training and are left out")
    return Chosen(split, images.subset(np.flatnonzero(~used).tolist()), number)


def relabel_for(model: Described, source: Dataset | CocoDataset, split: Split | CocoSplit) -> Split | CocoSplit:
    """The same images, with labels that index the model's classes. Raises InputError like `match_classes`."""
    return split.relabelled(match_classes(source.classes, model.classes))
