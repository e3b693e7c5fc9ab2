"""Datasets and splits in any file format: draw validation images, find duplicates and compute fingerprints."""

import hashlib
import random
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any, ClassVar, Generic, Literal, Protocol, Self, TypeVar

import numpy as np
from jaxtyping import Int64, UInt8
from torch import Tensor

from ..errors import DataError, counted, few
from ..files import check_regular
from ..redact import redacted
from .identity import BYTES, READERS, identities
from .image_file import MAX_BYTES, BadImage
from .sequences import join, pick
from .transforms import Reader

DrawnBy = Literal["hash", "content", "position"]
"""How validation images are drawn if there is no validation split. `hash`: by a hash of each image's content; a test
split is never used for validation. The others are those of earlier versions, whose runs and models keep their splits:
with both, a test split is used for validation; otherwise, `content` draws like `hash`, and `position` draws by each
image's index."""


class Stored(Protocol):
    """An image inside a larger file."""

    def read(self) -> bytes:
        """The bytes of the image file. Raises BadImage if they cannot be read."""
        ...

    def identity(self) -> int:
        """The identity of the image; see `identity.identity`."""
        ...


class Samples:
    """Images in a fixed order, each with its targets. Base class of `Split` and `CocoSplit`, which are dataclasses."""

    columns: ClassVar[tuple[str, ...]]
    """Names of the fields with one item per image. A field that is None is ignored."""
    images: Sequence[Any]
    names: Sequence[str]
    """Name of each image for reports, such as its path or `digits/17`."""
    shards: np.ndarray | None = None
    """Shard number of each image; None if the images are not stored in shards."""
    bad: Mapping[int, str]
    """Index of each image that is known to be unusable before it is read, and the reason why."""

    def __len__(self) -> int:
        return len(self.images)

    def example(self, index: int, read: Any) -> Any:
        """An image as `read` returns it, and its target. Raises BadImage."""
        raise NotImplementedError

    def source(self, index: int) -> Any:
        """The input for `decode`: a path, pixels or bytes. Raises BadImage if the image is known to be unusable."""
        if index in self.bad:
            raise BadImage(self.bad[index])
        image = self.images[index]
        return image if isinstance(image, Path | np.ndarray) else image.read()

    def subset(self, indices: Iterable[int]) -> Self:
        """The samples with these indices, in this order."""
        picked = np.array(list(indices), np.int64)
        columns = {name: pick(column, picked) for name, column in self._columns().items()}
        bad = {new: self.bad[old] for new, old in enumerate(picked.tolist()) if old in self.bad} if self.bad else {}
        return replace(self, **columns, bad=bad)  # pyright: ignore[reportArgumentType]: a dataclass

    def joined(self, other: Any) -> Self:
        """These samples, followed by those of `other`, which must have the same Python type."""
        if not (len(self) and len(other)):
            return self if len(self) else other
        mine, others = self._columns(), other._columns()
        columns = {name: join(mine[name], others[name]) if name in others else None for name in mine}
        bad = {**self.bad, **{len(self) + index: reason for index, reason in other.bad.items()}}
        return replace(self, **columns, bad=bad)  # pyright: ignore[reportArgumentType]: a dataclass

    def _columns(self) -> dict[str, Any]:
        columns = {name: getattr(self, name) for name in self.columns}
        return {name: column for name, column in columns.items() if column is not None}


@dataclass(frozen=True)
class Split(Samples):
    """Images with one label each. To save memory, the sequences may be lazy and the labels may be an array."""

    columns: ClassVar[tuple[str, ...]] = ("images", "labels", "names", "shards")

    images: Sequence[Path | np.ndarray | Stored]
    labels: Sequence[int] | np.ndarray
    """Class numbers; -1 for a bad image without a label."""
    names: Sequence[str]
    shards: np.ndarray | None = None
    bad: Mapping[int, str] = field(default_factory=dict)

    def example(self, index: int, read: Reader) -> tuple[UInt8[Tensor, "3 h w"], int]:
        return read(self.source(index)), int(self.labels[index])

    def relabelled(self, numbers: Sequence[int]) -> "Split":
        """A copy in which each label `i` is replaced by `numbers[i]`."""
        return replace(self, labels=np.asarray(numbers, np.int32)[np.asarray(self.labels)])

    def joined(self, other: Self) -> Self:
        """These samples, followed by those of `other`, whose shards get new numbers to avoid collisions."""
        if len(self) and self.shards is not None and other.shards is not None:
            other = replace(other, shards=other.shards + int(self.shards.max()) + 1)
        return super().joined(other)

    def usable_labels(self) -> set[int]:
        """The labels that occur among the usable images."""
        return set(np.flatnonzero(self.class_counts()).tolist())

    def class_counts(self, classes: int = 0) -> Int64[np.ndarray, " classes"]:
        """Number of usable images of each class; `classes` is the minimum length."""
        return np.bincount(np.delete(np.asarray(self.labels, np.int64), list(self.bad)), minlength=classes)


EMPTY = Split([], [], [])
S = TypeVar("S", bound=Samples)
T = TypeVar("T")


@dataclass(frozen=True)
class AnyDataset(Generic[S]):
    """A training, a validation and possibly a test split. Base class of `Dataset` and `CocoDataset`."""

    name: str
    classes: tuple[str, ...]
    train: S
    val: S
    drawn: bool = False
    """Whether shvit drew the validation images, because the data has no validation split."""
    fingerprint: str = field(default="", compare=False)
    """Hash of the dataset before validation images are drawn, without the test split. It shows whether two runs used
    the same data."""
    warnings: tuple[str, ...] = ()
    """Problems with the data, one line each."""
    test: S | None = field(default=None, kw_only=True)
    """Images for the final evaluation, never used to choose anything. None if the data has no test split."""
    test_fingerprint: str = field(default="", compare=False, kw_only=True)
    """Hash of the test split; empty if there is none."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", redacted(self.name))
        object.__setattr__(self, "warnings", redacted(self.warnings))

    def whole(self) -> S:
        """The training and validation images."""
        return self.train.joined(self.val)

    def splits(self) -> dict[str, S]:
        """The splits that have images, by name."""
        every = {"train": self.train, "val": self.val, "test": self.test}
        return {name: split for name, split in every.items() if split is not None and len(split)}


@dataclass(frozen=True)
class Dataset(AnyDataset[Split]):
    """A classification dataset. Classes are in alphabetical order unless the data numbers them."""

    def check_trainable(self) -> None:
        """Check that the data can be trained on and evaluated.

        Raises:
            DataError: There are fewer than two classes, a split has no images, or a class is missing from one split.
        """
        if len(self.classes) < 2:
            raise DataError(f"{self.name} has only the class {few(self.classes)}: training needs two or more classes")
        trained, evaluated = self.train.usable_labels(), self.val.usable_labels()
        if not trained:
            raise DataError(f"{self.name} has no training images")
        if not evaluated:
            raise DataError(f"{self.name} has no validation images: add some, or give data without splits")
        if unknown := [self.classes[i] for i in sorted(evaluated - trained)]:
            raise DataError(f"{self.name} has no training images of the validation classes {few(unknown)}")
        if missing := [self.classes[i] for i in sorted(trained - evaluated)]:
            raise DataError(f"{self.name} has no validation images of the training classes {few(missing)}")


@dataclass(frozen=True)
class Holdout:
    """How to draw validation images from a dataset without a validation split."""

    seed: int
    share: float
    """Share of the images to draw, between 0 and 1."""
    by: DrawnBy = "hash"

    def arrange(self, splits: Mapping[str, T]) -> tuple[dict[str, T], list[str]]:
        """The splits that are used, and a warning if there is a test split, but no validation split.

        If `by` is that of an earlier version, the test split is then the validation split.
        """
        if not splits.get("test") or splits.get("val"):
            return dict(splits), []
        if self.by != "hash":
            rest = {name: split for name, split in splits.items() if name != "test"}
            text = "the test split is used for validation, as in the earlier version of shvit that trained this model"
            return {**rest, "val": splits["test"]}, [text]
        text = (
            f"no validation split: {self.share:.0%} of the training images are held out for validation. The test split "
            "is only for the final evaluation (earlier versions used it for validation)"
        )
        return dict(splits), [text] if splits.get("train") else []

    def divide(self, split: S, labels: Sequence[int] | np.ndarray | None = None) -> tuple[S, S]:
        """Training and validation samples. With `labels`, each class is divided separately."""
        if self.by == "position":
            chosen = self._by_position(len(split), labels)
        else:
            chosen = self._by_content(split.images, np.zeros(len(split), np.int64) if labels is None else labels)
        rest = np.delete(np.arange(len(split)), chosen).tolist()
        return split.subset(rest), split.subset(chosen)

    def _by_content(self, images: Sequence[Any], labels: Sequence[int] | np.ndarray) -> list[int]:
        """Indices of the images whose hash of seed and identity, as a number from 0 to 1, is below the share.

        Adding or removing images does not change the split of other images. Copies of an image get the same
        split. Every class with two or more images has at least one image in each split: the image with the smallest
        hash in validation, and the image with the largest hash in training.
        """
        keyed = partial(hashlib.blake2b, digest_size=8, key=str(self.seed).encode())
        digests = (keyed(int(number).to_bytes(BYTES, "little")).digest() for number in identities(images))
        hashes = [int.from_bytes(digest, "little") for digest in digests]
        chosen: list[int] = []
        for indices in _indices_by_class(labels).values():
            ordered = sorted(indices, key=lambda index: hashes[index])
            count = sum(hashes[index] < self.share * 2**64 for index in ordered)
            chosen += ordered[: min(max(1, count), len(ordered) - 1)]
        return sorted(chosen)

    def _by_position(self, count: int, labels: Sequence[int] | np.ndarray | None) -> list[int]:
        """Indices as earlier versions drew them. Adding or removing an image may change the split of any other."""
        if labels is None:
            order = random.Random(self.seed).sample(range(count), count)
            return sorted(order[: self._count(count)])
        chosen: list[int] = []
        for label, indices in sorted(_indices_by_class(labels).items()):
            chosen += random.Random(f"{self.seed} {label}").sample(indices, self._count(len(indices)))
        return sorted(chosen)

    def _count(self, images: int) -> int:
        return min(max(1, round(images * self.share)), images - 1)


def _indices_by_class(labels: Sequence[int] | np.ndarray) -> dict[int, list[int]]:
    by_class = defaultdict[int, list[int]](list)
    for index, label in enumerate(labels):
        by_class[int(label)].append(index)
    return by_class


def drawn_before(record: Mapping[str, Any]) -> DrawnBy:
    """The `DrawnBy` of a run whose record does not contain it: `position`, or the default if the record is empty."""
    return "position" if record else "hash"


def dataset_of(
    name: str,
    classes: tuple[str, ...],
    splits: Mapping[str, Split],
    holdout: Holdout,
    contents: Callable[[Split], Iterable[bytes]],
    warnings: Sequence[str] = (),
) -> Dataset:
    """Make a dataset from the splits `train`, `val` and `test`, or from the split `all`.

    Validation images are drawn from `all`; or from `train`, if there is `test` but no `val`. `contents` yields, for a
    split, the bytes that the fingerprint covers.
    """
    train, val, test = (splits.get(name, EMPTY) for name in ("train", "val", "test"))
    whole = splits.get("all", train)
    if drawn := "all" in splits or bool(len(train) and len(test) and not len(val)):
        train, val = holdout.divide(whole, whole.labels)
    fingerprint = fingerprint_of(classes, (split for key, split in splits.items() if key != "test"), contents)
    test_fingerprint = fingerprint_of(classes, [test], contents) if len(test) else ""
    known, problems = _with_known_classes(test, train.usable_labels() | val.usable_labels(), classes)
    return Dataset(
        name,
        classes,
        train,
        val,
        drawn,
        fingerprint,
        (*warnings, *problems),
        test=known,
        test_fingerprint=test_fingerprint,
    )


def _with_known_classes(test: Split, known: set[int], classes: Sequence[str]) -> tuple[Split | None, list[str]]:
    """The test images whose class is `known` from the other splits, or None if there are none; and warnings.

    If no class is known, because there are no other splits, all test images are kept.
    """
    if not len(test) or not known:
        return (test if len(test) else None), []
    unusable = "not used: the test split, because it has no usable image of a class that the other splits have"
    labels = np.asarray(test.labels, np.int64)
    unknown = np.flatnonzero(~np.isin(labels, [*known, -1])).tolist()
    if not (tested := test.usable_labels() & known):
        return None, [unusable]
    warnings = []
    if unknown:
        images = f"{counted(len(unknown), 'test image')} of classes that the other splits do not have"
        warnings.append(f"not used: {images}, such as {test.names[unknown[0]]}")
        test = test.subset(np.delete(np.arange(len(test)), unknown).tolist())
    return test, [*warnings, *untested(classes, known, tested)]


def untested(classes: Sequence[str], known: set[int], tested: set[int]) -> list[str]:
    """A warning about classes that are known from other splits, but do not occur in the test split, if any."""
    missing = [classes[label] for label in sorted(known - tested)]
    return [f"no test images of {few(missing)}: metrics of the test split leave them out"] if missing else []


def fingerprint_of(classes: Sequence[str], splits: Iterable[S], contents: Callable[[S], Iterable[bytes]]) -> str:
    """Hash of the class names and of the bytes that `contents` yields for each split."""
    digest = hashlib.sha256("\0".join(classes).encode(errors="surrogatepass"))
    for split in splits:
        for content in contents(split):
            digest.update(content)
    return digest.hexdigest()[:16]


def duplicates(one: Samples, other: Samples) -> list[tuple[list[str], list[str]]]:
    """Find identical files in two splits. Returns, for each file content, its names in `one` and its names in `other`.

    Compares sizes first, then the last 4 KiB, then whole files.
    """
    splits = one, other
    sizes = [file_sizes(split) for split in splits]
    first, second = (np.unique(some[some >= 0]) for some in sizes)
    common = np.intersect1d(first, second, assume_unique=True)
    keys: list[dict[int, Any]] = [
        {index: int(some[index]) for index in np.flatnonzero(np.isin(some, common)).tolist()} for some in sizes
    ]
    for last in (4096, None):  # files often begin with the same bytes, but seldom end with the same bytes
        for side, split in enumerate(splits):
            with ThreadPoolExecutor(READERS) as pool:  # network drives respond slowly
                digests = list(pool.map(partial(_digest, last=last), [split.images[i] for i in keys[side]]))
            keys[side] = {i: (keys[side][i], new) for i, new in zip(keys[side], digests, strict=True) if new}
        keys = _in_both(keys)
    names: dict[Any, tuple[list[str], list[str]]] = defaultdict(lambda: ([], []))
    for side, split in enumerate(splits):
        for index, key in keys[side].items():
            names[key][side].append(split.names[index])
    return list(names.values())


def shared_files(dataset: AnyDataset[Any]) -> dict[tuple[str, str], list[tuple[str, str]]]:
    """Identical files in different splits: for each two splits, each name in the second and one name in the first.

    Splits without common files are left out.
    """
    found = {
        (one, other): [(names[0], name) for names, copies in duplicates(some, others) for name in copies]
        for (one, some), (other, others) in combinations(dataset.splits().items(), 2)
    }
    return {splits: files for splits, files in found.items() if files}


def _in_both(keys: list[dict[int, Any]]) -> list[dict[int, Any]]:
    """For each split, the images whose key occurs in both splits."""
    shared = set(keys[0].values()) & set(keys[1].values())
    return [{index: key for index, key in of_split.items() if key in shared} for of_split in keys]


def file_sizes(split: Samples) -> Int64[np.ndarray, " n"]:
    """Size in bytes of each image that is a separate file. -1 for other images and for missing files."""
    sizes = np.full(len(split), -1)
    if len(split) and isinstance(split.images[0], Path):
        for index, image in enumerate(split.images):
            with suppress(OSError):  # reported when the image is decoded
                sizes[index] = check_regular(image)
    return sizes


def _digest(path: Path, last: int | None) -> bytes | None:
    """Hash of a file, or of its final `last` bytes. None if it cannot be read; decoding reports the reason."""
    try:
        if (size := check_regular(path)) > MAX_BYTES:
            return None
        with path.open("rb") as file:
            file.seek(0 if last is None else max(0, size - last))
            return hashlib.file_digest(file, "blake2b").digest()
    except OSError:
        return None
