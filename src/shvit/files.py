"""File access: bounded reads of regular files, atomic writes, locks, and CSV and JSON files."""

import csv
import errno
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from .errors import Failure, InputError

FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
"""Error numbers which mean that a file cannot grow: the disk is full, or a quota or size limit is reached."""
FORMULA = re.compile("'*[=+\\-@\t\r\n\uff1d\uff0b\uff0d\uff20]")
"""Matches the start of a formula in a spreadsheet cell, with any number of apostrophes before it."""
NUMBER = re.compile(r"[+-]?\d+(\.\d+)?(e[+-]?\d+)?")
"""Matches a number. Numbers are harmless in a spreadsheet, even if they begin with a sign."""

MAX_TEXT = 1 << 32
"""Size limit of JSON and CSV files in bytes. Larger files are not read."""


def cache_folder() -> Path:
    """The folder for downloads: that of the environment variable `SHVIT_CACHE`, by default `~/.cache/shvit`."""
    return Path(os.environ.get("SHVIT_CACHE") or Path.home() / ".cache" / "shvit")


def check_regular(path: Path) -> int:
    """Size of a regular file in bytes. Raises OSError for pipes, which may block, or devices, which may have no end."""
    if not path.is_file() and path.exists():
        raise OSError(errno.EINVAL, "not a regular file")
    try:
        return path.stat().st_size
    except ValueError as error:  # NUL in the path
        raise OSError(errno.EINVAL, str(error)) from None


def read_regular(path: Path, most: int) -> bytes:
    """Content of a regular file. Raises OSError for other files, and for files larger than `most` bytes."""
    if (size := check_regular(path)) > most:
        raise OSError(errno.EFBIG, f"its {size:,} bytes are more than the limit of {most:,}")
    return path.read_bytes()


def read_json(path: Path) -> Any:
    """The document in a JSON file.

    Raises:
        OSError: The file is not regular or is too large.
        ValueError: The content is not JSON, or is nested too deeply.
    """
    check_regular(path)
    with path.open("rb") as file:
        if file.read(1 << 10).lstrip(b"\xef\xbb\xbf \t\r\n")[:1] not in (b"{", b"["):
            raise ValueError("not JSON: the file does not begin with { or [")
    try:
        return json.loads(read_regular(path, MAX_TEXT))
    except RecursionError:
        raise ValueError("the JSON is nested too deeply") from None
    except MemoryError:
        raise OSError(errno.ENOMEM, "not enough memory to read it") from None


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Write a file atomically: yield a temporary path, then flush that file to disk and move it to `path`.

    Raises Failure if no space is left.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with writing(path, temporary):
            yield temporary
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def writing(path: Path, temporary: Path | None = None) -> Iterator[None]:
    """Turn errors caused by a full disk into a `Failure` that names `path`. `temporary` is the file being written."""
    try:
        yield
    except (InputError, Failure):
        raise
    except Exception as error:
        if reason := _no_space(error, temporary or path):
            raise Failure(f"no space left on {path.parent} to write {path.name}{reason}") from error
        raise


def _no_space(error: Exception, path: Path) -> str:
    """Why the file cannot grow; empty if it can. If `error` has no number, as from C++ code, tests this by writing."""
    if isinstance(error, OSError) and error.errno is not None:
        return f" ({os.strerror(error.errno)})" if error.errno in FULL else ""
    try:
        with tempfile.TemporaryFile(dir=path.parent) as probe:
            probe.seek(path.stat().st_size if path.is_file() else 0)
            probe.write(bytes(2**20))
    except OSError as full:
        return _no_space(full, path) if full.errno is not None else ""
    return ""


@contextmanager
def in_utf8(path: Path) -> Iterator[Path]:
    """Yield a path in UTF-8, for libraries that need one: `path`, or a path to the descriptor of the open file."""
    if escaped(str(path)) == str(path):
        yield path
        return
    with path.open("rb") as file:
        yield Path(f"/dev/fd/{file.fileno()}")


@contextmanager
def locked(path: Path, otherwise: str) -> Iterator[None]:
    """Hold the lock file `path` inside the block. The lock is released even if the process is killed.

    Raises InputError with the message `otherwise` if another process holds the lock.
    """
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise InputError(otherwise) from None
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        lock.release()


def place(export: Path, target: Path) -> None:
    """Move a finished export, and the other files in its temporary folder, to `target`.

    A crash never leaves a partial export: all files are on disk before any is moved. For `.xml` and `.bin`, the old
    `.xml` is removed first and the new `.xml` is moved last, because readers open the `.xml` first. A folder cannot
    replace another folder in one step: the old folder is renamed to `.NAME.old`, and removed once the new one is moved.

    Raises:
        InputError: The target is a folder and the export a file, or the reverse.
    """
    folder = export.is_dir()
    if target.exists() and target.is_dir() != folder:
        there, wanted = ("file", "folder") if folder else ("folder", "file")
        raise InputError(f"{target} is a {there}, but the export is a {wanted}: give another --out")
    beside = [part for part in export.parent.iterdir() if part != export]
    aside = target.with_name(f".{target.name}.old")
    for part in export.parent.rglob("*"):
        _sync(part)
    if target.is_dir():
        shutil.rmtree(aside, ignore_errors=True)
        target.replace(aside)
    elif beside:
        target.unlink(missing_ok=True)
        _sync(target.parent)
    for part in beside:
        part.replace(target.with_name(part.name))
    export.replace(target)
    _sync(target.parent)
    shutil.rmtree(aside, ignore_errors=True)


def _sync(path: Path) -> None:
    """Flush a file, or the list of files in a folder, to disk."""
    if path.is_dir() and not hasattr(os, "O_DIRECTORY"):  # Windows cannot flush a folder
        return
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def sweep(folder: Path) -> None:
    """Remove the temporary files that `replacing` left in this folder when a process was killed."""
    for path in folder.iterdir():
        if re.fullmatch(r"\..+\.\d+", path.name):
            path.unlink(missing_ok=True)


def write_json(path: Path, document: Any, indent: int | None = 2) -> None:
    """Write a JSON file atomically. Raises Failure if no space is left."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(document, indent=indent) + "\n", encoding="utf-8")


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]], raw: bool = False) -> None:
    """Write a table atomically, in UTF-8. For `raw`, see `to_cell`. Raises Failure if no space is left."""
    with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([to_cell(cell, raw) for cell in row] for row in chain([header], rows))


def to_cell(value: Any, raw: bool = False) -> Any:
    """The CSV cell for a value. Text is escaped with `escaped`.

    Unless `raw`, an apostrophe is put before text that a spreadsheet would run as a formula. Inverse: `from_cell`.
    """
    if not isinstance(value, str):
        return value
    text = escaped(value)
    return f"'{text}" if not raw and FORMULA.match(text) and not NUMBER.fullmatch(text) else text


def from_cell(cell: str) -> str:
    """Inverse of `to_cell`."""
    return unescaped(cell[1:] if cell.startswith("'") and FORMULA.match(cell) else cell)


def escaped(text: str) -> str:
    r"""Escape surrogates, which UTF-8 cannot encode, in the form \udcff. File names that are not UTF-8 contain them.

    If the text already contains such an escape, the backslashes of the escape are doubled. `unescaped` is the inverse.
    """
    return re.sub(
        r"(\\*)([\ud800-\udfff])|(\\+)(?=ud[89a-f][0-9a-f]{2})",
        lambda match: 2 * match[3] if match[3] else f"{2 * match[1]}\\u{ord(match[2]):04x}",
        text,
    )


def unescaped(text: str) -> str:
    """Inverse of `escaped`."""

    def restored(match: re.Match[str]) -> str:
        half, odd = divmod(len(match[1]), 2)
        return half * "\\" + (chr(int(match[2], 16)) if odd else f"u{match[2]}")

    return re.sub(r"(\\+)u(d[89a-f][0-9a-f]{2})", restored, text)


def check_folder(path: Path, flag: str = "--out", new: bool = False, otherwise: str = "") -> None:
    """Check an output folder, which need not exist, before a run. `flag` and `otherwise` become part of the message.

    Raises:
        InputError: The path is a file or, with `new`, a folder that is not empty.
    """
    if path.exists() and not path.is_dir():
        raise InputError(f"{path} is a file: {flag} must be a folder")
    if new and path.exists() and any(not child.name.startswith(".") for child in path.iterdir()):
        raise InputError(f"{path} is not empty: give another {flag}{otherwise}")
