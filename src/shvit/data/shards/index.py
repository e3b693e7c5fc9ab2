"""Open WebDataset shards for random access, using the index that `shvit shard` writes, or the headers of tar files.

The index, `shards.json`, lists the shards of each split. It stores the name, checksum and size in bytes of each
shard. For each image, it stores the key (the tar contains KEY.jpg and KEY.cls), the label, the offset and length of
KEY.jpg, and the identity of the original image (see `identity`).
"""

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence, Sized
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import DataError, counted
from ...files import MAX_TEXT, read_regular
from ...redact import redacted
from ..dataset import Dataset, Holdout, Split, dataset_of, fingerprint_of
from ..identity import BYTES, of_name
from ..sequences import Texts
from ..splits import TEST_NAMES, TRAIN_NAMES, VAL_NAMES
from .download import FetchError, expand, is_remote, read_remote
from .tar import Sample, ShardFile, Shards, StoredImages, scan

INDEX = "shards.json"
"""Name of the index file."""
UNFINISHED = ".unfinished"
"""Name of a folder beside the shards. This folder exists until all shards are written."""
INDEX_VERSION = 1
SPLIT_WORDS = {"train": TRAIN_NAMES, "val": VAL_NAMES, "test": TEST_NAMES}
"""Words in the names of training, validation and test shards."""
CLASSES_FILE = "classes.txt"
"""File with the names of the classes, one per line, beside shards that have no index."""
MAX_CLASSES_BYTES = 1 << 26
"""Maximum size of `classes.txt`."""
MAX_UNNAMED_CLASSES = 1_000_000
"""Maximum number of classes if there is no `classes.txt`."""


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
    """Name of each image that was left out, and the reason why it could not be used."""
    identities: list[int] = field(default_factory=list)
    """Identities of the original images; empty in an index of an earlier version."""

    def check(self, classes: int) -> None:
        """Raises ValueError for values that `shvit shard` never writes, because an index may be untrusted."""
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
    """Maximum shorter side of the images, in pixels."""
    made: dict[str, Any]
    """The fingerprint of the original dataset, and the options that the shards were written with."""
    splits: dict[str, list[Record]]
    """The shards of `train`, `val` and, if the dataset has one, the test split."""

    @property
    def records(self) -> list[Record]:
        """The shards of all splits."""
        return [record for records in self.splits.values() for record in records]

    def to_json(self) -> str:
        """The text of `shards.json`."""
        splits = {name: [vars(record) for record in records] for name, records in self.splits.items()}
        header = {"version": INDEX_VERSION, "classes": self.classes, "size": self.size}
        document = {**header, **self._fingerprints(), "made": self.made, "splits": splits}
        return json.dumps(document, separators=(",", ":")) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes) -> "Index":
        """Inverse of `to_json`. Raises ValueError with the reason."""
        try:
            document = json.loads(text)
            if document["version"] != INDEX_VERSION:
                raise ValueError(f"its version is {document['version']}, but this program reads {INDEX_VERSION}")
            names = ["train", "val", *(["test"] if "test" in document["splits"] else [])]
            splits = {name: [Record(**record) for record in document["splits"][name]] for name in names}
            index = cls(tuple(document["classes"]), document["size"], document["made"], splits)
            for record in index.records:
                record.check(len(index.classes))
            fingerprints = index._fingerprints()
        except RecursionError:
            raise ValueError("it is nested too deeply") from None
        except (KeyError, TypeError, AttributeError, OverflowError) as error:
            raise ValueError(f"it is not an index ({error})") from None
        if any(document.get(name) != fingerprint for name, fingerprint in fingerprints.items()):
            raise ValueError("its fingerprint does not match its content")
        return index

    def _fingerprints(self) -> dict[str, str]:
        """The test split has its own fingerprint, because earlier versions read the index without it."""
        stored = {name: _stored(records, "") for name, records in self.splits.items()}
        parts = {"fingerprint": [stored["train"], stored["val"]]}
        if "test" in stored:
            parts["test_fingerprint"] = [stored["test"]]
        return {name: fingerprint_of(self.classes, part, _contents) for name, part in parts.items()}


def open_shards(data: str | Path, holdout: Holdout) -> Dataset:
    """Open a dataset in shards.

    Args:
        data: A folder of shards, or the path or URL of a `shards.json` file or a tar file. Braces stand for several
            tar files. Tar files without an index are assigned to splits by `train`, `val` or `test` in their
            names. If there are no validation shards, validation images are drawn from the training images.

    Raises:
        DataError: There are no shards, or none of them can be used.
        InputError: webdataset is needed but not installed.
    """
    name = str(data)
    if not is_remote(name) and (Path(name) / INDEX).is_file():
        return _indexed(name, str(Path(name) / INDEX), holdout)
    if not is_remote(name) and (Path(name) / UNFINISHED).is_dir():
        raise DataError(f"{name} holds an unfinished set of shards: run shvit shard again with the same arguments")
    return _indexed(name, name, holdout) if name.partition("?")[0].endswith(INDEX) else _unindexed(name, holdout)


def _indexed(name: str, path: str, holdout: Holdout) -> Dataset:
    try:
        index = Index.from_json(_read(path, MAX_TEXT))
    except (FetchError, OSError) as error:
        raise DataError(f"{path} cannot be read: {error}") from None
    except ValueError as error:
        raise DataError(f"{path} cannot be used: {error}") from None
    shards, warnings = holdout.arrange(index.splits)
    splits = {split: _stored(records, path, warnings) for split, records in shards.items()}
    return dataset_of(name, index.classes, splits, holdout, _contents, warnings)


def _read(location: str, most: int) -> bytes:
    """The content of a URL, or of a file with at most `most` bytes. Raises OSError or FetchError."""
    return read_remote(location) if is_remote(location) else read_regular(Path(location), most)


def _beside(location: str, name: str) -> str:
    """The path or URL of the file `name` in the folder of `location`. A URL keeps its query, which may be a token."""
    location, mark, query = location.partition("?") if is_remote(location) else (location, "", "")
    folder, slash, _ = location.rpartition("/")
    return f"{folder}{slash}{name}{mark}{query}"


def _stored(records: Sequence[Record], path: str, warnings: list[str] | None = None) -> Split:
    """The images of these shards, which lie beside their index. Raises ValueError for columns of different lengths.

    If `warnings` is given, images that are missing in local shards are marked as bad, with a warning for each shard.
    """
    files = [ShardFile(record.name, _beside(path, record.name), record.sha256) for record in records]
    members = Texts(f"{key}.jpg" for record in records for key in record.keys)
    labels, offsets, lengths, identities = columns = [
        np.array([value for record in records for value in column(record)], np.int64)
        for column in (lambda r: r.labels, lambda r: r.offsets, lambda r: r.lengths, _identities)
    ]
    if len({len(members), *map(len, columns)}) > 1:
        raise ValueError("its columns differ in length")
    images = StoredImages(Shards(files), members, _shard_numbers(r.keys for r in records), offsets, lengths, identities)
    bad: dict[int, str] = {}
    if warnings is None or is_remote(path):
        return images.split(labels, bad)
    for number, record in enumerate(records):
        file = Path(files[number].location)
        size = file.stat().st_size if file.is_file() else None
        if size != record.bytes:
            lost = np.flatnonzero((images.shard == number) & (offsets + lengths > (size or 0)))
            state = "is missing" if size is None else f"has {size:,} bytes instead of {record.bytes:,}"
            bad |= dict.fromkeys(lost.tolist(), f"{record.name} {state}")
            warnings.append(f"{record.name} {state}: {counted(len(lost), 'image')} left out")
    return images.split(labels, bad)


def _shard_numbers(parts: Iterable[Sized]) -> np.ndarray:
    """The shard number of each image, given the images of each shard."""
    counts = [len(part) for part in parts]
    return np.repeat(np.arange(len(counts), dtype=np.int32), counts)


def _identities(record: Record) -> list[int]:
    """The recorded identities; if there are none, hashes of keys and lengths, to avoid downloading a remote shard."""
    pairs = zip(record.keys, record.lengths, strict=False)
    return record.identities or [of_name(f"{key} {length}") for key, length in pairs]


def _contents(split: Split) -> Iterator[bytes]:
    """The bytes that the fingerprint covers: keys, lengths and labels, but not where the shards lie."""
    assert isinstance(split.images, StoredImages)
    members = split.images.members
    for column in (members.ends, split.images.lengths, np.asarray(split.labels)):
        yield column.astype("<i8").tobytes()
    yield members.data


def _unindexed(name: str, holdout: Holdout) -> Dataset:
    path = None if is_remote(name) else Path(name)
    if path and path.is_dir():
        locations = [str(tar) for tar in sorted(path.glob("*.tar"))]
    else:  # braces may also be part of a file's name
        locations = [name] if path and path.is_file() else expand(name)
    if packed := [each for each in locations if re.search(r"\.(tgz|tar\.\w+)$", each)]:
        raise DataError(f"{packed[0]} is compressed, so its images cannot be read one by one: unpack it to .tar")
    files = [ShardFile(_name(each), each) for each in locations]
    scanned, warnings = [], []
    for file in files:
        samples, fault = _scan(file)
        scanned.append(samples)
        if fault:
            warnings.append(f"{file.name} {fault}: {counted(len(samples), 'sample')} read from it")
    if not any(scanned):
        shards = counted(len(files), "shard")
        raise DataError(f"{name}: no samples in {shards}{'; ' + warnings[0] if warnings else ''}")
    if unusable := [sample.bad for samples in scanned for sample in samples if sample.bad]:
        warnings.append(f"{counted(len(unusable), 'sample')} cannot be used, the first because {unusable[0]}")
    labels = [s.label for samples in scanned for s in samples if not s.bad]
    classes, numbers = _classes(name, labels, locations[0])
    arranged, problems = holdout.arrange(_by_split([file.name for file in files], name))
    splits = {
        split: _scanned([files[i] for i in shards], [scanned[i] for i in shards], numbers)
        for split, shards in arranged.items()
    }
    return dataset_of(name, classes, splits, holdout, _contents, [*problems, *warnings])


def _name(location: str) -> str:
    """The file's name in a path, a URL or a command."""
    names = re.findall(r"[^/\s'\"?&=:]+\.tar\b", location)
    return names[-1] if names else redacted(location).rstrip("/").rpartition("/")[2]


def _scan(file: ShardFile) -> tuple[list[Sample], str | None]:
    """The samples of a shard, and what is wrong with the shard, if anything."""
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
    offsets, lengths = (np.array([getattr(s, key) for s in samples], np.int64) for key in ("offset", "length"))
    images = StoredImages(Shards(files), Texts(s.member for s in samples), _shard_numbers(scanned), offsets, lengths)
    labels = np.array([-1 if s.bad or s.label is None else numbers[s.label] for s in samples], np.int64)
    return images.split(labels, {index: s.bad for index, s in enumerate(samples) if s.bad})


def _classes(name: str, labels: Sequence[Any], first: str) -> tuple[tuple[str, ...], dict[int | str, int]]:
    """The classes, and the class number of each label. Raises DataError for labels outside the classes."""
    listed = _listed_classes(first)
    distinct = set(labels)
    if all(isinstance(label, int) for label in distinct):
        least, most = min(distinct, default=0), max(distinct, default=-1)
        if least < 0:
            raise DataError(f"{name} has the label {least}: classes are counted from 0")
        if most >= (len(listed) or MAX_UNNAMED_CLASSES):
            names = f"{CLASSES_FILE} names {counted(len(listed), 'class', 'classes')}"
            limit = f"but its {names}" if listed else f"the limit is {MAX_UNNAMED_CLASSES:,} classes"
            raise DataError(f"{name} has the label {most}, {limit}")
        return listed or tuple(map(str, range(most + 1))), {label: label for label in distinct}
    classes = listed or tuple(sorted(map(str, distinct)))
    if twice := [known for known, count in Counter(classes).items() if count > 1]:
        reason = f"its {CLASSES_FILE} has {twice[0]!r} twice"
        raise DataError(f"{name} has labels by name, but {reason}: give labels by number")
    numbers = {known: number for number, known in enumerate(classes)}
    if unknown := sorted(set(map(str, distinct)) - set(numbers)):
        raise DataError(f"{name} has the label {unknown[0]!r}, which is not in its {CLASSES_FILE}")
    return classes, {label: numbers[str(label)] for label in distinct}


def _listed_classes(first: str) -> tuple[str, ...]:
    """The lines of `classes.txt` beside the shards; empty if there is no such file."""
    if first.startswith("pipe:"):
        return ()
    beside = _beside(first, CLASSES_FILE)
    try:
        text = _read(beside, MAX_CLASSES_BYTES).decode()
    except (FetchError, OSError, ValueError) as error:
        if isinstance(error, FileNotFoundError) or getattr(error, "missing", False):
            return ()
        raise DataError(f"{beside} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    return tuple(line.strip() for line in text.splitlines() if line.strip())


def _by_split(names: Sequence[str], data: str) -> dict[str, list[int]]:
    """Indices of the shards by split; or as `all`, if no shard's name contains val or test."""
    words_in = [set(re.findall(r"[a-z]+", name.lower())) for name in names]
    found = [[kind for kind, words in SPLIT_WORDS.items() if not has.isdisjoint(words)] for has in words_in]
    if any("val" in kinds for kinds in found):  # `test` may then be part of another name, as in my-test-train-000.tar
        found = [[kind for kind in kinds if kind != "test"] or kinds for kinds in found]
    by_split = {kind: [i for i, kinds in enumerate(found) if kind in kinds] for kind in SPLIT_WORDS}
    if not (by_split["val"] or by_split["test"]):
        return {"all": list(range(len(names)))}
    for name, kinds in zip(names, found, strict=True):
        if not kinds:
            raise DataError(f"{data}: {name} has neither train nor val nor test in its name, but other shards do")
        if len(kinds) > 1:
            raise DataError(f"{data}: {name} has both {kinds[0]} and {kinds[1]} in its name")
    return {kind: shards for kind, shards in by_split.items() if shards}
