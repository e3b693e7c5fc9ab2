"""Image files and their classes, as folders and CSV files state them."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int

from .sequences import Files


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
        return {self.classes[int(number)] for number in np.unique(self.numbers)}

    def folders(self) -> list[tuple[Path, str]]:
        """Each folder with the name of each class of its files, sorted."""
        pairs = np.unique(np.stack([self.files.numbers.astype(np.int64), self.numbers]), axis=1)
        return sorted((Path(self.files.folders[folder]), self.classes[int(number)]) for folder, number in pairs.T)


@dataclass(frozen=True)
class Listing:
    """Images and their class names, by split: `train`, `val` and `test`; or `all` if the data has no splits."""

    splits: dict[str, Labelled]
    warnings: tuple[str, ...] = ()
    """Warnings about unused files and ambiguous names, one line each."""
