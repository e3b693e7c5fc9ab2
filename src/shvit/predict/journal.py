"""Store the rows of `shvit predict` on disk during a run, so that --resume can continue an unfinished run."""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import RawIOBase
from pathlib import Path
from typing import Any, BinaryIO

from ..engines import Exported, Runnable
from ..errors import Failure, InputError, counted
from ..files import locked, write_json, writing
from ..modelfile import digest_of
from ..tasks.base import Prediction


def partial_of(out: Path) -> Path:
    """Path of an unfinished run's file. The first line has the run's arguments; each further line is a row as JSON."""
    return out.with_name(f"{out.name}.partial")


def check_partial(out: Path, resume: bool) -> None:
    """Raise InputError for an unfinished run without --resume, and for --resume without an unfinished run."""
    path = partial_of(out)
    if path.exists() and not resume:
        raise InputError(f"{path} is an unfinished run: resume it with --resume, or delete the file to start again")
    if resume and not path.exists():
        raise InputError(f"there is nothing to resume, since {path} does not exist: remove --resume")


class Journal:
    """The rows of a run; see `journal`."""

    def __init__(self, file: RawIOBase, path: Path, done: int) -> None:
        self._file, self._path = file, path
        self.done = done
        """Number of rows on disk."""

    def write(self, prediction: Prediction) -> None:
        """Append a row."""
        with writing(self._path):
            row = json.dumps(prediction.to_dict()).encode() + b"\n"
            while row:
                row = row[self._file.write(row) :]
        self.done += 1

    def __iter__(self) -> Iterator[Prediction]:
        """All rows on disk."""
        with self._path.open("rb") as file:
            file.readline()
            for line in file:
                yield Prediction.from_dict(json.loads(line))


@contextmanager
def journal(
    out: Path, begun_with: Mapping[str, Any], images: int, batch_size: int, resume: bool, write: Callable[..., None]
) -> Iterator[Journal]:
    """A run whose rows become the file `out` if the block succeeds, and otherwise stay in `partial_of(out)`.

    An existing file `out` is replaced at the end. A run resumes at the start of a batch, so its batches and results
    are the same as without the interruption.

    Args:
        out: The file to write.
        begun_with: All values that the rows depend on, by argument name.
        images: Number of rows of the whole run.
        write: Writes all rows to `out`.

    Raises:
        InputError: `check_partial` raises it, the values in `begun_with` differ from the unfinished run's, or another
            process is writing the file.
        Failure: There is no space left.
    """
    path = partial_of(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    with locked(out.with_name(f".{out.name}.lock"), f"another process is writing {path}"):
        check_partial(out, resume)
        if not resume:
            write_json(path, begun_with, indent=None)
        with path.open("rb") as file:
            ends = _sound_rows(file, path, begun_with)
        done = len(ends) - 1
        done = done if done >= images else done - done % batch_size
        os.truncate(path, ends[done])
        with path.open("ab", buffering=0) as file:  # unbuffered, so closing it writes nothing
            rows = Journal(file, path, done)
            try:
                yield rows
                write(rows)
            except BaseException as error:
                part = f"{rows.done:,} of {counted(images, 'image')}"
                kept = f"{part} are done and kept in {path}; --resume continues from there"
                if not rows.done:
                    path.unlink()
                    kept = "nothing was written"
                if isinstance(error, KeyboardInterrupt):
                    raise KeyboardInterrupt(kept) from None
                if isinstance(error, Failure | OSError):
                    raise Failure(f"{error}; {kept}") from error
                raise
        path.unlink()


def _sound_rows(file: BinaryIO, path: Path, begun_with: Mapping[str, Any]) -> list[int]:
    """Offsets in the file at which the first line and each row end. A row that a crash truncated is ignored."""
    first = file.readline()
    try:
        begun = dict(json.loads(first))
    except (ValueError, TypeError):
        raise InputError(f"{path} was not written by shvit predict: delete it to start again") from None
    if other := [key for key, value in begun_with.items() if begun.get(key) != value]:
        raise InputError(
            f"{path} belongs to a run that differs in {' and '.join(other)}: give the same arguments, or delete the "
            "file to start again"
        )
    ends = [len(first)]
    for line in file:
        try:
            Prediction.from_dict(json.loads(line))
        except (ValueError, TypeError, KeyError):
            break
        if not line.endswith(b"\n"):
            break
        ends.append(ends[-1] + len(line))
    return ends


def of_images(paths: Sequence[Path]) -> str:
    """A digest of the names, sizes and modification times of these files, in order."""
    digest = hashlib.sha256()
    for path in paths:
        try:
            found = path.stat()
            about = f"{found.st_size} {found.st_mtime_ns}"
        except (OSError, ValueError):
            about = "missing"
        digest.update(f"{path}\0{about}\n".encode(errors="surrogatepass"))
    return digest.hexdigest()


def of_model(model: Runnable) -> str:
    """A digest of everything in a model that predictions depend on."""
    digest = hashlib.sha256(repr((model.task, model.classes, model.preprocess)).encode())
    if model.calibration.temperature != 1:
        digest.update(repr(model.calibration.temperature).encode())
    if not isinstance(model, Exported):
        digest.update(digest_of(model).encode())
        return digest.hexdigest()
    parts = sorted(model.path.rglob("*")) if model.path.is_dir() else [model.path, model.path.with_suffix(".bin")]
    for part in parts:  # OpenVINO keeps weights in a .bin file beside the .xml
        if part.is_file():
            with part.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()
