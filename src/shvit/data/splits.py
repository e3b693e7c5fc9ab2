"""Names of splits, in names of folders and files, in CSV columns and on the hub."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Kind = Literal["train", "val", "test"]
TRAIN_NAMES = ("train", "training")
VAL_NAMES = ("val", "validation", "valid", "test")
"""Exact names of split folders. If several exist, the first in this order is used."""
_KINDS: dict[Kind, tuple[str, ...]] = {
    "train": (*TRAIN_NAMES, "trn"),
    "val": ("val", "validation", "valid", "dev", "devel", "development", "eval", "evaluation"),
    "test": ("test", "testing", "tst"),
}
WORDS: dict[str, Kind] = {word: kind for kind, words in _KINDS.items() for word in words}
BESIDE = {
    "set",
    "sets",
    "seg",
    "split",
    "data",
    "dataset",
    "image",
    "images",
    "img",
    "imgs",
    "photos",
    "pictures",
    "folder",
}
"""Words that may accompany a split's name in the name of a folder: seg_train, training_set, train_images."""


@dataclass(frozen=True)
class Listing:
    """Images and their class names, by split: `train` and `val`; or `all` if the data has no splits."""

    splits: dict[str, list[tuple[Path, str]]]
    warnings: tuple[str, ...] = ()
    """What was not used or is ambiguous, one line each."""


def split_of(name: str) -> Kind | None:
    """The split that the name of a folder or the text of a cell stands for; None for any other name."""
    kinds: list[Kind | None] = [WORDS.get(word) for word in _words(name) if word not in BESIDE]
    return kinds[0] if len(kinds) == 1 else None


def splits_within(name: str) -> set[Kind]:
    """All splits that a file's name mentions, such as person_keypoints_train2017.json."""
    return {WORDS[word] for word in _words(name) if word in WORDS}


def _words(name: str) -> list[str]:
    """The words of a name in lower case, without numbers; trainset, valset and TrainImages are two words each."""
    parts = re.findall("[a-z]+", re.sub("(?<=[a-z])(?=[A-Z])", " ", name).lower())
    return [word for part in parts for word in _halves(part)]


def _halves(part: str) -> list[str]:
    cut = next((len(word) for word in WORDS if part.startswith(word) and part[len(word) :] in BESIDE), 0)
    return [part[:cut], part[cut:]] if cut else [part]
