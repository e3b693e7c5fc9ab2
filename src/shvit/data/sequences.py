"""Lazy sequences. Items are created on access, so millions of images are stored as arrays rather than as objects."""

from abc import abstractmethod
from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate
from operator import index as as_index
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
        encoded = [text.encode(errors="surrogatepass") for text in texts]
        self.data = b"".join(encoded)
        self.ends = np.cumsum([0, *map(len, encoded)])

    def __len__(self) -> int:
        return len(self.ends) - 1

    def item(self, index: int) -> str:
        return self.data[self.ends[index] : self.ends[index + 1]].decode(errors="surrogatepass")


def pick(items: Any, indices: Sequence[int]) -> Any:
    """The items with these indices: an array for an array, a lazy sequence for a lazy one, otherwise a list."""
    if isinstance(items, np.ndarray):
        return items[np.asarray(indices, np.int64)]
    if isinstance(items, Lazy):
        return Picked(items, np.asarray(indices, np.int64))
    return [items[index] for index in indices]


def join(*parts: Any) -> Any:
    """The items of all sequences: an array for arrays, a lazy sequence if any sequence is lazy, otherwise a list."""
    if all(isinstance(part, np.ndarray) for part in parts):
        return np.concatenate(parts)
    if any(isinstance(part, Lazy) for part in parts):
        return Joined(parts)
    return [item for part in parts for item in part]
