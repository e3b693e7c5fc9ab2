"""Reading and writing files safely: regular files of bounded size; whole or not at all; tables as CSV."""

import csv
import errno
import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .errors import InputError

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
    """A temporary path beside `path` to write to; it takes that place, on disk, when the block ends well."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def sweep(folder: Path) -> None:
    """Remove what `replacing` left behind in this folder, in processes that were killed."""
    for path in folder.iterdir():
        if re.fullmatch(r"\..+\.\d+", path.name):
            path.unlink(missing_ok=True)


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """A table in UTF-8, whatever the system's own encoding."""
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])


def check_folder(path: Path, flag: str = "--out", new: bool = False, otherwise: str = "") -> None:
    """Refuses, before any work, an output folder that is a file or, where it must be `new`, holds something.

    Args:
        path: The folder.
        flag: That gave it.
        new: Whether it must be empty.
        otherwise: Ends the error with what else the user can do.
    """
    if path.exists() and not path.is_dir():
        raise InputError(f"{path} is a file: {flag} must be a folder")
    if new and path.exists() and any(not child.name.startswith(".") for child in path.iterdir()):
        raise InputError(f"{path} is not empty: give another {flag}{otherwise}")
