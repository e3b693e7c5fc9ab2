"""Read CSV files of images and labels. Columns are found by their names, in any order, with any common separator."""

import csv
import io
import os
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from urllib.parse import urlsplit

from ..errors import DataError, counted, few
from ..files import MAX_TEXT, from_cell, read_regular
from .listing import Labelled, Listing
from .splits import split_of
from .walk import exists

CSV_SUFFIXES = (".csv", ".tsv")
SEPARATORS = ",;\t|"
SNIFFED_ROWS = 100
"""Maximum number of rows that are read to find the separator."""
PATH_COLUMNS = (
    *("path", "file_path", "filepath", "filepaths", "image_path", "img_path", "filename", "file_name", "filenames"),
    *("file", "files", "image_name", "img_name", "image_file", "image", "images", "img", "picture", "photo"),
    *("image_id", "img_id", "id", "url", "image_url"),
)
LABEL_COLUMNS = (
    *("label", "labels", "class", "class_name", "classname", "class_label", "label_name", "category", "categories"),
    *("category_name", "target", "targets", "species", "breed", "tag", "y", "class_id", "label_id", "category_id"),
)
SPLIT_COLUMNS = ("split", "splits", "set", "data_set", "subset", "partition")
"""Known names of the path, label and split columns. If a header has several names for one column, the name listed first
here is used."""
ROW_NUMBERS = ("index", "unnamed")
"""Columns whose names begin with one of these words only number the rows."""
FLAG_COLUMNS = {
    **dict.fromkeys(("is_valid", "is_val", "is_validation"), ("train", "val")),
    **{"is_train": ("val", "train"), "is_training": ("val", "train"), "is_test": ("train", "test")},
}
"""Names of columns that hold 0 or 1; for each, the split that 0 means and the split that 1 means."""
FLAGS = {"1": 1, "true": 1, "yes": 1, "0": 0, "false": 0, "no": 0}


@dataclass(frozen=True)
class _Columns:
    """Index of each column in a row."""

    path: int = 0
    label: int = 1
    split: int | None = 2
    flag: str | None = None
    """The name of the split column if it is one of `FLAG_COLUMNS`."""
    header: tuple[str, ...] = ()
    """The first row; empty if it is not a header."""


def read_csv(path: Path) -> Listing:
    """Read the images, labels and splits in a CSV file, in order. Relative paths start at the file's folder.

    Columns are separated by commas, semicolons, tabs or vertical bars, and are found by the names in the first row.
    Without a header row, the order is path, label and optionally split. The text is UTF-8, or UTF-16 with a byte order
    mark.

    Raises:
        DataError: The file cannot be read, a row is incomplete, or none of the images exists.
    """
    rows = list(_rows(path, _text(path)))
    columns = _columns(path, rows[0][1]) if rows else _Columns()
    rows = rows[1:] if columns.header else rows
    if not rows:
        raise DataError(f"{path} has no rows: expected rows of path,label")
    by_split: dict[str, list[tuple[Path, str]]] = {"": [], "train": [], "val": [], "test": []}
    for number, row in rows:
        split, cell, label = _read(path, number, row, columns)
        by_split[split].append((_located(path.parent, cell), label))
    unsplit, train, val, test = by_split.values()
    everything = [*unsplit, *train, *val, *test]
    _check_files(path, everything, [row[columns.path] for _, row in rows], columns)
    if 0 < len(unsplit) < len(everything):
        raise DataError(f"{path}: {counted(len(unsplit), 'row')} without a split: give every row a split, or none")
    splits = {"all": unsplit} if unsplit else {"train": train, "val": val, "test": test}
    warnings = tuple(_warnings(columns, everything))
    return Listing({name: Labelled.of(images) for name, images in splits.items()}, warnings)


def _text(path: Path) -> str:
    """The text of the file. Raises DataError if the file cannot be read, or is neither UTF-8 nor UTF-16."""
    try:
        data = read_regular(path, MAX_TEXT)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from None
    encoding, name = ("utf-16", "UTF-16") if data[:2] in (b"\xff\xfe", b"\xfe\xff") else ("utf-8-sig", "UTF-8")
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not {name} ({error.reason} at byte {error.start}): save it as UTF-8") from None
    if "\0" in text:
        raise DataError(f"{path} has NUL characters, so it may be UTF-16 without a byte order mark: save it as UTF-8")
    return text


def _rows(path: Path, text: str) -> Iterator[tuple[int, list[str]]]:
    """Yields the line number and the cells of each row that is not empty."""
    separator = next((one for one in SEPARATORS if _fits(text, one)), ",")
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator)
    try:
        for row in reader:
            cells = [cell.strip() for cell in row]
            if any(cells):
                yield reader.line_num, cells
    except csv.Error as error:
        raise DataError(f"{path} line {reader.line_num}: {error}") from None


def _fits(text: str, separator: str) -> bool:
    """Whether a separator divides each of the first rows into the same number of cells, at least two."""
    try:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator)
        counts = {len(row) for row in islice(reader, SNIFFED_ROWS) if any(row)}
    except csv.Error:
        return False
    return len(counts) == 1 and counts.pop() > 1


def _columns(path: Path, first: list[str]) -> _Columns:
    """Find the columns by the names in the first row, or by position if that row is not a header."""
    names = [cell.lower().replace(" ", "_").replace("-", "_") for cell in first]
    image, label, split, flag = (
        next((names.index(name) for name in known if name in names), None)
        for known in (PATH_COLUMNS, LABEL_COLUMNS, SPLIT_COLUMNS, FLAG_COLUMNS)
    )
    rest = [index for index, name in enumerate(names) if name and index not in (image, label, split, flag)]
    if len(rest) == 1 and (image is None) != (label is None) and "." not in names[rest[0]]:
        image, label = (rest[0] if index is None else index for index in (image, label))  # the only other column
    if image is None or label is None or any(exists(_located(path.parent, cell)) for cell in first if cell):
        return _Columns()
    if split is None and flag is not None:
        return _Columns(image, label, flag, names[flag], tuple(first))
    return _Columns(image, label, split, None, tuple(first))


def _read(path: Path, number: int, row: list[str], columns: _Columns) -> tuple[str, str, str]:
    """Split, path and label of a row. Raises DataError."""
    width = len(columns.header) or 3
    cells = row + [""] * (width - len(row))
    cell, label = cells[columns.path], cells[columns.label]
    if len(row) > width or not cell or not label:
        expected = ",".join(columns.header) or "path,label or path,label,split"
        raise DataError(f"{path} line {number}: expected {expected}, got {row}")
    word = "" if columns.split is None else cells[columns.split]
    if columns.flag:
        if (flag := FLAGS.get(word.lower().removesuffix(".0"))) is None:
            raise DataError(f"{path} line {number}: {columns.flag} must be 0 or 1, got {word!r}")
        return FLAG_COLUMNS[columns.flag][flag], cell, from_cell(label)
    if (split := split_of(word) if word else "") is None:
        raise DataError(f"{path} line {number}: split must be train, val or test, got {word!r}")
    return split, cell, from_cell(label)


def _located(folder: Path, cell: str) -> Path:
    """The file that a cell names. The cell may be escaped by shvit, or contain Windows' backslashes."""
    candidates = dict.fromkeys([cell, from_cell(cell), cell.replace("\\", "/")])
    if len(candidates) == 1:
        return folder / cell
    return next((folder / one for one in candidates if exists(folder / one)), folder / from_cell(cell))


def _check_files(path: Path, rows: list[tuple[Path, str]], cells: list[str], columns: _Columns) -> None:
    """Raises DataError if no file exists, or if the first row seems to be a header with unknown names."""
    if not any(exists(file) for file, _ in rows):
        url = urlsplit(cells[0])
        remote = f"{url.scheme}://{url.hostname}{url.path}, a URL: download the images first"
        first = remote if url.scheme and url.netloc else rows[0][0]
        raise DataError(f"{path}: 0 of {counted(len(rows), 'image')} found; the first path is {first}")
    names = not columns.header and len(cells) > 1 and not Path(cells[0]).suffix and Path(cells[1]).suffix
    if names and not exists(_located(path.parent, cells[0])):
        raise DataError(
            f"{path} line 1: {cells[0]!r} is neither an image nor a known column name: use the names 'path' and 'label'"
        )


def _warnings(columns: _Columns, rows: list[tuple[Path, str]]) -> Iterator[str]:
    used = [index for index in (columns.path, columns.label, columns.split) if index is not None]
    others = [name for index, name in enumerate(columns.header) if index not in used]
    if unused := [name for name in others if name and not name.lower().startswith(ROW_NUMBERS)]:
        read = [columns.header[index] for index in used]
        yield f"columns read: {', '.join(read)}; not used: {few(unused)}"
    labels = defaultdict[str, set[str]](set)
    for file, label in rows:
        labels[os.path.normpath(file)].add(label)
    if several := [file for file, names in labels.items() if len(names) > 1]:
        names = few(sorted(labels[several[0]]))
        yield f"{counted(len(several), 'image')} with more than one label, such as {several[0]}: {names}"
