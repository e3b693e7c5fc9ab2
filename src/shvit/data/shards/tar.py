"""Find the samples in WebDataset tar files, and read their images in any order."""

import json
import os
import tarfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from tarfile import BLOCKSIZE
from typing import Any, BinaryIO

import numpy as np

from ...files import check_regular
from ..dataset import Split
from ..identity import identity, of_name
from ..image_file import MAX_BYTES, BadImage
from ..sequences import Computed, Lazy, Texts
from .download import FetchError, fetched, is_remote

IMAGE_SUFFIXES = frozenset(
    {"jpg", "jpeg", "png", "webp", "ppm", "pgm", "pbm", "pnm", "bmp", "gif", "tif", "tiff", "jp2", "avif"}
)
OPEN_FILES = 64
"""Maximum number of shards that a process keeps open."""
MAX_HEADER = MAX_LABEL = 1 << 20
"""Maximum size in bytes of a tar header, and of a member with a label."""
SHORT_NAME = 100
"""Every tar format stores a member's name of at most this many bytes in the header directly before the data."""


@dataclass(frozen=True)
class Sample:
    """The members of a tar that share their name up to the first dot."""

    member: str
    """Name of the image member; if there is no image, the name that the members share."""
    offset: int
    """Position of the image's first byte in the tar."""
    length: int
    label: int | str | None
    """Class number or class name."""
    bad: str | None = None
    """Why the sample cannot be used."""


def scan(path: Path) -> tuple[list[Sample], str | None]:
    """The samples of a tar in order, and a description of its damage, or None. Samples after damage are not found."""
    groups: dict[str, dict[str, tarfile.TarInfo]] = defaultdict(dict)
    repeated: dict[str, list[tarfile.TarInfo]] = defaultdict(list)
    samples: list[Sample] = []
    fault = None
    size = check_regular(path)
    try:
        headers: Any = _Headers  # Any: it lacks the methods that write
        with path.open("rb") as file, tarfile.open(fileobj=headers(file), mode="r:") as tar:
            try:
                while member := tar.next():
                    if member.size < 0:
                        raise tarfile.ReadError(f"{member.name} has a size below zero")
                    folder, _, base = member.name.rpartition("/")
                    stem, _, ending = base.partition(".")
                    if member.isfile() and stem and not stem.startswith("__"):
                        key = f"{folder}/{stem}" if folder else stem
                        if groups[key].setdefault(ending.lower(), member) is not member:
                            repeated[key].append(member)
                file.seek(tar.offset)
                if file.read(BLOCKSIZE).strip(b"\0"):
                    fault = f"no header at byte {tar.offset}"
            except tarfile.TarError as error:
                fault = str(error)
            samples = [_sample(tar, key, members, size) for key, members in groups.items()]
            samples = [_unambiguous(sample, repeated[key]) for sample, key in zip(samples, groups, strict=True)]
    except (tarfile.TarError, EOFError) as error:
        fault = str(error) or "not a tar file"
    ignored = (one for key, members in groups.items() for one in _ignored(key, members, repeated[key]))
    return [*samples, *ignored], fault


def _unambiguous(sample: Sample, repeated: Sequence[tarfile.TarInfo]) -> Sample:
    """The sample, marked as bad if it has one image but several labels."""
    endings = {member.name.rpartition(".")[2].lower() for member in repeated}
    if sample.bad or endings & IMAGE_SUFFIXES or not endings & {"cls", "json"}:
        return sample
    return replace(sample, label=None, bad="it has several labels with the same name")


def _ignored(key: str, members: dict[str, tarfile.TarInfo], repeated: Sequence[tarfile.TarInfo]) -> Iterator[Sample]:
    """Bad samples for images that belong to no sample because their name is repeated or has a second dot."""
    for member in repeated:
        if member.name.rpartition(".")[2].lower() in IMAGE_SUFFIXES:
            yield Sample(member.name, 0, 0, None, "another member has the same name")
    plain = any(ending in IMAGE_SUFFIXES for ending in members)
    parts = ((*ending.rpartition(".")[::2], member) for ending, member in members.items())
    dotted = {before: member for before, last, member in parts if before and last in IMAGE_SUFFIXES}
    for before, member in dotted.items():
        if f"{before}.cls" in members or f"{before}.json" in members or (not plain and len(dotted) > 1):
            yield Sample(member.name, 0, 0, None, f"keys end at the first dot of a name, so its key is {key}")


def _sample(tar: tarfile.TarFile, key: str, members: dict[str, tarfile.TarInfo], size: int) -> Sample:
    image = next((member for ending, member in members.items() if ending in IMAGE_SUFFIXES), None)
    if image is None:
        return Sample(key, 0, 0, None, "it has no image")
    if image.offset_data + image.size > size:
        return Sample(image.name, 0, 0, None, "the shard ends before the end of the image")
    if image.size > MAX_BYTES:
        return Sample(image.name, 0, 0, None, f"its {image.size:,} bytes are more than an image can need")
    location = (image.name, image.offset_data, image.size)
    try:
        label = _label(tar, members)
    except RecursionError:
        return Sample(*location, None, "its label cannot be read: it is nested too deeply")
    except (ValueError, tarfile.TarError) as error:
        return Sample(*location, None, f"its label cannot be read: {error}")
    return Sample(*location, label, "it has no label" if label is None else None)


def _label(tar: tarfile.TarFile, members: dict[str, tarfile.TarInfo]) -> int | str | None:
    """The label in the `.cls` member, or under the key `label` or `cls` in the `.json` member. Raises ValueError."""
    value: Any = None
    if "cls" in members:
        value = _content(tar, members["cls"])
    elif "json" in members and isinstance(document := json.loads(_content(tar, members["json"])), dict):
        value = document.get("label", document.get("cls"))
    if value is None or (isinstance(value, int) and not isinstance(value, bool)):
        return value
    if not isinstance(value, str):
        raise ValueError(f"{value!r} is neither a number nor a name")
    text = value.strip()
    return int(text) if text.removeprefix("-").isdecimal() else text or None


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> str:
    """The text of a member. Raises ValueError."""
    if member.size > MAX_LABEL:
        raise ValueError(f"its {member.size:,} bytes are more than the limit of {MAX_LABEL:,}")
    file = tar.extractfile(member)
    assert file is not None  # only files are among the members
    with file:
        return file.read().decode()


class _Headers:
    """A file for `tarfile` that refuses to read more than a header at once: lengths in the file are untrusted."""

    def __init__(self, file: BinaryIO) -> None:
        self.seek, self.tell, self._read = file.seek, file.tell, file.read

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= MAX_HEADER:
            raise tarfile.ReadError(f"a header of {size:,} bytes")
        return self._read(size)


@dataclass(frozen=True)
class ShardFile:
    """A local or remote shard."""

    name: str
    """Name for reports."""
    location: str
    """A path, or anything that `webdataset.gopen` opens."""
    sha256: str | None = None

    def local(self) -> Path:
        """The local path; a remote shard is downloaded first. Raises FetchError."""
        return fetched(self.location, self.name, self.sha256) if is_remote(self.location) else Path(self.location)


class Shards:
    """Shards that are downloaded and opened when they are first read. Each process opens shards separately."""

    def __init__(self, files: Sequence[ShardFile]) -> None:
        self.files = files
        self._opened = lru_cache(OPEN_FILES)(_Opened)
        self._failed: dict[int, str] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        return Shards, (self.files,)

    def read(self, shard: int, member: str, offset: int, length: int) -> bytes:
        """The bytes of a member. Raises BadImage if they are missing or the shard has changed."""
        file = self.files[shard]
        if length > MAX_BYTES:
            raise BadImage(f"its {length:,} bytes are more than an image can need")
        try:
            data = self.part(shard, offset - BLOCKSIZE, BLOCKSIZE + length)
        except OSError as error:
            raise BadImage(f"{file.name} cannot be read: {error.strerror or error}") from None
        if len(data) < BLOCKSIZE + length:
            raise BadImage(f"{file.name} ends before the end of the image")
        if not _heads(data[:BLOCKSIZE], member, length):
            raise BadImage(f"{file.name} is damaged or has changed since it was indexed: {member} is not where it was")
        return data[BLOCKSIZE:]

    def part(self, shard: int, start: int, count: int) -> bytes:
        """Bytes of a shard, without checks. Raises BadImage or OSError if they cannot be read."""
        return os.pread(self._file(shard).number, count, start)

    def _file(self, shard: int) -> "_Opened":
        if shard in self._failed:
            raise BadImage(self._failed[shard])
        try:
            return self._opened(self.files[shard])
        except FetchError as error:
            reason = f"cannot be fetched: {error}"
        except OSError as error:  # for example, no space in the cache
            reason = f"cannot be read: {error.strerror or error}"
        self._failed[shard] = f"{self.files[shard].name} {reason}"
        raise BadImage(self._failed[shard])


class _Opened:
    """A file that is closed when the last reference to it is gone."""

    def __init__(self, file: ShardFile) -> None:
        self.number = -1
        path = file.local()
        check_regular(path)
        self.number = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))

    def __del__(self) -> None:
        if self.number >= 0:
            os.close(self.number)


def _heads(block: bytes, member: str, length: int) -> bool:
    """Whether this is the header of a member with this name and length."""
    try:
        header = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.TarError:
        return False
    named = len(member) > SHORT_NAME or not member.isascii() or header.name == member
    return named and header.size == length


@dataclass(frozen=True, slots=True)
class StoredImage:
    """An image in a shard, read on request."""

    shards: Shards
    shard: int
    member: str
    offset: int
    length: int
    known: int | None = None
    """The identity, if the index records it."""

    def read(self) -> bytes:
        """The bytes of the image file. Raises BadImage."""
        return self.shards.read(self.shard, self.member, self.offset, self.length)

    def identity(self) -> int:
        """The recorded identity; if there is none, the identity of the image's bytes."""
        if self.known is not None:
            return self.known
        try:
            return identity(self.length, lambda start, count: self.shards.part(self.shard, self.offset + start, count))
        except (BadImage, OSError):
            return of_name(self.member)


@dataclass(frozen=True, eq=False)
class StoredImages(Lazy[StoredImage]):
    """Images in shards as a lazy sequence, stored as arrays of shard numbers, offsets and lengths."""

    shards: Shards
    members: Texts
    shard: np.ndarray
    offsets: np.ndarray
    lengths: np.ndarray
    identities: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.members)

    def item(self, index: int) -> StoredImage:
        return StoredImage(
            self.shards,
            int(self.shard[index]),
            self.members[index],
            int(self.offsets[index]),
            int(self.lengths[index]),
            None if self.identities is None else int(self.identities[index]),
        )

    def name(self, index: int) -> str:
        """A name for reports, such as `train-000003.tar/KEY`."""
        folder, slash, base = self.members[index].rpartition("/")
        return f"{self.shards.files[int(self.shard[index])].name}/{folder}{slash}{base.partition('.')[0]}"

    def split(self, labels: np.ndarray, bad: dict[int, str]) -> Split:
        """These images with their labels."""
        return Split(self, labels, Computed(len(self), self.name), self.shard, bad)
