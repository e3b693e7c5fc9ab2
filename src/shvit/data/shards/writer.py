"""Writing WebDataset shards: any data, resized once, in tars whose bytes follow from the data alone."""

import hashlib
import io
import json
import re
import shutil
import tarfile
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ...errors import Failure, InputError
from ...files import check_folder, replacing, write_csv, write_json
from ..decode import BadImage, decode, is_plain_jpeg
from ..identity import of_image
from ..sources import INDEX, UNFINISHED, Dataset, Split, open_source
from .index import Index, Record
from .pool import work

BAD = "bad_images.csv"
LONGEST = 65_535
"""Pixels of the longest side that a JPEG can have."""
Progress = Callable[[int, int], None]
"""Told of the images that are done, and of all."""


@dataclass(frozen=True)
class ShardJob:
    """A shard to be written: images of a split, by their places in it."""

    split: str
    number: int
    indices: np.ndarray

    @property
    def name(self) -> str:
        return f"{self.split}-{self.number:06}.tar"


@dataclass(frozen=True)
class Written:
    """What lies in the folder now."""

    out: Path
    index: Index
    found: int
    """Shards that an earlier run had written."""
    made: int
    """Shards that this run has written."""
    warnings: tuple[str, ...]
    """Of the source."""

    @property
    def records(self) -> list[Record]:
        return [record for records in self.index.splits.values() for record in records]

    @property
    def bad_images(self) -> int:
        return sum(len(record.bad) for record in self.records)

    def to_dict(self) -> dict[str, Any]:
        """For JSON: images and shards of each split, bytes, images left out, whether an earlier run was continued."""
        splits = self.index.splits
        return {
            "out": str(self.out),
            "images": {name: sum(len(record.keys) for record in records) for name, records in splits.items()},
            "shards": {name: len(records) for name, records in splits.items()},
            "bytes": sum(record.bytes for record in self.records),
            "bad_images": self.bad_images,
            "resumed": self.found > 0,
        }


def write_shards(
    data: str | Path,
    out: str | Path,
    size: int = 512,
    per_shard: int = 1000,
    quality: int = 95,
    workers: int = 2,
    seed: int = 0,
    max_bad_share: float = 0.2,
    val_share: float | None = None,
    progress: Progress | None = None,
) -> Written:
    """Write `train-000000.tar` …, `val-000000.tar` … and `shards.json` into `out`.

    A run that was stopped goes on where it was when it is started again, and one that is complete is only checked:
    shards whose bytes are not those that were written are written anew.

    Args:
        data: Whatever `open_source` reads.
        out: A new folder, or that of the run to continue.
        size: Shorter side of the images in pixels. Larger ones are made smaller; JPEGs that are not are copied.
        per_shard: Images a shard, at most.
        quality: Of JPEGs that are encoded here, 1 to 100.
        workers: Processes; 0 works in this one. The bytes are the same, whatever the number.
        seed: Shuffles the training images, once, and draws validation images where the data is one pile.
        max_bad_share: Share of the images that may be unusable. `bad_images.csv` lists those that were left out.
        val_share: Share of the validation images where they are drawn; default: 0.2. Else it must be left out.

    Raises:
        InputError: An argument or the data is wrong, or `out` holds something else.
        Failure: Too many bad images, or a process that ended; what was written is kept.
    """
    out = Path(out)
    _check(data, out, size, per_shard, quality, workers, max_bad_share)
    share = 0.2 if val_share is None else val_share
    source = open_source(data, seed, share)
    if val_share is not None and not source.drawn:
        raise InputError(f"val_share has no effect: {data} has validation images of its own; leave it out")
    if not len(source.train) + len(source.val):
        raise InputError(f"{data} has no images")
    made = {
        "data": source.fingerprint,
        **({"val_share": share, "drawn_by": "content"} if source.drawn else {}),
        **{"size": size, "per_shard": per_shard, "quality": quality, "seed": seed},
    }
    tasks = _tasks(source, per_shard, seed)
    _claim(out, made)
    known = _records(out)
    todo = [task for task in tasks if not _intact(out, known.get(task.name))]
    total = sum(len(task.indices) for task in tasks)
    done = total - sum(len(task.indices) for task in todo)
    with closing(work(Maker(source, out, size, quality).make, todo, workers)) as steps:
        for images in steps:
            done += images
            if progress:
                progress(done, total)
    known = _records(out)
    splits = {split: [known[task.name] for task in tasks if task.split == split] for split in ("train", "val")}
    _check_bad(
        out, [row for records in splits.values() for record in records for row in record.bad], total, max_bad_share
    )
    index = Index(source.classes, size, made, splits)
    if todo or not (out / INDEX).exists():
        with replacing(out / INDEX) as temporary:
            temporary.write_text(index.to_json(), encoding="utf-8")
    _clean(out)
    return Written(out, index, len(tasks) - len(todo), len(todo), source.warnings)


def _check(
    data: str | Path, out: Path, size: int, per_shard: int, quality: int, workers: int, max_bad_share: float
) -> None:
    allowed = [
        ("size", size, size >= 1, "at least 1 pixel"),
        ("images a shard", per_shard, per_shard >= 1, "at least 1"),
        ("quality", quality, 1 <= quality <= 100, "from 1 to 100"),
        ("workers", workers, workers >= 0, "at least 0"),
        ("share of bad images", max_bad_share, 0 <= max_bad_share <= 1, "from 0 to 1"),
    ]
    for name, value, right, range_ in allowed:
        if not right:
            raise InputError(f"{name} must be {range_}, got {value}")
    check_folder(out)
    if Path(data).is_dir() and out.resolve().is_relative_to(Path(data).resolve()):
        raise InputError(f"{out} lies within the data, {data}: shards must be written elsewhere")


def _tasks(source: Dataset, per_shard: int, seed: int) -> list[ShardJob]:
    """The shards in order: training images shuffled, as many in each as in any other or one less."""
    orders = {
        "train": np.random.default_rng(seed).permutation(len(source.train)),
        "val": np.arange(len(source.val)),
    }
    return [
        ShardJob(split, number, indices)
        for split, order in orders.items()
        if len(order)
        for number, indices in enumerate(np.array_split(order, -(-len(order) // per_shard)))
    ]


def _claim(out: Path, made: dict[str, Any]) -> None:
    """Makes the folder ours, or checks that it is: made from the same data with the same arguments."""
    plan = out / UNFINISHED / "plan.json"
    begun = None
    for path in (out / INDEX, plan):
        if path.exists():
            text = path.read_bytes()
            try:
                begun = Index.from_json(text).made if path.name == INDEX else json.loads(text)["made"]
            except (ValueError, KeyError, TypeError) as error:
                raise InputError(f"{path} cannot be read, so the run cannot be continued: {error}") from None
            break
    if begun is None:
        if out.exists() and any(child.name != UNFINISHED for child in out.iterdir()):
            raise InputError(f"{out} is not empty and no run of shvit shard: give another --out")
        plan.parent.mkdir(parents=True, exist_ok=True)
        write_json(plan, {"made": made}, indent=None)
    elif begun != made:
        keys = [key for key in {**begun, **made} if begun.get(key) != made.get(key)]
        differing = ", ".join(f"{key} {begun.get(key)} instead of {made.get(key)}" for key in keys)
        raise InputError(f"{out} was begun with {differing}: give another --out, or the same arguments")


def _records(out: Path) -> dict[str, Record]:
    """Of the shards that are written, by name: from the index, and newer ones from where they wait for it."""
    index = Index.from_json((out / INDEX).read_bytes()) if (out / INDEX).exists() else None
    records = [record for records in index.splits.values() for record in records] if index else []
    for path in sorted((out / UNFINISHED).glob("*.tar.json")):
        with suppress(ValueError, TypeError):  # as a machine that went down has left it: the shard is written anew
            records.append(Record(**json.loads(path.read_bytes())))
    return {record.name: record for record in records}


def _intact(out: Path, record: Record | None) -> bool:
    """Whether the shard has the bytes that were written."""
    if record is None or not (out / record.name).is_file():
        return False
    with (out / record.name).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == record.sha256


def _check_bad(out: Path, bad: list[tuple[str, str]], total: int, max_share: float) -> None:
    """Lists them in a file. Raises Failure where they are too many."""
    if bad:
        with replacing(out / BAD) as temporary:
            write_csv(temporary, ["image", "reason"], bad)
    if len(bad) > max_share * total:
        raise Failure(
            f"{len(bad):,} of {total:,} images cannot be used, more than the share of {max_share:g} that is allowed; "
            f"the first, {bad[0][0]}: {bad[0][1]}; {out / BAD} lists all"
        )


def _clean(out: Path) -> None:
    """Removes what runs that were killed have left."""
    shutil.rmtree(out / UNFINISHED, ignore_errors=True)
    for path in (*out.glob(".*.tar.*"), *out.glob(f".{INDEX}.*"), *out.glob(f".{BAD}.*")):
        path.unlink(missing_ok=True)


@dataclass(frozen=True)
class Maker:
    """Writes shards."""

    source: Dataset
    out: Path
    size: int
    quality: int

    def make(self, task: ShardJob) -> Iterator[int]:
        """Writes the shard and then its record; meanwhile yields 1 for each image that is done."""
        split: Split = getattr(self.source, task.split)
        keys: list[str] = []
        offsets: list[int] = []
        columns: dict[str, list[Any]] = {"labels": [], "lengths": [], "identities": [], "bad": []}
        with replacing(self.out / task.name) as temporary:
            with tarfile.open(temporary, "w", format=tarfile.USTAR_FORMAT) as tar:
                for index in map(int, task.indices):
                    try:
                        image = as_jpeg(split.source(index), self.size, self.quality)
                    except BadImage as error:
                        columns["bad"].append((split.names[index], str(error)))
                    else:
                        label = int(split.labels[index])
                        keys.append(_key(task.split, index, split.names[index]))
                        offsets.append(tar.offset + tarfile.BLOCKSIZE)
                        columns["labels"].append(label)
                        columns["lengths"].append(len(image))
                        columns["identities"].append(of_image(split.images[index]))
                        _add(tar, f"{keys[-1]}.jpg", image)
                        _add(tar, f"{keys[-1]}.cls", str(label).encode())
                    yield 1
            with temporary.open("rb") as file:
                sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            size = temporary.stat().st_size
        record = Record(task.name, sha256, size, keys, offsets=offsets, **columns)
        waiting = self.out / UNFINISHED / f"{task.name}.json"
        waiting.parent.mkdir(exist_ok=True)
        write_json(waiting, vars(record), indent=None)


def as_jpeg(source: Path | np.ndarray | bytes, size: int, quality: int) -> bytes:
    """A JPEG whose shorter side has `size` pixels at most: the file as it is, where it is one. Raises BadImage."""
    image = decode(source)
    if isinstance(source, Path):
        source = source.read_bytes()
    shorter = min(image.size)
    if shorter <= size and isinstance(source, bytes) and is_plain_jpeg(source):
        return source
    if shorter > size:
        width, height = (max(size, round(side * size / shorter)) for side in image.size)
        image = image.resize((width, height), Image.Resampling.LANCZOS)
    if max(image.size) > LONGEST:
        raise BadImage(f"{image.width}x{image.height} is longer than the {LONGEST} pixels that a JPEG can have")
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def _key(split: str, index: int, name: str) -> str:
    """Unique by the first two parts; the third says where the image is from."""
    stem = name.rpartition("/")[2].partition(".")[0]
    return f"{split}-{index:07}-{re.sub('[^A-Za-z0-9_-]+', '-', stem)[-40:]}"


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))
