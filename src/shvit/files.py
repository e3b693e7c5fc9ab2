"""Ways to write a file that hold everywhere: whole or not at all, and tables as CSV."""

import csv
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .errors import InputError


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
