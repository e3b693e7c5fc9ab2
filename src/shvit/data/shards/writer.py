"""Write a dataset as WebDataset shards of resized images. The shards depend only on the data and the options."""

import hashlib
import io
import json
import re
import shutil
import tarfile
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ...errors import Failure, InputError, counted
from ...files import replacing, write_csv, write_json
from ...requests.shard import ShardRequest
from ..dataset import Dataset, DrawnBy, Holdout, Split
from ..decode import decode
from ..identity import of_image
from ..image_file import BadImage, is_plain_jpeg
from .index import INDEX, UNFINISHED, Index, Record
from .pool import work

BAD = "bad_images.csv"
PLAN = "plan.json"
"""Name of the file in `UNFINISHED` with the data and the options of the run."""
MAX_JPEG_SIDE = 65_535
"""Maximum side of a JPEG, in pixels."""


@dataclass(frozen=True)
class ShardJob:
    """A shard to write: the indices of its images in a split."""

    split: str
    number: int
    indices: np.ndarray

    @property
    def name(self) -> str:
        """File name, such as `train-000003.tar`."""
        return f"{self.split}-{self.number:06}.tar"


@dataclass(frozen=True)
class ShardReport:
    """The result of a run: the shards that the folder now contains."""

    out: Path
    index: Index
    kept: int
    """Number of shards that an earlier run wrote."""
    made: int
    """Number of shards that this run wrote."""
    warnings: tuple[str, ...]
    """Problems with the original dataset."""

    @property
    def bad_images(self) -> int:
        """Number of images that were left out."""
        return sum(len(record.bad) for record in self.index.records)

    def to_dict(self) -> dict[str, Any]:
        """A dict for JSON: images and shards per split, bytes, bad images, and whether an earlier run was continued."""
        splits = self.index.splits
        return {
            "out": str(self.out),
            "images": {name: sum(len(record.keys) for record in records) for name, records in splits.items()},
            "shards": {name: len(records) for name, records in splits.items()},
            "bytes": sum(record.bytes for record in self.index.records),
            "bad_images": self.bad_images,
            "resumed": self.kept > 0,
        }


def write_shards(
    dataset: Dataset, request: ShardRequest, on_update: Callable[[int, int], None] | None = None
) -> ShardReport:
    """Write `train-000000.tar` …, `val-000000.tar` …, `test-000000.tar` … and `shards.json`.

    Training images are shuffled. Within a split, the number of images per shard varies by at most one. A run that was
    stopped continues when it is started again; shards that are missing (such as those of the test split, if an earlier
    version wrote the folder) or whose checksums do not match are then written.

    Args:
        dataset: The result of `open_source` with the request's data, seed and share of validation images, and with
            `drawn_by(request.out)`.
        on_update: Called with the number of finished images and the number of all images.

    Raises:
        InputError: A value is wrong, the data has no images, or the folder holds other files or other shards.
        Failure: There are too many bad images, or a worker process died. Finished shards are kept.
    """
    request.check()
    if request.val_share is not None and not dataset.drawn:
        raise InputError(f"val_share has no effect, because {request.data} has validation images: leave it out")
    if not dataset.splits():
        raise InputError(f"{request.data} has no images")
    out = request.out
    made = {
        "data": dataset.fingerprint,
        **({"test": dataset.test_fingerprint} if dataset.test is not None else {}),
        "drawn_by": drawn_by(out),
        **({"val_share": request.drawn_share} if dataset.drawn else {}),
        **{key: getattr(request, key) for key in ("size", "per_shard", "quality", "seed")},
    }
    jobs = _jobs(dataset, request)
    _claim(out, made)
    known = _records(out)
    todo = [job for job in jobs if not _intact(out, known.get(job.name))]
    total = sum(len(job.indices) for job in jobs)
    done = total - sum(len(job.indices) for job in todo)
    with closing(work(partial(_write, dataset, request), todo, request.workers)) as steps:
        for images in steps:
            done += images
            if on_update:
                on_update(done, total)
    known = _records(out)
    names = ("train", "val") if dataset.test is None else ("train", "val", "test")
    splits = {split: [known[job.name] for job in jobs if job.split == split] for split in names}
    index = Index(dataset.classes, request.size, made, splits)
    _check_bad(out, [row for record in index.records for row in record.bad], total, request.max_bad_share)
    if todo or not (out / INDEX).exists():
        with replacing(out / INDEX) as temporary:
            temporary.write_text(index.to_json(), encoding="utf-8")
    _clean(out)
    return ShardReport(out, index, len(jobs) - len(todo), len(todo), dataset.warnings)


def _jobs(dataset: Dataset, request: ShardRequest) -> list[ShardJob]:
    """The shards of all splits. Training images are in random order."""
    orders = {split: np.arange(len(images)) for split, images in dataset.splits().items()}
    if "train" in orders:
        orders["train"] = np.random.default_rng(request.seed).permutation(orders["train"])
    return [
        ShardJob(split, number, indices)
        for split, order in orders.items()
        for number, indices in enumerate(np.array_split(order, -(-len(order) // request.per_shard)))
    ]


def drawn_by(out: Path) -> DrawnBy:
    """How validation images are drawn for the shards in `out`: as in the version of shvit that began to write them."""
    return Holdout.by if (begun := _begun(out)) is None else begun["drawn_by"]


def _begun(out: Path) -> dict[str, Any] | None:
    """The options of the run that began in the folder, if any. Raises InputError if they cannot be read."""
    for path in (out / INDEX, out / UNFINISHED / PLAN):
        if path.exists():
            text = path.read_bytes()
            try:
                made = Index.from_json(text).made if path.name == INDEX else json.loads(text)["made"]
                return {"drawn_by": "position" if "val_share" in made else "content", **made}  # earlier versions
            except (ValueError, KeyError, TypeError) as error:
                raise InputError(f"{path} cannot be read, so the run cannot be continued: {error}") from None
    return None


def _claim(out: Path, made: dict[str, Any]) -> None:
    """Start a run in the folder, or check that the run in it has the same data and options. Raises InputError."""
    plan = out / UNFINISHED / PLAN
    begun = _begun(out)
    if begun is None:
        if out.exists() and any(child.name != UNFINISHED for child in out.iterdir()):
            raise InputError(f"{out} is not empty and was not written by shvit shard: give another --out")
        plan.parent.mkdir(parents=True, exist_ok=True)
        write_json(plan, {"made": made}, indent=None)
        return
    if "test" in made:
        begun.setdefault("test", made["test"])  # without it, the test shards are added
    if begun != made:
        keys = [key for key in {**begun, **made} if begun.get(key) != made.get(key)]
        differing = ", ".join(f"{key} {begun.get(key)} instead of {made.get(key)}" for key in keys)
        raise InputError(f"{out} holds shards with {differing}: give another --out, or the same arguments")


def _records(out: Path) -> dict[str, Record]:
    """Records of the finished shards, by name: from the index, and from the unfinished run."""
    records = Index.from_json((out / INDEX).read_bytes()).records if (out / INDEX).exists() else []
    for path in sorted((out / UNFINISHED).glob("*.tar.json")):
        with suppress(ValueError, TypeError):  # cut off by a crash: the shard is written again
            records.append(Record(**json.loads(path.read_bytes())))
    return {record.name: record for record in records}


def _intact(out: Path, record: Record | None) -> bool:
    """Whether the shard exists and its checksum matches."""
    return record is not None and (out / record.name).is_file() and _checksum(out / record.name) == record.sha256


def _check_bad(out: Path, bad: list[tuple[str, str]], total: int, max_share: float) -> None:
    """List bad images in a file. Raises Failure if there are too many."""
    if bad:
        write_csv(out / BAD, ["image", "reason"], bad)
    if len(bad) > max_share * total:
        raise Failure(
            f"{len(bad):,} of {counted(total, 'image')} cannot be used, more than the allowed share of {max_share:g}; "
            f"the first: {bad[0][0]}: {bad[0][1]}; {out / BAD} lists all"
        )


def _clean(out: Path) -> None:
    """Remove temporary files, including those of runs that were killed."""
    shutil.rmtree(out / UNFINISHED, ignore_errors=True)
    for path in (*out.glob(".*.tar.*"), *out.glob(f".{INDEX}.*"), *out.glob(f".{BAD}.*")):
        path.unlink(missing_ok=True)


def _write(dataset: Dataset, request: ShardRequest, job: ShardJob) -> Iterator[int]:
    """Write a shard, then its record. Yields 1 after each image."""
    split: Split = getattr(dataset, job.split)
    record = Record(job.name, "", 0, [], [], [], [], [])
    with replacing(request.out / job.name) as temporary:
        with tarfile.open(temporary, "w", format=tarfile.USTAR_FORMAT) as tar:
            for index in map(int, job.indices):
                try:
                    image = as_jpeg(split.source(index), request.size, request.quality)
                except BadImage as error:
                    record.bad.append((split.names[index], str(error)))
                else:
                    label, key = int(split.labels[index]), _key(job.split, index, split.names[index])
                    record.keys.append(key)
                    record.labels.append(label)
                    record.offsets.append(tar.offset + tarfile.BLOCKSIZE)
                    record.lengths.append(len(image))
                    record.identities.append(of_image(split.images[index]))
                    for name, content in ((f"{key}.jpg", image), (f"{key}.cls", str(label).encode())):
                        member = tarfile.TarInfo(name)
                        member.size = len(content)
                        tar.addfile(member, io.BytesIO(content))
                yield 1
        record = replace(record, sha256=_checksum(temporary), bytes=temporary.stat().st_size)
    pending = request.out / UNFINISHED / f"{job.name}.json"
    pending.parent.mkdir(exist_ok=True)
    write_json(pending, vars(record), indent=None)


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def as_jpeg(source: Path | np.ndarray | bytes, size: int, quality: int) -> bytes:
    """The image as a JPEG with a shorter side of at most `size` pixels. Small plain JPEGs are kept. Raises BadImage."""
    image = decode(source)
    if isinstance(source, Path):
        source = source.read_bytes()
    shorter = min(image.size)
    if shorter <= size and isinstance(source, bytes) and is_plain_jpeg(source):
        return source
    if shorter > size:
        width, height = (max(size, round(side * size / shorter)) for side in image.size)
        image = image.resize((width, height), Image.Resampling.LANCZOS)
    if max(image.size) > MAX_JPEG_SIDE:
        raise BadImage(f"{image.width}x{image.height} is longer than the {MAX_JPEG_SIDE} pixels that a JPEG can have")
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def _key(split: str, index: int, name: str) -> str:
    """A unique key for an image. It ends with the name of the original file, for readability."""
    stem = name.rpartition("/")[2].partition(".")[0]
    return f"{split}-{index:07}-{re.sub('[^A-Za-z0-9_-]+', '-', stem)[-40:]}"
