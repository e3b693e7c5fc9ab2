"""Find files below a folder. Links to folders are followed, each folder is read once, and hidden names are skipped."""

import os
from collections.abc import Iterator
from pathlib import Path

from ..errors import InputError

HIDDEN_FOLDERS = {"@eaDir", "__MACOSX"}
"""Names of folders that tools create. They count as hidden, like all names that begin with a dot."""
Id = tuple[int, int]
"""Device and inode number, which identify a real folder."""


def is_hidden(name: str) -> bool:
    """Whether a file or folder of this name is hidden."""
    return name.startswith(".") or name in HIDDEN_FOLDERS


def folders_in(folder: Path) -> list[Path]:
    """The subfolders of a folder, sorted, except hidden ones and links to the folder itself or to a folder above it."""
    above = _ids_above(folder)
    return sorted(
        Path(entry.path)
        for entry in _entries(folder)
        if _is_folder(entry) and not is_hidden(entry.name) and _id(entry) not in above
    )


def files_below(folder: Path, hidden: list[Path] | None = None) -> Iterator[Path]:
    """The files in `folder` and below it: the files of each folder before those of its subfolders, sorted by name.

    A folder that several links point to is read once, under its real path if this path lies below `folder`. A link to
    `folder` or to a folder above it is not followed. Pipes, devices and links to missing files count as files; reading
    them reports the problem. Hidden files and folders are added to `hidden`.

    Raises:
        InputError: A folder cannot be read.
    """
    read, seen, links = [], _ids_above(folder), []
    waiting = [folder]
    while waiting or links:
        if not waiting:  # all real folders have been read, so links can be compared with them
            link, id_ = links.pop(0)
            if id_ in seen:
                continue
            seen.add(id_)
            waiting.append(link)
        current, files = waiting.pop(), []
        for entry in sorted(_entries(current), key=lambda entry: entry.name):
            if is_hidden(entry.name):
                if hidden is not None:
                    hidden.append(Path(entry.path))
            elif not _is_folder(entry):
                files.append(entry.name)
            elif entry.is_symlink():
                links.append((Path(entry.path), _id(entry)))
            elif (id_ := _id(entry)) not in seen:
                seen.add(id_)
                waiting.append(Path(entry.path))
        read.append((current, files))
    for current, files in sorted(read, key=lambda pair: pair[0]):
        yield from (current / name for name in files)


def is_file(path: Path) -> bool:
    """Whether a path is an existing file; False for an invalid path, as in `exists`."""
    return exists(path) and path.is_file()


def exists(path: Path) -> bool:
    """Whether a file or folder exists; False for a path that is too long or contains NUL."""
    try:
        return path.exists()
    except OSError:
        return False


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    """The entries of a folder. Raises InputError if it cannot be read."""
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError as error:
        raise InputError(f"{folder} cannot be read: {error.strerror or error}") from None


def _ids_above(folder: Path) -> set[Id]:
    """Ids of a folder and of all folders above it, along the given path and along the resolved path."""
    real, beside = folder.resolve(), folder.parent.resolve()
    return set(map(_id, [real, *real.parents, beside, *beside.parents]))


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # for example, a link to itself
        return False


def _id(entry: os.DirEntry[str] | Path) -> Id:
    stat = entry.stat()
    return stat.st_dev, stat.st_ino
