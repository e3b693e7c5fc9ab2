"""Opening WebDataset shards for random access: by the index that `shvit shard` writes, or by the headers of the tars.

The index, `shards.json`, lists the shards of each split. For each shard it has the name, checksum and size in bytes,
and for each image the key (its members are KEY.jpg and KEY.cls), the label, the offset and length of its bytes, and
the identity of the original image (see `identity`).
"""

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import DataError
from ...files import MAX_TEXT, read_regular
from ...redact import redacted
from ..dataset import Dataset, Holdout, Split, dataset_of, fingerprint_of
from ..identity import BYTES, of_name
from ..sequences import Texts
from ..splits import TRAIN_NAMES, VAL_NAMES
from .download import FetchError, expand, is_remote, read_remote
from .tar import Sample, ShardFile, Shards, StoredImages, StoredNames, scan

INDEX = "shards.json"
"""Name of the index file."""
UNFINISHED = ".unfinished"
"""Folder beside the shards while not all of them are written."""
VERSION = 1
SPLITS = {"train": set(TRAIN_NAMES), "val": set(VAL_NAMES) - {"test"}, "test": {"test"}}
"""Words that assign a shard to a split if its name contains one of them."""
CLASSES = "classes.txt"
"""File beside shards without an index that names the classes, one per line."""
MAX_CLASSES_BYTES = 1 << 26
"""Limit for the size of that file."""
MAX_UNNAMED_CLASSES = 1_000_000
"""Limit for the number of classes without such a file."""


@dataclass(frozen=True)
class Record:
    """The index entry of one shard. Its lists have one item per image."""

    name: str
    sha256: str
    bytes: int
    keys: list[str]
    labels: list[int]
    offsets: list[int]
    lengths: list[int]
    bad: list[tuple[str, str]]
    """Name and reason of each image that was left out because it could not be used."""
    identities: list[int] = field(default_factory=list)
    """Identities of the original images; empty in an index of an earlier version."""

    def check(self, classes: int) -> None:
        """Raises ValueError for values that `shvit shard` does not write: an index may be untrusted."""
        kinds = (self.name, str), (self.bytes, int), (self.sha256, str)
        if any(type(value) is not kind for value, kind in kinds) or not re.fullmatch(r"[\w-][\w.-]*\.tar", self.name):
            raise ValueError(f"{self.name!r} of {self.bytes!r} bytes is not a shard beside the index")
        if not all(0 <= label < classes for label in self.labels):
            raise ValueError(f"{self.name} has labels that are not class numbers")
        if self.identities and not all(0 <= one < 256**BYTES for one in self.identities):
            raise ValueError(f"{self.name} has identities that are not numbers of {BYTES} bytes")
        ranges = zip(self.offsets, self.lengths, strict=False)  # `_stored` compares the lengths of all columns
        if not all(offset > 0 and 0 < length <= self.bytes - offset for offset, length in ranges):
            raise ValueError(f"{self.name} has images that lie outside it")


@dataclass(frozen=True)
class Index:
    """The content of `shards.json`."""

    classes: tuple[str, ...]
    size: int
    """Maximum of the images' shorter side, in pixels."""
    made: dict[str, Any]
    """The fingerprint of the original dataset, and the options that the shards were written with."""
    splits: dict[str, list[Record]]

    @property
    def records(self) -> list[Record]:
        """The shards of all splits."""
        return [record for records in self.splits.values() for record in records]

    def to_json(self) -> str:
        """The text of `shards.json`."""
        splits = {name: [vars(record) for record in records] for name, records in self.splits.items()}
        header = {"version": VERSION, "classes": self.classes, "size": self.size, "fingerprint": self._fingerprint()}
        return json.dumps({**header, "made": self.made, "splits": splits}, separators=(",", ":")) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes) -> "Index":
        """Inverse of `to_json`. Raises ValueError with the reason."""
        try:
            document = json.loads(text)
            if document["version"] != VERSION:
                raise ValueError(f"its version is {document['version']}, this program reads {VERSION}")
            splits = {name: [Record(**record) for record in document["splits"][name]] for name in ("train", "val")}
            index = cls(tuple(document["classes"]), document["size"], document["made"], splits)
            for record in index.records:
                record.check(len(index.classes))
            fingerprint = index._fingerprint()
        except RecursionError:
            raise ValueError("it is nested too deeply") from None
        except (KeyError, TypeError, AttributeError, OverflowError) as error:
            raise ValueError(f"it is not an index ({error})") from None
        if fingerprint != document["fingerprint"]:
            raise ValueError("its fingerprint does not match its content")
        return index

    def _fingerprint(self) -> str:
        return fingerprint_of(self.classes, _contents(_stored(records, "") for records in self.splits.values()))


def open_shards(data: str | Path, holdout: Holdout) -> Dataset:
    """Open a dataset in shards.

    Args:
        data: A folder of shards; a path or URL of `shards.json`; or paths or URLs of tars, with braces for several.
            Tars without an index are assigned to splits by `train`, `val` or `test` in their names. Without validation
            shards, validation images are drawn.
        holdout: Draws the validation images.

    Raises:
        DataError: There are no shards, or none that can be used.
        InputError: webdataset is needed and not installed.
    """
    name = str(data)
    if not is_remote(name) and (Path(name) / INDEX).is_file():
        return _indexed(name, str(Path(name) / INDEX), holdout)
    if not is_remote(name) and (Path(name) / UNFINISHED).is_dir():
        raise DataError(f"{name} holds an unfinished set of shards: run shvit shard again with the same arguments")
    return _indexed(name, name, holdout) if name.partition("?")[0].endswith(INDEX) else _unindexed(name, holdout)


def _indexed(name: str, path: str, holdout: Holdout) -> Dataset:
    try:
        content = read_remote(path) if is_remote(path) else read_regular(Path(path), MAX_TEXT)
        index = Index.from_json(content)
    except (FetchError, OSError) as error:
        raise DataError(f"{path} cannot be read: {error}") from None
    except ValueError as error:
        raise DataError(f"{path} cannot be used: {error}") from None
    splits, warnings = {}, []
    for split, records in index.splits.items():
        splits[split] = _with_missing(_stored(records, path), records, path, warnings)
    fingerprint = fingerprint_of(index.classes, _contents(splits.values()))
    return dataset_of(name, index.classes, splits, holdout, fingerprint, warnings)


def _beside(location: str, name: str) -> str:
    """The path or URL of a file in the same folder. A URL keeps its query, which may be a token."""
    location, mark, query = location.partition("?") if is_remote(location) else (location, "", "")
    folder, slash, _ = location.rpartition("/")
    return f"{folder}{slash}{name}{mark}{query}"


def _stored(records: Sequence[Record], path: str) -> Split:
    """The images of these shards, which lie beside their index. Raises ValueError for columns of different lengths."""
    files = [ShardFile(record.name, _beside(path, record.name), record.sha256) for record in records]
    members = Texts(f"{key}.jpg" for record in records for key in record.keys)
    columns = [
        np.array([value for record in records for value in column(record)], np.int64)
        for column in (lambda r: r.labels, lambda r: r.offsets, lambda r: r.lengths, _identities)
    ]
    if len({len(members), *map(len, columns)}) > 1:
        raise ValueError("its columns differ in length")
    labels, offsets, lengths, identities = columns
    shard = np.repeat(np.arange(len(records), dtype=np.int32), [len(record.keys) for record in records])
    return _split(StoredImages(Shards(files), members, shard, offsets, lengths, identities), labels)


def _identities(record: Record) -> list[int]:
    """The recorded identities; for an index without any, hashes of keys and lengths, since the shard may be remote."""
    pairs = zip(record.keys, record.lengths, strict=False)
    return record.identities or [of_name(f"{key} {length}") for key, length in pairs]


def _split(images: StoredImages, labels: np.ndarray, bad: dict[int, str] | None = None) -> Split:
    return Split(images, labels, StoredNames(images), images.shard, bad or {})


def _with_missing(split: Split, records: Sequence[Record], index: str, warnings: list[str]) -> Split:
    """The split, with images that local shards lack marked as bad; adds a warning for each such shard."""
    assert isinstance(split.images, StoredImages)
    bad: dict[int, str] = {}
    ends = split.images.offsets + split.images.lengths
    for number, record in enumerate([] if is_remote(index) else records):
        path = Path(_beside(index, record.name))
        size = path.stat().st_size if path.is_file() else None
        if size == record.bytes:
            continue
        lost = np.flatnonzero((split.images.shard == number) & (ends > (size or 0)))
        state = "is missing" if size is None else f"has {size:,} bytes instead of {record.bytes:,}"
        bad.update(dict.fromkeys(lost.tolist(), f"{record.name} {state}"))
        warnings.append(f"{record.name} {state}: {len(lost):,} images are left out")
    return _split(split.images, np.asarray(split.labels), bad)


def _contents(splits: Iterable[Split]) -> Iterator[bytes]:
    """What the fingerprint covers: keys, lengths and labels, wherever the shards lie."""
    for split in splits:
        assert isinstance(split.images, StoredImages)
        members = split.images.members
        for column in (members.ends, split.images.lengths, np.asarray(split.labels)):
            yield column.astype("<i8").tobytes()
        yield members.data


def _unindexed(name: str, holdout: Holdout) -> Dataset:
    folder = not is_remote(name) and Path(name).is_dir()
    locations = [str(path) for path in sorted(Path(name).glob("*.tar"))] if folder else _expanded(name)
    if packed := [each for each in locations if re.search(r"\.(tgz|tar\.\w+)$", each)]:
        raise DataError(f"{packed[0]} is compressed, so its images cannot be read one by one: unpack it to .tar")
    files = [ShardFile(_name(each), each) for each in locations]
    scanned, warnings = [], []
    for file in files:
        samples, fault = _scan(file)
        scanned.append(samples)
        if fault:
            warnings.append(f"{file.name} {fault}: {len(samples):,} samples are before it, any others are left out")
    if not any(scanned):
        raise DataError(f"{name}: no samples in {len(files)} shards; {warnings[0] if warnings else 'they are empty'}")
    unusable = [sample.bad for samples in scanned for sample in samples if sample.bad]
    if unusable:
        warnings.append(f"{len(unusable):,} samples cannot be used, the first because {unusable[0]}")
    labels = [s.label for samples in scanned for s in samples if not s.bad]
    classes, numbers = _classes(name, labels, locations[0])
    splits = {
        split: _scanned([files[i] for i in shards], [scanned[i] for i in shards], numbers)
        for split, shards in _by_split([file.name for file in files], name).items()
    }
    fingerprint = fingerprint_of(classes, _contents(splits.values()))
    return dataset_of(name, classes, splits, holdout, fingerprint, warnings)


def _expanded(name: str) -> list[str]:
    """The expansion of braces, unless they are part of the name of a file that exists."""
    return [name] if not is_remote(name) and Path(name).is_file() else expand(name)


def _name(location: str) -> str:
    """The file's name in a path, a URL or a command."""
    names = re.findall(r"[^/\s'\"?&=:]+\.tar\b", location)
    return names[-1] if names else redacted(location).rstrip("/").rpartition("/")[2]


def _scan(file: ShardFile) -> tuple[list[Sample], str | None]:
    """The samples of a shard, and what is wrong with it."""
    try:
        samples, fault = scan(file.local())
    except FetchError as error:
        return [], f"cannot be fetched ({error})"
    except FileNotFoundError:
        return [], "is missing"
    except OSError as error:
        return [], f"cannot be read ({error.strerror or error})"
    return samples, fault and f"is damaged ({fault})"


def _scanned(files: Sequence[ShardFile], scanned: Sequence[list[Sample]], numbers: dict[int | str, int]) -> Split:
    samples = [sample for of_shard in scanned for sample in of_shard]
    shard = np.repeat(np.arange(len(files), dtype=np.int32), [len(of_shard) for of_shard in scanned])
    offsets, lengths = (np.array([getattr(s, key) for s in samples], np.int64) for key in ("offset", "length"))
    images = StoredImages(Shards(files), Texts(s.member for s in samples), shard, offsets, lengths)
    labels = np.array([-1 if s.bad or s.label is None else numbers[s.label] for s in samples], np.int64)
    return _split(images, labels, {index: s.bad for index, s in enumerate(samples) if s.bad})


def _classes(name: str, labels: Sequence[Any], first: str) -> tuple[tuple[str, ...], dict[int | str, int]]:
    """The classes, and the class number of each label. Raises DataError for labels outside the classes."""
    listed = _listed_classes(first)
    distinct = set(labels)
    if all(isinstance(label, int) for label in distinct):
        if distinct and min(distinct) < 0:
            raise DataError(f"{name} has the label {min(distinct)}: classes are counted from 0")
        if not listed and max(distinct, default=0) >= MAX_UNNAMED_CLASSES:
            raise DataError(f"{name} has the label {max(distinct)}: the limit is {MAX_UNNAMED_CLASSES:,} classes")
        classes = listed or tuple(str(number) for number in range(max(distinct, default=-1) + 1))
        if distinct and max(distinct) >= len(classes):
            raise DataError(f"{name} has the label {max(distinct)}, but its {CLASSES} names {len(classes)} classes")
        return classes, {number: number for number in range(len(classes))}
    classes = listed or tuple(sorted(map(str, distinct)))
    if twice := [known for known, count in Counter(classes).items() if count > 1]:
        raise DataError(f"{name} has labels by name, but its {CLASSES} has {twice[0]!r} twice: give labels by number")
    numbers = {known: number for number, known in enumerate(classes)}
    if unknown := sorted(set(map(str, distinct)) - set(numbers)):
        raise DataError(f"{name} has the label {unknown[0]!r}, which is not in its {CLASSES}")
    return classes, {label: numbers[str(label)] for label in distinct}


def _listed_classes(first: str) -> tuple[str, ...]:
    """The lines of `classes.txt` beside the shards; empty if there is no such file."""
    if first.startswith("pipe:"):
        return ()
    beside = _beside(first, CLASSES)
    try:
        text = (read_remote(beside) if is_remote(beside) else read_regular(Path(beside), MAX_CLASSES_BYTES)).decode()
    except FileNotFoundError:
        return ()
    except FetchError as error:
        if error.missing:
            return ()
        raise DataError(f"{CLASSES} beside {first} cannot be fetched: {error}") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{beside} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    return tuple(line.strip() for line in text.splitlines() if line.strip())


def _by_split(names: Sequence[str], data: str) -> dict[str, list[int]]:
    """Indices of the shards of `train` and `val`; or all of them as `all`."""
    words_in = [set(re.findall(r"[a-z]+", name.lower())) for name in names]
    kinds = {kind: [index for index, has in enumerate(words_in) if has & words] for kind, words in SPLITS.items()}
    train, val = kinds["train"], kinds["val"] or kinds["test"]
    if not val:
        return {"all": list(range(len(names)))}
    if nowhere := set(range(len(names))).difference(train, kinds["val"], kinds["test"]):
        raise DataError(f"{data}: {names[min(nowhere)]} has neither train nor val in its name, and others do")
    if both := set(train) & set(val):
        raise DataError(f"{data}: {names[min(both)]} has both train and val in its name")
    return {"train": train, "val": val} if train else {"val": val}
