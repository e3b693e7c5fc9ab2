"""Data sets of the Hugging Face hub, or saved for it: `hf://name`, `hf://name/config`, `hf://./folder`."""

import hashlib
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import InputError, one_line
from ..files import read_regular
from .decode import MAX_BYTES, BadImage
from .identity import of_bytes, of_file, of_name
from .sequences import Lazy
from .sources import EMPTY, DataError, Dataset, Drawing, Split, draw
from .splits import TRAIN_NAMES, VAL_NAMES

if TYPE_CHECKING:
    from datasets import Dataset as HubDataset
    from datasets import DatasetDict, Features

PREFIX = "hf://"


@dataclass(frozen=True, slots=True)
class HubImage:
    """A row's image."""

    rows: "HubDataset"
    row: int
    roots: tuple[Path, ...]
    """Folders that its file may be in."""

    def read(self) -> bytes:
        [cell] = self.rows[self.row].values()
        if cell and cell["bytes"]:
            return cell["bytes"]
        if not cell or not cell["path"]:
            raise BadImage("the row has no image")
        path = self._file(cell["path"])
        if path is None:
            raise BadImage(f"the row names {cell['path']!r}, which is no file of the data set")
        try:
            return read_regular(path, MAX_BYTES)
        except OSError as error:
            raise BadImage(f"{cell['path']}: {error.strerror}") from None

    def _file(self, name: str) -> Path | None:
        """The file that a row names, if it lies where the data set does; rows come from anywhere."""
        path = Path(os.path.normpath(Path(name).absolute()))
        inside = any(path.is_relative_to(root) for root in self.roots)
        return path if inside and path.is_file() else None

    def identity(self) -> int:
        """Without copying the image, which may lie in a file that is mapped into memory."""
        cell: Any = self.rows.data.column(0)[self.row]
        if cell.is_valid and cell["bytes"].is_valid and len(cell["bytes"].as_buffer()):
            return of_bytes(memoryview(cell["bytes"].as_buffer()))
        if cell.is_valid and cell["path"].is_valid and (path := self._file(cell["path"].as_py())):
            return of_file(path)
        return of_name("no image")


@dataclass(frozen=True)
class HubImages(Lazy[HubImage]):
    """The images of all rows."""

    rows: "HubDataset"
    roots: tuple[Path, ...]

    def __len__(self) -> int:
        return len(self.rows)

    def item(self, place: int) -> HubImage:
        return HubImage(self.rows, place, self.roots)


@dataclass(frozen=True)
class RowNames(Lazy[str]):
    """`train/17`."""

    split: str
    rows: int

    def __len__(self) -> int:
        return self.rows

    def item(self, place: int) -> str:
        return f"{self.split}/{place}"


def open_hub(data: str, how: Drawing) -> Dataset:
    """The data set, whose one image column and one column of class labels are found by their types.

    Raises:
        DataError: There is no such data set, it cannot be had, or its columns leave open what is meant.
        InputError: datasets is not installed.
    """
    try:
        import datasets
    except ImportError:
        raise InputError(f"{data} needs datasets, which is not installed: pip install 'shvit[hf]'") from None
    with _quiet():
        loaded, roots = _load(data), _roots(data)
        train, val = (next((n for n in names if n in loaded), None) for names in (TRAIN_NAMES, VAL_NAMES))
        named = [name for name in (train, val) if name]
        if not named:
            raise DataError(f"{data} has the splits {', '.join(map(str, loaded))}: needed is train, validation or test")
        features = loaded[named[0]].features
        image, label = (_only(data, features, kind) for kind in (datasets.Image, datasets.ClassLabel))
        bytes_only = datasets.Image(decode=False)
        splits = {
            name: _split(name, loaded[name].select_columns([image]).cast_column(image, bytes_only), labels, roots)
            for name in named
            for labels in [loaded[name].data.column(label).fill_null(-1).to_numpy()]
        }
    classes = tuple(features[label].names)
    fingerprint = _fingerprint(classes, splits.values())
    if val is None:
        return draw(data, classes, splits[named[0]], how, fingerprint)
    return Dataset(data, classes, splits[train] if train else EMPTY, splits[val], fingerprint=fingerprint)


def _load(data: str) -> "DatasetDict":
    """Raises DataError."""
    import datasets
    from datasets.exceptions import DatasetNotFoundError, DatasetsError
    from huggingface_hub.errors import HfHubHTTPError

    reason = ""
    for path, config in _meanings(data):
        try:
            loaded = datasets.load_dataset(path, config)
            assert isinstance(loaded, datasets.DatasetDict)  # as without `split` and `streaming` it is
            return loaded
        except DatasetNotFoundError as error:
            reason = reason or one_line(error)
        except (OSError, ValueError, DatasetsError, HfHubHTTPError) as error:
            reason = one_line(error)
            break
    raise DataError(f"{data} cannot be opened: {reason}")


def _meanings(data: str) -> list[tuple[str, str | None]]:
    """Path or name, and configuration, that may be meant. Raises DataError."""
    name = data.removeprefix(PREFIX)
    if name.startswith((".", "/", "~")):
        if not (folder := Path(name).expanduser()).is_dir():
            raise DataError(f"{data}: there is no folder {folder}")
        return [(str(folder), None)]
    match name.split("/"):
        case [name] if name:
            return [(name, None)]
        case [owner, name] if owner and name:
            return [(f"{owner}/{name}", None), (owner, name)]
        case [owner, name, config] if owner and name and config:
            return [(f"{owner}/{name}", config)]
    raise DataError(f"{data}: expected hf://name, hf://owner/name, either with /config, or hf://./folder")


def _only(data: str, features: "Features", kind: type) -> str:
    """The one column of that kind. Raises DataError."""
    found = [name for name, feature in features.items() if isinstance(feature, kind)]
    if len(found) != 1:
        columns = ", ".join(f"{name} ({type(feature).__name__})" for name, feature in features.items())
        raise DataError(f"{data} must have one column of type {kind.__name__}, it has {len(found)}: {columns}")
    return found[0]


def _roots(data: str) -> tuple[Path, ...]:
    """Where the files of a data set are: in its folder, or in the cache that it was fetched into."""
    from datasets import config
    from huggingface_hub import constants

    folder, _ = _meanings(data)[0]
    local = data.removeprefix(PREFIX).startswith((".", "/", "~"))
    fetched = (constants.HF_HUB_CACHE, config.HF_DATASETS_CACHE, config.DOWNLOADED_DATASETS_PATH)
    places = [folder] if local else fetched
    return tuple({root for place in places for root in (Path(place).absolute(), Path(place).resolve())})


def _split(name: str, rows: "HubDataset", labels: np.ndarray, roots: tuple[Path, ...]) -> Split:
    bad = dict.fromkeys(np.flatnonzero(labels < 0).tolist(), "the row has no label")
    return Split(HubImages(rows, roots), labels, RowNames(name, len(rows)), bad=bad)


def _fingerprint(classes: tuple[str, ...], splits: Iterable[Split]) -> str:
    """Of classes, labels and lengths."""
    from pyarrow import compute

    functions: Any = compute  # made when it is imported, so that its types do not know them
    digest = hashlib.sha256("\0".join(classes).encode(errors="surrogatepass"))
    for split in splits:
        assert isinstance(split.images, HubImages)
        [column] = split.images.rows.data.columns
        lengths = functions.binary_length(functions.struct_field(column, "bytes")).fill_null(0).to_numpy()
        digest.update(lengths.astype("<i8").tobytes() + np.asarray(split.labels, "<i8").tobytes())
    return digest.hexdigest()[:16]


_quiet_lock = Lock()


@contextmanager
def _quiet() -> Iterator[None]:
    """Progress bars for people only, and errors instead of warnings on the way to them. One thread at a time."""
    import datasets
    from huggingface_hub.utils import logging as hub_logging

    logging = datasets.utils.logging
    with _quiet_lock:
        shown = not datasets.utils.are_progress_bars_disabled()
        levels = logging.get_verbosity(), hub_logging.get_verbosity()
        logging.set_verbosity_error()
        hub_logging.set_verbosity_error()
        if not sys.stderr.isatty():
            datasets.disable_progress_bars()
        try:
            yield
        finally:
            logging.set_verbosity(levels[0])
            hub_logging.set_verbosity(levels[1])
            if shown:
                datasets.enable_progress_bars()
