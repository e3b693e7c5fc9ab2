"""Recognize the names of splits in folder names, file names and CSV columns, and on the Hugging Face hub."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Int

from .sequences import Files

Kind = Literal["train", "val", "test"]
TRAIN_NAMES = ("train", "training")
VAL_NAMES = ("val", "validation", "valid")
TEST_NAMES = ("test", "testing")
"""Exact names of split folders. If several folders of one split exist, the first in this order is used."""
KIND_OF: dict[str, Kind] = {
    **dict.fromkeys((*TRAIN_NAMES, "trn"), "train"),
    **dict.fromkeys(("val", "validation", "valid", "dev", "devel", "development", "eval", "evaluation"), "val"),
    **dict.fromkeys(("test", "testing", "tst"), "test"),
}
"""The split that a word stands for."""
SPLIT_ADJECTIVES: dict[str, str] = {"train": "training", "val": "validation", "test": "test"}
"""How messages name the images of a split."""
FILLER = re.compile("sets?|seg|split|data|dataset|images?|imgs?|photos|pictures|folder")
"""Words that may be combined with the name of a split, as in seg_train, training_set and train_images."""


@dataclass(frozen=True)
class Labelled:
    """Image files with a class each."""

    files: Files
    classes: Sequence[str]
    """Names of classes, each once. A class may have no files."""
    numbers: Int[np.ndarray, " n"]
    """The class of each file, as an index of `classes`."""

    @classmethod
    def of(cls, rows: Iterable[tuple[Path, str]]) -> "Labelled":
        """Files and the names of their classes."""
        rows, classes = list(rows), dict[str, int]()
        numbers = [classes.setdefault(name, len(classes)) for _, name in rows]
        return cls(Files(path for path, _ in rows), tuple(classes), np.asarray(numbers, np.int32))

    def __len__(self) -> int:
        return len(self.files)

    def present(self) -> set[str]:
        """Names of the classes that have files."""
        return {self.classes[number] for number in np.unique(self.numbers)}

    def folders(self) -> list[tuple[Path, str]]:
        """Each folder with the name of each class of its files, sorted."""
        pairs = np.unique(np.stack([self.files.numbers.astype(np.int64), self.numbers]), axis=1)
        return sorted((Path(self.files.folders[folder]), self.classes[number]) for folder, number in pairs.T)


@dataclass(frozen=True)
class Listing:
    """Images and their class names, by split: `train`, `val` and `test`; or `all` if the data has no splits."""

    splits: dict[str, Labelled]
    warnings: tuple[str, ...] = ()
    """Warnings about unused files and ambiguous names, one line each."""


def split_of(name: str) -> Kind | None:
    """The split that a folder's name or a CSV cell stands for; None if it stands for no split."""
    words = [word for word in _words(name) if not FILLER.fullmatch(word)]
    return KIND_OF.get(words[0]) if len(words) == 1 else None


def splits_within(name: str) -> set[Kind]:
    """All splits that a file name mentions, such as `train` in person_keypoints_train2017.json."""
    return {KIND_OF[word] for word in _words(name) if word in KIND_OF}


def _words(name: str) -> list[str]:
    """The words of a name in lower case, without numbers; trainset, valset and TrainImages are two words each."""
    words = []
    for part in re.findall("[a-z]+", re.sub("(?<=[a-z])(?=[A-Z])", " ", name).lower()):
        cut = next((len(word) for word in KIND_OF if part.startswith(word) and FILLER.fullmatch(part, len(word))), 0)
        words += [part[:cut], part[cut:]] if cut else [part]
    return words
