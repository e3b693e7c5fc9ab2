"""Sequences that make their items when asked for them, so that millions of images cost arrays and not objects."""

from abc import abstractmethod
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from itertools import accumulate
from operator import index as as_index
from typing import Any, Generic, TypeVar, overload

import numpy as np

T = TypeVar("T")


class Lazy(Sequence[T], Generic[T]):
    """A sequence given by its length and by how to make the item at a place."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def item(self, place: int) -> T:
        """The item at a place from 0 to the length."""

    @overload
    def __getitem__(self, index: int) -> T: ...

    @overload
    def __getitem__(self, index: slice) -> "Picked[T]": ...

    def __getitem__(self, index: int | slice) -> "T | Picked[T]":
        if isinstance(index, slice):
            return Picked(self, np.arange(len(self))[index])
        place = as_index(index) + (len(self) if index < 0 else 0)
        if not 0 <= place < len(self):
            raise IndexError(f"no item {index} among {len(self)}")
        return self.item(place)


class Picked(Lazy[T]):
    """Some of another sequence's items, in an order of their own."""

    def __init__(self, whole: Sequence[T], places: np.ndarray) -> None:
        self.whole = whole
        self.places = places

    def __len__(self) -> int:
        return len(self.places)

    def item(self, place: int) -> T:
        return self.whole[int(self.places[place])]


class Joined(Lazy[T]):
    """The items of several sequences, one after another."""

    def __init__(self, parts: Sequence[Sequence[T]]) -> None:
        self.parts = parts
        self.ends = list(accumulate(map(len, parts)))

    def __len__(self) -> int:
        return self.ends[-1] if self.ends else 0

    def item(self, place: int) -> T:
        part = bisect_right(self.ends, place)
        return self.parts[part][place - (self.ends[part - 1] if part else 0)]


class Texts(Lazy[str]):
    """Short texts as one piece of bytes."""

    def __init__(self, texts: Iterable[str]) -> None:
        encoded = [text.encode(errors="surrogatepass") for text in texts]
        self.data = b"".join(encoded)
        self.ends = np.cumsum([0, *map(len, encoded)])

    def __len__(self) -> int:
        return len(self.ends) - 1

    def item(self, place: int) -> str:
        return self.data[self.ends[place] : self.ends[place + 1]].decode(errors="surrogatepass")


def pick(items: Any, places: Sequence[int]) -> Any:
    """Those items: an array's as an array, a list's as a list, a lazy sequence's as a lazy sequence."""
    if isinstance(items, np.ndarray):
        return items[np.asarray(places, np.int64)]
    if isinstance(items, Lazy):
        return Picked(items, np.asarray(places, np.int64))
    return [items[place] for place in places]


def join(*parts: Any) -> Any:
    """The items of all, as `pick` gives them."""
    if all(isinstance(part, np.ndarray) for part in parts):
        return np.concatenate(parts)
    if any(isinstance(part, Lazy) for part in parts):
        return Joined(parts)
    return [item for part in parts for item in part]
