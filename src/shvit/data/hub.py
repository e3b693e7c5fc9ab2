"""Open datasets of the Hugging Face hub, or local datasets: `hf://name`, `hf://name/config`, `hf://./folder`."""

import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import DataError, InputError, one_line
from ..files import read_regular
from .dataset import Dataset, Holdout, Split, dataset_of
from .identity import of_bytes, of_file, of_name
from .image_file import MAX_BYTES, BadImage
from .sequences import Computed, Lazy
from .splits import TEST_NAMES, TRAIN_NAMES, VAL_NAMES

if TYPE_CHECKING:
    from datasets import Dataset as HubDataset
    from datasets import DatasetDict, Features

PREFIX = "hf://"


@dataclass(frozen=True, slots=True)
class HubImage:
    """The image in one row of a Hugging Face dataset."""

    rows: "HubDataset"
    row: int
    roots: tuple[Path, ...]
    """Folders that may contain the image file."""

    def read(self) -> bytes:
        """The bytes of the image file. Raises BadImage if the row has no image."""
        [cell] = self.rows[self.row].values()
        if cell and cell["bytes"]:
            return cell["bytes"]
        if not cell or not cell["path"]:
            raise BadImage("the row has no image")
        path = self._file(cell["path"])
        if path is None:
            raise BadImage(f"the row refers to {cell['path']!r}, which is not a file of the dataset")
        try:
            return read_regular(path, MAX_BYTES)
        except OSError as error:
            raise BadImage(f"{cell['path']}: {error.strerror}") from None

    def _file(self, name: str) -> Path | None:
        """The file that a row names; None unless it lies in the dataset's folders, because rows are untrusted."""
        path = Path(os.path.normpath(Path(name).absolute()))
        return path if any(map(path.is_relative_to, self.roots)) and path.is_file() else None

    def identity(self) -> int:
        """The identity of the image. An image in a memory-mapped file is hashed without copying it."""
        cell: Any = self.rows.data.column(0)[self.row]
        if cell.is_valid and cell["bytes"].is_valid and len(cell["bytes"].as_buffer()):
            return of_bytes(memoryview(cell["bytes"].as_buffer()))
        if cell.is_valid and cell["path"].is_valid and (path := self._file(cell["path"].as_py())):
            return of_file(path)
        return of_name("no image")


@dataclass(frozen=True)
class HubImages(Lazy[HubImage]):
    """The images of all rows, as a lazy sequence."""

    rows: "HubDataset"
    roots: tuple[Path, ...]

    def __len__(self) -> int:
        return len(self.rows)

    def item(self, index: int) -> HubImage:
        return HubImage(self.rows, index, self.roots)


def open_hub(data: str, holdout: Holdout) -> Dataset:
    """Open a dataset that has one image column and one column of class labels, found by their types.

    Raises:
        DataError: There is no such dataset, it cannot be loaded, or its columns are ambiguous.
        InputError: The package `datasets` is not installed.
    """
    try:
        import datasets
    except ImportError:
        raise InputError(
            f"{data} needs the package 'datasets', which is not installed: pip install 'shvit[hf]'"
        ) from None
    with _without_warnings():
        loaded, roots = _load(data), _roots(data)
        known = {"train": TRAIN_NAMES, "val": VAL_NAMES, "test": TEST_NAMES}
        found = {split: next((n for n in names if n in loaded), None) for split, names in known.items()}
        only_train = found["train"] and not (found["val"] or found["test"])
        named, warnings = holdout.arrange({"all": found["train"]} if only_train else found)
        if not (first := next(filter(None, named.values()), None)):
            raise DataError(f"{data} has the splits {', '.join(map(str, loaded))}: expected train, validation or test")
        features = loaded[first].features
        image, label = (_only(data, features, kind) for kind in (datasets.Image, datasets.ClassLabel))
        splits = {}
        for split, name in named.items():
            if name:
                rows = loaded[name].select_columns([image]).cast_column(image, datasets.Image(decode=False))
                labels = loaded[name].data.column(label).fill_null(-1).to_numpy()
                bad = dict.fromkeys(np.flatnonzero(labels < 0).tolist(), "the row has no label")
                names = Computed(len(rows), f"{name}/{{}}".format)
                splits[split] = Split(HubImages(rows, roots), labels, names, bad=bad)
    return dataset_of(data, tuple(features[label].names), splits, holdout, _contents, warnings)


def _load(data: str) -> "DatasetDict":
    """Download the dataset if necessary, and open it. Raises DataError."""
    import datasets
    from datasets.exceptions import DatasetNotFoundError, DatasetsError
    from huggingface_hub.errors import HfHubHTTPError

    reason = ""
    for path, config in _meanings(data):
        try:
            loaded = datasets.load_dataset(path, config)
            assert isinstance(loaded, datasets.DatasetDict)  # because `split` and `streaming` are not given
            return loaded
        except DatasetNotFoundError as error:
            reason = reason or one_line(error)
        except (OSError, ValueError, DatasetsError, HfHubHTTPError) as error:
            raise DataError(f"{data} cannot be opened: {one_line(error)}") from None
    raise DataError(f"{data} cannot be opened: {reason}")


def _meanings(data: str) -> list[tuple[str, str | None]]:
    """The pairs of (path or name, configuration) that `data` may stand for. Raises DataError."""
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
    raise DataError(f"{data}: expected hf://name or hf://owner/name, with /config if needed, or hf://./folder")


def _only(data: str, features: "Features", kind: type) -> str:
    """The only column of this type. Raises DataError if there is none or more than one."""
    matching = [name for name, feature in features.items() if isinstance(feature, kind)]
    if len(matching) != 1:
        columns = ", ".join(f"{name} ({type(feature).__name__})" for name, feature in features.items())
        found = f"has {len(matching)}. Columns: {columns}"
        raise DataError(f"{data} must have exactly one column of type {kind.__name__}, but {found}")
    return matching[0]


def _roots(data: str) -> tuple[Path, ...]:
    """The folders that may contain a dataset's image files: a local dataset's folder, or the Hugging Face caches."""
    from datasets import config
    from huggingface_hub import constants

    folders = constants.HF_HUB_CACHE, config.HF_DATASETS_CACHE, config.DOWNLOADED_DATASETS_PATH
    if data.removeprefix(PREFIX).startswith((".", "/", "~")):
        folders = [_meanings(data)[0][0]]
    return tuple({root for each in folders for root in (Path(each).absolute(), Path(each).resolve())})


def _contents(split: Split) -> Iterator[bytes]:
    """The bytes that the fingerprint covers: the length and label of each image."""
    from pyarrow import compute

    functions: Any = compute  # created at import, so type checkers do not know them
    assert isinstance(split.images, HubImages)
    [column] = split.images.rows.data.columns
    lengths = functions.binary_length(functions.struct_field(column, "bytes")).fill_null(0).to_numpy()
    yield lengths.astype("<i8").tobytes() + np.asarray(split.labels, "<i8").tobytes()


_logging_lock = Lock()


@contextmanager
def _without_warnings() -> Iterator[None]:
    """Hide warnings, and show progress bars only in a terminal. Only one thread at a time can use this context."""
    import datasets
    from huggingface_hub.utils import logging as hub_logging

    with _logging_lock, ExitStack() as restored:
        for logging in (datasets.utils.logging, hub_logging):
            restored.callback(logging.set_verbosity, logging.get_verbosity())
            logging.set_verbosity_error()
        if not (sys.stderr.isatty() or datasets.utils.are_progress_bars_disabled()):
            restored.callback(datasets.enable_progress_bars)
            datasets.disable_progress_bars()
        yield
