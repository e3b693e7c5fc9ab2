"""Ways to write a file that hold everywhere: whole or not at all, and tables as CSV."""

import csv
import os
import re
import shutil
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


def place(export: Path, target: Path) -> None:
    """Move a finished export, and the files that lie beside it, from its temporary folder to where it belongs.

    Whole or not at all, wherever a crash falls: all of it is on disk before anything is moved. Of `.xml` and `.bin`,
    the old `.xml` goes first and the new one comes last, since nobody reads a `.bin` without it. A folder cannot take
    the place of another in one step: the old one moves aside to `.NAME.old`, and is removed when the new one is there.

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
