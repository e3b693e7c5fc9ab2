"""Parse COCO annotation files. Common variants of ids, file names and crowd flags are accepted."""

import re
from collections.abc import Sequence
from pathlib import Path
from reprlib import repr as shown
from typing import Any

from ..errors import DataError
from ..files import read_json


def read_document(path: Path, lists: Sequence[str]) -> dict[str, Any]:
    """Read the JSON object of a COCO file. Raises DataError if one of the named `lists` is missing."""
    try:
        document = read_json(path)
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    if not isinstance(document, dict):
        raise DataError(f"{path} is not a COCO file: expected an object with images, annotations and categories")
    for key in lists:
        if not isinstance(document.get(key), list):
            raise DataError(f"{path} is not a COCO file: it has no list named {key!r}")
    return document


def read_categories(rows: list[Any], path: Path) -> dict[int, str]:
    """The name of each category id, sorted by id. Raises DataError for invalid or repeated categories."""
    categories: dict[int, str] = {}
    for row in rows:
        key, name = (whole_number(row, "id"), row.get("name")) if isinstance(row, dict) else (None, None)
        if key is None or not isinstance(name, str) or not name:
            raise DataError(f"{path}: a category must have a whole number as id, and a name; got {shown(row)}")
        if key in categories:
            raise DataError(f"{path}: the categories {categories[key]!r} and {name!r} have the same id {key}")
        if name in categories.values():
            raise DataError(f"{path}: two categories are named {name!r}")
        categories[key] = name
    if not categories:
        raise DataError(f"{path} has no categories")
    return dict(sorted(categories.items()))


def common_categories(given: Sequence[dict[int, str]], root: Path) -> dict[int, str]:
    """The categories, which must be the same in all files. Raises DataError if they differ."""
    first, *others = given
    if different := next((other for other in others if other != first), None):
        [(key, name), *_] = sorted(first.items() ^ different.items())
        raise DataError(f"{root}: its annotation files disagree on the categories, for example on {key}: {name}")
    return first


def whole_number(row: dict[str, Any], name: str) -> int | None:
    """A field as a 64-bit whole number, even if it is stored as text or with a decimal point; None for other values."""
    value = row.get(name)
    if isinstance(value, str) and re.fullmatch(r"-?[0-9]{1,18}(\.0+)?", value.strip()):
        value = int(value.partition(".")[0])
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63 else None


def is_crowd(value: Any) -> bool | None:
    """Whether an `iscrowd` value means a crowd; None if it is invalid."""
    if isinstance(value, str):
        return {"0": False, "1": True, "false": False, "true": True, "": False}.get(value.strip().lower())
    return bool(value) if value is None or isinstance(value, int | float) else None


def file_name(row: Any) -> str | None:
    """The file name in an image's entry; None if there is none. A number is converted to text."""
    value = row.get("file_name") if isinstance(row, dict) else None
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return value if isinstance(value, str) and value else None
