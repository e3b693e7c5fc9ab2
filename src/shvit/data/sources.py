"""What a user may call data: folders, a CSV, shards, a hub's name or `digits`; read into two sequences of images."""

import hashlib
import random
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from jaxtyping import UInt8
from torch import Tensor

from ..errors import DataError, few
from ..files import check_regular
from ..redact import redacted
from .csv_files import CSV_SUFFIXES, read_csv
from .decode import MAX_BYTES, BadImage
from .folders import read_folder
from .identity import DrawnBy, held_out
from .sequences import Lazy, join, pick
from .shards.download import is_remote
from .splits import Listing
from .transforms import Reader

INDEX = "shards.json"
"""Name of the file that lists the images of shards written here."""
UNFINISHED = ".unfinished"
"""Folder that lies among such shards until all are written."""
READERS = 16
"""Files that are read at once in search of duplicates."""


class Stored(Protocol):
    """An image within something larger than a file of its own."""

    def read(self) -> bytes:
        """The bytes of an image file. Raises BadImage where they cannot be had."""
        ...

    def identity(self) -> int:
        """As `identity.identity` gives it, without reading more than is needed."""
        ...


@dataclass(frozen=True)
class Split:
    """Images with labels, in a fixed order. What is long may be lazy, and labels an array."""

    images: Sequence[Path | np.ndarray | Stored]
    labels: Sequence[int] | np.ndarray
    names: Sequence[str]
    """How each image is called in reports: its path, or `digits/17`."""
    shards: np.ndarray | None = None
    """Number of the shard that each image lies in; None where it costs the same to read them in any order."""
    bad: Mapping[int, str] = field(default_factory=dict)
    """Place of each image that is known to be unusable before it is read, and why. It may lack a label, which is -1."""

    def __len__(self) -> int:
        return len(self.images)

    def source(self, index: int) -> Path | np.ndarray | bytes:
        """What to decode. Raises BadImage where a stored image cannot be had."""
        if index in self.bad:
            raise BadImage(self.bad[index])
        image = self.images[index]
        return image if isinstance(image, Path | np.ndarray) else image.read()

    def example(self, index: int, read: Reader) -> tuple[UInt8[Tensor, "3 h w"], int]:
        """What `read` makes of an image, and its label. Raises BadImage."""
        return read(self.source(index)), int(self.labels[index])

    def relabelled(self, numbers: Sequence[int]) -> "Split":
        """The same, each label replaced by the number at its place."""
        return replace(self, labels=[numbers[label] for label in self.labels])

    def subset(self, indices: Iterable[int]) -> "Split":
        picked = list(indices)
        return Split(
            pick(self.images, picked),
            pick(self.labels, picked),
            pick(self.names, picked),
            None if self.shards is None else self.shards[picked],
            {place: self.bad[i] for place, i in enumerate(picked) if i in self.bad} if self.bad else {},
        )

    def usable_labels(self) -> set[int]:
        """The labels of all images but the bad."""
        labels = np.asarray(self.labels, np.int64)
        return set(np.unique(np.delete(labels, list(self.bad))).tolist())


EMPTY = Split([], [], [])


@dataclass(frozen=True)
class Dataset:
    """A data set for classification: its classes in alphabetical order, and its two splits."""

    name: str
    classes: tuple[str, ...]
    train: Split
    val: Split
    drawn: bool = False
    """Whether the validation images were drawn here, because the data came as one pile."""
    fingerprint: str = field(default="", compare=False)
    """Of names, sizes and labels of all images, whatever the split: says later whether two runs saw the same data."""
    warnings: tuple[str, ...] = ()
    """What is amiss with the data as a whole, a line each: a shard that is missing, for one."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", redacted(self.name))
        object.__setattr__(self, "warnings", redacted(self.warnings))

    def whole(self) -> Split:
        """The images of both splits."""
        return merge(self.train, self.val)

    def check_trainable(self) -> None:
        """Refuses, before an epoch is spent, what cannot be trained on or judged.

        Raises:
            DataError: Fewer than two classes, no images in a split, or classes that one of the splits lacks.
        """
        if len(self.classes) < 2:
            raise DataError(f"{self.name} has only the class {few(self.classes)}: training needs at least two")
        seen, judged = self.train.usable_labels(), self.val.usable_labels()
        if not seen:
            raise DataError(f"{self.name} has no training images")
        if not judged:
            raise DataError(f"{self.name} has no validation images: add them, or give the training images alone")
        if unknown := [self.classes[i] for i in sorted(judged - seen)]:
            raise DataError(f"{self.name}: validation has classes that training lacks: {few(unknown)}")
        if missing := [self.classes[i] for i in sorted(seen - judged)]:
            raise DataError(f"{self.name}: validation has no images of the training classes {few(missing)}")


@dataclass(frozen=True)
class Drawing:
    """How the validation images of a dataset without splits are drawn."""

    seed: int
    share: float
    by: DrawnBy = "content"


def open_source(data: str | Path, seed: int = 0, val_share: float = 0.2, drawn_by: DrawnBy = "content") -> Dataset:
    """Read what `data` names.

    Args:
        data: One of these:
            - a folder with `<class>/…`, or with `train/<class>/…` and `val/<class>/…`; see `folders.read_folder`;
            - a CSV (or .tsv) of `path,label` with an optional third column `split`; see `csv_files.read_csv`;
            - WebDataset shards (see `shvit.data.shards`): a folder of them, the path or URL of their `shards.json`, or
              paths or URLs of `.tar` files with braces for the numbers (`https://host/data-{000..127}.tar`);
            - `hf://name` or `hf://name/config`: a data set of the Hugging Face hub, or `hf://./folder`, a local one;
            - the word `digits` (for a folder of that name say `./digits`).
        seed: Draws the validation images where the data comes without splits; see `identity.held_out`.
        val_share: The share of images to draw, between 0 and 1. Every class with two images or more keeps one on both
            sides.
        drawn_by: `position` for the split that runs of earlier versions had.

    Raises:
        DataError: Nothing is there, or it is none of the above.
    """
    if not 0 < val_share < 1:
        raise DataError(f"the share of validation images must lie between 0 and 1, got {val_share}")
    how = Drawing(seed, val_share, drawn_by)
    if data == "digits":
        return _digits(how)
    if is_sharded(data):
        from .shards.index import open_shards

        return open_shards(data, how)
    if str(data).startswith("hf://"):
        from .hub import open_hub

        return open_hub(str(data), how)
    path = Path(data)
    if path.is_dir():
        return _of_files(str(path), read_folder(path), how)
    if path.is_file() and path.suffix.lower() in CSV_SUFFIXES:
        return _of_files(str(path), read_csv(path), how)
    found = "no such file or folder" if not path.exists() else "neither a folder nor a CSV file nor shards"
    raise DataError(
        f"{data}: {found}; data is a folder of class folders, a CSV of path,label, shards (.tar or shards.json), "
        "hf://name or the word digits"
    )


def is_data(name: str) -> bool:
    """Whether a name is one of data, and none of a model."""
    listed = name.lower().endswith(CSV_SUFFIXES)
    return name == "digits" or listed or Path(name).is_dir() or name.startswith("hf://") or is_sharded(name)


def is_sharded(data: str | Path) -> bool:
    """Whether `data` names WebDataset shards: by its ending, as a URL that is not the hub's, or as a folder of them."""
    text = str(data)
    if ".tar" in Path(text).suffixes[-2:] or text.endswith((".tgz", INDEX)):
        return True
    if is_remote(text):
        return not text.startswith("hf://")
    return Path(data).is_dir() and _holds_shards(Path(data))


def _holds_shards(folder: Path) -> bool:
    """Archives that lie beside folders of images are taken for what these were unpacked from."""
    if (folder / INDEX).exists() or (folder / UNFINISHED).exists():
        return True
    visible = [child for child in folder.iterdir() if not child.name.startswith(".")]
    return any(child.suffix == ".tar" for child in visible) and not any(child.is_dir() for child in visible)


class Listed(Protocol):
    """Images and what they are called."""

    @property
    def images(self) -> Sequence[Any]: ...

    @property
    def names(self) -> Sequence[str]: ...


def duplicates(one: Listed, other: Listed) -> list[tuple[list[str], list[str]]]:
    """Files of the same bytes in both splits: for each content, the names in one and those in the other.

    Reads only what could be the same.
    """
    groups = [(one, _file_sizes(one)), (other, _file_sizes(other))]
    shared_sizes = set(groups[0][1].values()) & set(groups[1][1].values())
    suspects = [{i: s for i, s in sizes.items() if s in shared_sizes} for _, sizes in groups]
    for read in (_tail, _whole):
        keyed: list[dict[int, Any]] = []
        for (split, _), kept in zip(groups, suspects, strict=True):
            with ThreadPoolExecutor(READERS) as pool:  # where files lie far away, waiting is what takes the time
                contents = pool.map(read, [split.images[i] for i in kept])
            keyed.append({i: (kept[i], content) for i, content in zip(kept, contents, strict=True) if content})
        shared = set(keyed[0].values()) & set(keyed[1].values())
        suspects = [{i: key for i, key in keys.items() if key in shared} for keys in keyed]
    by_content: dict[Any, tuple[list[str], list[str]]] = defaultdict(lambda: ([], []))
    for place, (split, _) in enumerate(groups):
        for index, key in suspects[place].items():
            by_content[key][place].append(split.names[index])
    return list(by_content.values())


def _digits(how: Drawing) -> Dataset:
    """1,797 real handwritten digits of 8x8 pixels, which scikit-learn carries within its package."""
    from sklearn.datasets import load_digits

    loaded = load_digits()
    images = [(pixels * 255 / 16).round().astype(np.uint8) for pixels in loaded.images]  # pyright: ignore
    labels = [int(label) for label in loaded.target]  # pyright: ignore
    pile = Split(images, labels, [f"digits/{index}" for index in range(len(images))])
    classes = tuple("0123456789")
    return draw("digits", classes, pile, how, _fingerprint(classes, pile))


def _of_files(name: str, listing: Listing, how: Drawing) -> Dataset:
    """The dataset of images that are files, its classes in alphabetical order."""
    classes = tuple(sorted({label for rows in listing.splits.values() for _, label in rows}))
    splits = {split: _split(rows, classes) for split, rows in listing.splits.items()}
    fingerprint = _fingerprint(classes, *splits.values())
    if "all" in splits:
        return draw(name, classes, splits["all"], how, fingerprint, listing.warnings)
    return Dataset(name, classes, splits["train"], splits["val"], False, fingerprint, listing.warnings)


def draw(
    name: str, classes: tuple[str, ...], pile: Split, how: Drawing, fingerprint: str, warnings: tuple[str, ...] = ()
) -> Dataset:
    """The dataset, whose validation images are drawn from all of its images."""
    if how.by == "position":
        chosen = _by_position(pile, how.seed, how.share)
    else:
        chosen = held_out(pile.images, pile.labels, how.seed, how.share)
    train = pile.subset(np.delete(np.arange(len(pile)), chosen).tolist())
    return Dataset(name, classes, train, pile.subset(chosen), True, fingerprint, warnings)


def _by_position(pile: Split, seed: int, share: float) -> list[int]:
    """As earlier versions drew them: one image more or less changes which they are."""
    by_class = defaultdict(list)
    for index, label in enumerate(pile.labels):
        by_class[label].append(index)
    chosen: list[int] = []
    for label, indices in sorted(by_class.items()):
        count = min(max(1, round(len(indices) * share)), len(indices) - 1)
        chosen += random.Random(f"{seed} {label}").sample(indices, count)
    return sorted(chosen)


def _split(rows: list[tuple[Path, str]], classes: tuple[str, ...]) -> Split:
    number = {name: index for index, name in enumerate(classes)}
    return Split([path for path, _ in rows], [number[label] for _, label in rows], [str(path) for path, _ in rows])


def _fingerprint(classes: tuple[str, ...], *splits: Split) -> str:
    digest = hashlib.sha256("\0".join(classes).encode(errors="surrogatepass"))
    for split in splits:
        sizes = _file_sizes(split)
        for index, (image, label) in enumerate(zip(split.images, split.labels, strict=True)):
            content = (
                image.tobytes()
                if isinstance(image, np.ndarray)
                else Path(split.names[index]).name.encode(errors="surrogatepass")
            )
            digest.update(content + f"\0{sizes.get(index)}\0{label}\n".encode())
        digest.update(b"split\n")
    return digest.hexdigest()[:16]


def _file_sizes(split: Listed) -> dict[int, int]:
    sizes = {}
    for index, image in enumerate([] if isinstance(split.images, Lazy) else split.images):  # no files of their own
        if isinstance(image, Path):
            try:
                sizes[index] = check_regular(image)
            except OSError:
                continue  # a missing file is reported when it is to be decoded
    return sizes


def _tail(path: Path | np.ndarray | Stored) -> bytes | None:
    """The last 4 KiB: headers are often alike, last bytes seldom."""
    return _read(path, 4096)


def _whole(path: Path | np.ndarray | Stored) -> bytes | None:
    return _read(path, None)


def _read(path: Path | np.ndarray | Stored, last: int | None) -> bytes | None:
    """Digest of a file or of its last bytes; None where it cannot be read, which decoding will report."""
    assert isinstance(path, Path)
    try:
        if (size := check_regular(path)) > MAX_BYTES:
            return None
        with path.open("rb") as file:
            file.seek(0 if last is None else max(0, size - last))
            return hashlib.file_digest(file, "blake2b").digest()
    except OSError:
        return None


def merge(one: Split, other: Split) -> Split:
    """The images of both."""
    if not (len(one) and len(other)):
        return one if len(one) else other
    shards = None
    if one.shards is not None and other.shards is not None:
        shards = np.concatenate([one.shards, other.shards + int(one.shards.max(initial=-1)) + 1])
    return Split(
        join(one.images, other.images),
        join(one.labels, other.labels),
        join(one.names, other.names),
        shards,
        {**one.bad, **{len(one) + index: reason for index, reason in other.bad.items()}},
    )
