"""WebDataset shards, read at random: by the index that `shvit shard` wrote, or by the headers of the tars.

The index, `shards.json`, holds for each split its shards, and for each of these its name, checksum and length in bytes,
and of every image the key (KEY.jpg and KEY.cls are its members), the label, where its bytes begin, how many they are,
and the identity of the image that it was made from (see `identity`).
"""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ...files import MAX_TEXT, read_regular
from ...redact import redacted
from ..identity import BYTES, of_name
from ..sequences import Texts
from ..sources import EMPTY, INDEX, UNFINISHED, DataError, Dataset, Drawing, Split, draw
from ..splits import TRAIN_NAMES, VAL_NAMES
from .download import FetchError, expand, is_remote, read_remote
from .tar import Place, Sample, Shards, StoredImages, StoredNames, scan

VERSION = 1
SPLITS = {"train": set(TRAIN_NAMES), "val": set(VAL_NAMES) - {"test"}, "test": {"test"}}
"""Words, one of which the name of a shard must hold to belong to a split."""
CLASSES = "classes.txt"
MAX_CLASSES = 1 << 26
"""Bytes of that file, at most."""
MOST_CLASSES = 1_000_000
"""That are numbered and not named."""


@dataclass(frozen=True)
class Record:
    """A shard, as the index describes it."""

    name: str
    sha256: str
    bytes: int
    keys: list[str]
    labels: list[int]
    offsets: list[int]
    lengths: list[int]
    bad: list[tuple[str, str]]
    """Names of the images that were to be in it and could not be used, and why."""
    identities: list[int] = field(default_factory=list)
    """Of the images that those in the shard were made from; none in an index of an earlier version."""

    def check(self, classes: int) -> None:
        """Raises ValueError for what `shvit shard` does not write: an index may come from anywhere."""
        kinds = (self.name, str), (self.bytes, int), (self.sha256, str)
        if any(type(value) is not kind for value, kind in kinds) or not re.fullmatch(r"[\w-][\w.-]*\.tar", self.name):
            raise ValueError(f"{self.name!r} of {self.bytes!r} bytes is no shard beside it")
        if not all(0 <= label < classes for label in self.labels):
            raise ValueError(f"{self.name} has labels that are no classes' numbers")
        if self.identities and not all(0 <= one < 256**BYTES for one in self.identities):
            raise ValueError(f"{self.name} has identities that are no numbers of {BYTES} bytes")
        places = zip(self.offsets, self.lengths, strict=False)  # of how many is checked with the other columns
        if not all(begin > 0 and 0 < length <= self.bytes - begin for begin, length in places):
            raise ValueError(f"{self.name} has images that lie outside of it")


@dataclass(frozen=True)
class Index:
    """What `shards.json` says."""

    classes: tuple[str, ...]
    size: int
    """Of the images' shorter sides in pixels, at most."""
    made: dict[str, Any]
    """From what, and with which arguments."""
    splits: dict[str, list[Record]]

    def to_json(self) -> str:
        splits = {name: [vars(record) for record in records] for name, records in self.splits.items()}
        fingerprint = _fingerprint(self.classes, *(_stored(records, "") for records in self.splits.values()))
        about = {"version": VERSION, "classes": self.classes, "size": self.size, "fingerprint": fingerprint}
        return json.dumps({**about, "made": self.made, "splits": splits}, separators=(",", ":")) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes) -> "Index":
        """Inverse of `to_json`. Raises ValueError, whose message says what is wrong."""
        try:
            document = json.loads(text)
            if document["version"] != VERSION:
                raise ValueError(f"its version is {document['version']}, this program reads {VERSION}")
            splits = {name: [Record(**record) for record in document["splits"][name]] for name in ("train", "val")}
            for record in (record for records in splits.values() for record in records):
                record.check(len(document["classes"]))
            index = cls(tuple(document["classes"]), document["size"], document["made"], splits)
            fingerprint = _fingerprint(index.classes, *(_stored(records, "") for records in splits.values()))
        except RecursionError:
            raise ValueError("it is nested too deeply") from None
        except (KeyError, TypeError, AttributeError, OverflowError) as error:
            raise ValueError(f"it does not have the form of an index ({error})") from None
        if fingerprint != document["fingerprint"]:
            raise ValueError("its fingerprint is not that of its content")
        return index


def open_shards(data: str | Path, how: Drawing) -> Dataset:
    """The data set in shards.

    Args:
        data: A folder of shards; a path or URL of `shards.json`; or paths or URLs of tars, with braces for several.
            Tars without an index are divided by `train`, `val` (or `test`) in their names; where not both are
            there, and not val alone, validation images are drawn.
        how: Draws the validation images.

    Raises:
        DataError: There is nothing there, or nothing that can be used.
        InputError: webdataset is needed and not installed.
    """
    place = str(data)
    if not is_remote(place) and (Path(place) / INDEX).is_file():
        return _indexed(place, str(Path(place) / INDEX))
    if not is_remote(place) and (Path(place) / UNFINISHED).is_dir():
        raise DataError(f"{place} holds shards that are not all written: run shvit shard again as it was begun")
    return _indexed(place, place) if place.partition("?")[0].endswith(INDEX) else _unindexed(place, how)


def _indexed(name: str, path: str) -> Dataset:
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
    fingerprint = _fingerprint(index.classes, splits["train"], splits["val"])
    return Dataset(name, index.classes, splits["train"], splits["val"], False, fingerprint, tuple(warnings))


def _beside(place: str, name: str) -> str:
    """The path or URL of what lies beside another; a URL keeps its query, which may be a token."""
    place, mark, query = place.partition("?") if is_remote(place) else (place, "", "")
    folder, slash, _ = place.rpartition("/")
    return f"{folder}{slash}{name}{mark}{query}"


def _stored(records: Sequence[Record], path: str) -> Split:
    """The images of these shards, which lie beside their index."""
    places = [Place(record.name, _beside(path, record.name), record.sha256) for record in records]
    members = Texts(f"{key}.jpg" for record in records for key in record.keys)
    columns = [
        np.array([value for record in records for value in column(record)], np.int64)
        for column in (lambda r: r.labels, lambda r: r.offsets, lambda r: r.lengths, _identities)
    ]
    if len({len(members), *map(len, columns)}) > 1:
        raise ValueError("its columns differ in length")
    labels, offsets, lengths, identities = columns
    shard = np.repeat(np.arange(len(records), dtype=np.int32), [len(record.keys) for record in records])
    return _split(StoredImages(Shards(places), members, shard, offsets, lengths, identities), labels)


def _identities(record: Record) -> list[int]:
    """Without reading the shard, which may not be here: of the keys and lengths where the index names none."""
    pairs = zip(record.keys, record.lengths, strict=False)
    return record.identities or [of_name(f"{key} {length}") for key, length in pairs]


def _split(images: StoredImages, labels: np.ndarray, bad: dict[int, str] | None = None) -> Split:
    return Split(images, labels, StoredNames(images), images.shard, bad or {})


def _with_missing(split: Split, records: Sequence[Record], index: str, warnings: list[str]) -> Split:
    """The split, with what local shards lack among the bad, and a warning for each such shard."""
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


def _fingerprint(classes: tuple[str, ...], *splits: Split) -> str:
    """Of classes, keys, lengths and labels, wherever the shards lie."""
    digest = hashlib.sha256("\0".join(classes).encode(errors="surrogatepass"))
    for split in splits:
        assert isinstance(split.images, StoredImages)
        members = split.images.members
        for column in (members.ends, split.images.lengths, np.asarray(split.labels)):
            digest.update(column.astype("<i8").tobytes())
        digest.update(members.data)
    return digest.hexdigest()[:16]


def _unindexed(name: str, how: Drawing) -> Dataset:
    folder = not is_remote(name) and Path(name).is_dir()
    found = [str(path) for path in sorted(Path(name).glob("*.tar"))] if folder else _expanded(name)
    if packed := [place for place in found if re.search(r"\.(tgz|tar\.\w+)$", place)]:
        raise DataError(f"{packed[0]} is compressed, so that its images cannot be read one by one: unpack it to .tar")
    places = [Place(_name(place), place) for place in found]
    scanned, warnings = [], []
    for place in places:
        samples, fault = _scan(place)
        scanned.append(samples)
        if fault:
            warnings.append(f"{place.name} {fault}: {len(samples):,} samples are before it, any others are left out")
    if not any(scanned):
        raise DataError(f"{name}: no samples in {len(places)} shards; {warnings[0] if warnings else 'they are empty'}")
    unusable = [sample.bad for samples in scanned for sample in samples if sample.bad]
    if unusable:
        warnings.append(f"{len(unusable):,} samples cannot be used, the first because {unusable[0]}")
    classes, numbers = _classes(name, [s.label for samples in scanned for s in samples if not s.bad], found[0])
    groups = _by_split([place.name for place in places], name)
    splits = {
        split: _scanned([places[i] for i in shards], [scanned[i] for i in shards], numbers)
        for split, shards in groups.items()
    }
    fingerprint = _fingerprint(classes, *splits.values())
    if "all" in splits:
        return draw(name, classes, splits["all"], how, fingerprint, tuple(warnings))
    train, val = splits.get("train", EMPTY), splits["val"]
    return Dataset(name, classes, train, val, False, fingerprint, tuple(warnings))


def _expanded(name: str) -> list[str]:
    """What braces stand for, if they are not part of a file's name."""
    return [name] if not is_remote(name) and Path(name).is_file() else expand(name)


def _name(place: str) -> str:
    """The file's name in a path, a URL or a command."""
    names = re.findall(r"[^/\s'\"?&=:]+\.tar\b", place)
    return names[-1] if names else redacted(place).rstrip("/").rpartition("/")[2]


def _scan(place: Place) -> tuple[list[Sample], str | None]:
    try:
        samples, fault = scan(place.local())
    except FetchError as error:
        return [], f"cannot be fetched ({error})"
    except FileNotFoundError:
        return [], "is missing"
    except OSError as error:
        return [], f"cannot be read ({error.strerror or error})"
    return samples, fault and f"is damaged ({fault})"


def _scanned(places: Sequence[Place], scanned: Sequence[list[Sample]], numbers: dict[int | str, int]) -> Split:
    samples = [sample for of_shard in scanned for sample in of_shard]
    shard = np.repeat(np.arange(len(places), dtype=np.int32), [len(of_shard) for of_shard in scanned])
    offsets, lengths = (np.array([getattr(s, key) for s in samples], np.int64) for key in ("offset", "length"))
    images = StoredImages(Shards(places), Texts(s.member for s in samples), shard, offsets, lengths)
    labels = np.array([-1 if s.bad or s.label is None else numbers[s.label] for s in samples], np.int64)
    return _split(images, labels, {index: s.bad for index, s in enumerate(samples) if s.bad})


def _classes(name: str, labels: Sequence[Any], first: str) -> tuple[tuple[str, ...], dict[int | str, int]]:
    """The classes, and the number of each label. Raises DataError where these do not go together."""
    listed = _listed_classes(first)
    distinct = set(labels)
    if all(isinstance(label, int) for label in distinct):
        if distinct and min(distinct) < 0:
            raise DataError(f"{name} has the label {min(distinct)}: classes are counted from 0")
        if not listed and max(distinct, default=0) >= MOST_CLASSES:
            raise DataError(f"{name} has the label {max(distinct)}: there may be {MOST_CLASSES:,} classes at most")
        classes = listed or tuple(str(number) for number in range(max(distinct, default=-1) + 1))
        if distinct and max(distinct) >= len(classes):
            raise DataError(f"{name} has the label {max(distinct)}, but its {CLASSES} names {len(classes)} classes")
        return classes, {number: number for number in range(len(classes))}
    classes = listed or tuple(sorted(map(str, distinct)))
    if twice := [known for known, count in Counter(classes).items() if count > 1]:
        raise DataError(
            f"{name} has its labels by name, but its {CLASSES} has {twice[0]!r} twice: give labels by number"
        )
    places = {known: number for number, known in enumerate(classes)}
    if unknown := sorted(set(map(str, distinct)) - set(places)):
        raise DataError(f"{name} has the label {unknown[0]!r}, which is not in its {CLASSES}")
    return classes, {label: places[str(label)] for label in distinct}


def _listed_classes(first: str) -> tuple[str, ...]:
    """The lines of the file beside the shards; none where there is no such file."""
    if first.startswith("pipe:"):
        return ()
    beside = _beside(first, CLASSES)
    try:
        text = (read_remote(beside) if is_remote(beside) else read_regular(Path(beside), MAX_CLASSES)).decode()
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
    """Which shards belong to `train` and `val`, or all to `all`."""
    held = [set(re.findall(r"[a-z]+", name.lower())) for name in names]
    kinds = {kind: [index for index, has in enumerate(held) if has & words] for kind, words in SPLITS.items()}
    train, val = kinds["train"], kinds["val"] or kinds["test"]
    if not val:
        return {"all": list(range(len(names)))}
    if nowhere := set(range(len(names))).difference(train, kinds["val"], kinds["test"]):
        raise DataError(f"{data}: {names[min(nowhere)]} says neither train nor val in its name, and others do")
    if both := set(train) & set(val):
        raise DataError(f"{data}: {names[min(both)]} says both train and val in its name")
    return {"train": train, "val": val} if train else {"val": val}
