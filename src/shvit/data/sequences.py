"""Lazy sequences. Items are created on access, so millions of images are stored as arrays rather than as objects.

Forked worker processes share these arrays. They could not share Python objects for long: Python writes a reference
count into each object that is used, and the written memory is copied.
"""

from abc import abstractmethod
from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate
from operator import index as as_index
from pathlib import Path
from typing import Any, Generic, TypeVar, overload

import numpy as np

T = TypeVar("T")


class Lazy(Sequence[T], Generic[T]):
    """A sequence defined by its length and by a method that creates an item."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def item(self, index: int) -> T:
        """The item at `index`, which is at least 0 and less than the length."""

    @overload
    def __getitem__(self, index: int) -> T: ...

    @overload
    def __getitem__(self, index: slice) -> "Picked[T]": ...

    def __getitem__(self, index: int | slice) -> "T | Picked[T]":
        if isinstance(index, slice):
            return Picked(self, np.arange(len(self))[index])
        positive = as_index(index) + (len(self) if index < 0 else 0)
        if not 0 <= positive < len(self):
            raise IndexError(f"index {index} is out of range for {len(self)} items")
        return self.item(positive)


class Picked(Lazy[T]):
    """Items of another sequence, selected by indices."""

    def __init__(self, whole: Sequence[T], indices: np.ndarray) -> None:
        self.whole = whole
        self.indices = indices

    def __len__(self) -> int:
        return len(self.indices)

    def item(self, index: int) -> T:
        return self.whole[int(self.indices[index])]


class Joined(Lazy[T]):
    """Several sequences, concatenated."""

    def __init__(self, parts: Sequence[Sequence[T]]) -> None:
        self.parts = parts
        self.ends = list(accumulate(map(len, parts)))

    def __len__(self) -> int:
        return self.ends[-1] if self.ends else 0

    def item(self, index: int) -> T:
        part = bisect_right(self.ends, index)
        return self.parts[part][index - (self.ends[part - 1] if part else 0)]


class Computed(Lazy[T]):
    """Items that a function computes from their indices."""

    def __init__(self, length: int, item: Callable[[int], T]) -> None:
        self.length = length
        self.compute = item

    def __len__(self) -> int:
        return self.length

    def item(self, index: int) -> T:
        return self.compute(index)


class Texts(Lazy[str]):
    """Short texts, stored as one bytes object."""

    def __init__(self, texts: Iterable[str]) -> None:
        data, ends = bytearray(), array("q", [0])
        for text in texts:
            data += text.encode(errors="surrogatepass")
            ends.append(len(data))
        self.data = bytes(data)
        self.ends = _small(ends)

    def __len__(self) -> int:
        return len(self.ends) - 1

    def item(self, index: int) -> str:
        return self.data[self.ends[index] : self.ends[index + 1]].decode(errors="surrogatepass")


class Files(Lazy[Path]):
    """Paths of files, stored as a table of folders and the names of the files in them."""

    def __init__(self, paths: Iterable[Path]) -> None:
        folders: dict[str, int] = {}
        numbers = array("q")

        def names() -> Iterable[str]:
            for path in paths:
                numbers.append(folders.setdefault(str(path.parent), len(folders)))
                yield path.name

        self.names = Texts(names())
        self.folders = tuple(folders)
        self.numbers = _small(numbers)
        """The folder of each file, as an index of `folders`."""

    def __len__(self) -> int:
        return len(self.numbers)

    def item(self, index: int) -> Path:
        return Path(self.folders[self.numbers[index]], self.names.item(index))

    def texts(self) -> Lazy[str]:
        """The paths as texts."""
        return Computed(len(self), self._text)

    def _text(self, index: int) -> str:
        return str(self.item(index))


def _small(numbers: "array[int]") -> np.ndarray:
    """An array of the smallest unsigned type that holds all the numbers, which are at least 0."""
    values = np.frombuffer(numbers, np.int64) if len(numbers) else np.empty(0, np.int64)
    return values.astype(np.min_scalar_type(values.max(initial=0)))


def pick(items: Any, indices: np.ndarray) -> Any:
    """The items with these indices: an array for an array, a lazy sequence for a lazy one, otherwise a list."""
    if isinstance(items, np.ndarray):
        return items[indices]
    if isinstance(items, Picked):
        return Picked(items.whole, items.indices[indices])
    if isinstance(items, Lazy):
        return Picked(items, indices)
    return [items[index] for index in indices.tolist()]


def join(*parts: Any) -> Any:
    """The items of all sequences: an array for arrays, a lazy sequence if any sequence is lazy, otherwise a list."""
    if all(isinstance(part, np.ndarray) for part in parts):
        return np.concatenate(parts)
    if any(isinstance(part, Lazy) for part in parts):
        return Joined(parts)
    return [item for part in parts for item in part]
