"""Safe file access: bounded reads of regular files, atomic writes, locks, and CSV tables."""

import csv
import errno
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from .errors import Failure, InputError

FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
"""What the system says where a file cannot grow: the disk is full, or a quota or a limit is reached."""
FORMULA = re.compile("'*[=+\\-@\t\r\n\uff1d\uff0b\uff0d\uff20]")
"""How a cell begins that spreadsheets take for a formula, however often it was quoted."""
NUMBER = re.compile(r"[+-]?\d+(\.\d+)?(e[+-]?\d+)?")
"""No danger in a spreadsheet, whatever its sign."""

MAX_TEXT = 1 << 32
"""Bytes of the largest JSON and CSV files that are read."""


def check_regular(path: Path) -> int:
    """Size in bytes. Raises OSError for anything but a regular file: a pipe may block and a device may have no end."""
    if not path.is_file() and path.exists():
        raise OSError(errno.EINVAL, "not a regular file")
    return path.stat().st_size


def read_regular(path: Path, most: int) -> bytes:
    """The content of a regular file. Raises OSError for another one, and for one of more bytes than `most`."""
    if (size := check_regular(path)) > most:
        raise OSError(errno.EFBIG, f"its {size:,} bytes are more than the limit of {most:,}")
    return path.read_bytes()


def read_json(path: Path) -> Any:
    """The document in a regular file.

    Raises:
        OSError: As `read_regular`.
        ValueError: It is not JSON, or nested too deeply.
    """
    check_regular(path)
    with path.open("rb") as file:
        if file.read(1 << 10).lstrip(b"\xef\xbb\xbf \t\r\n")[:1] not in (b"{", b"["):
            raise ValueError("it begins with neither { nor [, as JSON does")
    try:
        return json.loads(read_regular(path, MAX_TEXT))
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except MemoryError:
        raise OSError(errno.ENOMEM, "there is not enough memory for it") from None


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` to write to; it takes that place, on disk, when the block ends well.

    Raises:
        Failure: There is no space left.
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
    """Inside, a full disk is a Failure of one line that names `path`, whatever the library that writes makes of it.

    Args:
        path: What is written.
        temporary: Where it is written to; default: `path`.
    """
    try:
        yield
    except (InputError, Failure):
        raise
    except Exception as error:
        if reason := _no_space(error, temporary or path):
            raise Failure(f"no space left on {path.parent} to write {path.name}{reason}") from error
        raise


def _no_space(error: Exception, path: Path) -> str:
    """Not empty where the file cannot grow. Libraries in C++ raise what says nothing, so it is tried."""
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
    """A path to the file for libraries that take only names in UTF-8: `path`, or that of the open file."""
    if escaped(str(path)) == str(path):
        yield path
        return
    with path.open("rb") as file:
        yield Path(f"/dev/fd/{file.fileno()}")


@contextmanager
def locked(path: Path, otherwise: str) -> Iterator[None]:
    """Inside, this process alone holds the lock `path`, a file. It is released however the process ends.

    Raises:
        InputError: Another process holds it; the message is `otherwise`.
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
    """Move a finished export, and the files that lie beside it, from its temporary folder to where it belongs.

    A crash never leaves a partial export: all files are on disk before any is moved. For `.xml` and `.bin`, the old
    `.xml` is removed first and the new one is moved last, because readers start at the `.xml`. A folder cannot replace
    another in one step: the old one is renamed to `.NAME.old` and removed once the new one is in place.

    Raises:
        InputError: A folder is where a file is to be written, or the reverse.
    """
    check_kind(target, export.is_dir())
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


def check_kind(target: Path, folder: bool) -> None:
    """Raises InputError where a folder is in the place of a file, or a file in that of a folder."""
    if target.exists() and target.is_dir() != folder:
        there, wanted = ("file", "folder") if folder else ("folder", "file")
        raise InputError(f"{target} is a {there}, and a {wanted} is to be written: give another --out")


def _sync(path: Path) -> None:
    """The file, or the list of what is in the folder, is on disk."""
    if path.is_dir() and not hasattr(os, "O_DIRECTORY"):  # Windows, which cannot
        return
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def sweep(folder: Path) -> None:
    """Remove what `replacing` left behind in this folder, in processes that were killed."""
    for path in folder.iterdir():
        if re.fullmatch(r"\..+\.\d+", path.name):
            path.unlink(missing_ok=True)


def write_json(path: Path, document: Any, indent: int | None = 2) -> None:
    """Write a JSON document in UTF-8, atomically.

    Raises:
        Failure: There is no space left.
    """
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(document, indent=indent) + "\n", encoding="utf-8")


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]], raw: bool = False) -> None:
    """A table in UTF-8, whatever the system's own encoding; see `to_cell`.

    Raises:
        Failure: There is no space left.
    """
    with writing(path), path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([to_cell(cell, raw) for cell in row] for row in (header, *rows))


def to_cell(value: Any, raw: bool = False) -> Any:
    """What a CSV holds for a value: text is escaped and, unless `raw`, quoted where a spreadsheet would run it.

    A `'` in front makes text of a formula. `from_cell` is the inverse.
    """
    if not isinstance(value, str):
        return value
    text = escaped(value)
    return f"'{text}" if not raw and FORMULA.match(text) and not NUMBER.fullmatch(text) else text


def from_cell(cell: str) -> str:
    """The text that `to_cell` made a cell of."""
    return unescaped(cell[1:] if cell.startswith("'") and FORMULA.match(cell) else cell)


def escaped(text: str) -> str:
    r"""Text that UTF-8 can hold: a byte of a file name that is not UTF-8, which Python reads as a surrogate, as \udcff.

    A name that has these characters itself gets a second backslash in front. `unescaped` is the inverse.
    """
    return re.sub(
        r"(\\*)([\ud800-\udfff])|(\\+)(?=ud[89a-f][0-9a-f]{2})",
        lambda found: 2 * found[3] if found[3] else f"{2 * found[1]}\\u{ord(found[2]):04x}",
        text,
    )


def unescaped(text: str) -> str:
    """The text that `escaped` was given."""

    def restored(found: re.Match[str]) -> str:
        half, odd = divmod(len(found[1]), 2)
        return half * "\\" + (chr(int(found[2], 16)) if odd else f"u{found[2]}")

    return re.sub(r"(\\+)u(d[89a-f][0-9a-f]{2})", restored, text)


def check_folder(path: Path, flag: str = "--out", new: bool = False, otherwise: str = "") -> None:
    """Refuses, before any work, an output folder that is a file or, where it must be `new`, holds something.

    Args:
        path: The folder.
        flag: That gave it.
        new: Whether it must be empty.
        otherwise: Appended to the error message: what else the user can do.
    """
    if path.exists() and not path.is_dir():
        raise InputError(f"{path} is a file: {flag} must be a folder")
    if new and path.exists() and any(not child.name.startswith(".") for child in path.iterdir()):
        raise InputError(f"{path} is not empty: give another {flag}{otherwise}")
