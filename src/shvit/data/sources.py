"""Open a dataset by name: class folders, a CSV file, WebDataset shards, a Hugging Face dataset, or `digits`."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ..errors import DataError
from .csv_files import CSV_SUFFIXES, read_csv
from .dataset import Dataset, DrawnBy, Holdout, Split, dataset_of, file_sizes
from .folders import read_folder
from .hub import PREFIX, open_hub
from .listing import Listing
from .shards.download import is_remote
from .shards.index import INDEX, UNFINISHED, open_shards


def open_source(data: str | Path, seed: int = 0, val_share: float = 0.2, drawn_by: DrawnBy = "hash") -> Dataset:
    """Open a classification dataset.

    Args:
        data: One of these:
            - a folder with `<class>/…`, or with `train/<class>/…`, `val/<class>/…` and `test/<class>/…`; see
              `folders.read_folder`;
            - a CSV or TSV file with the columns path, label and optionally split; see `csv_files.read_csv`;
            - WebDataset shards (see `shvit.data.shards`): a folder of shards, a `shards.json` file, or `.tar` files
              with braces for numbers. Files may be URLs, such as `https://host/data-{000..127}.tar`;
            - a Hugging Face dataset: from the hub (`hf://name`, `hf://name/config`) or local (`hf://./folder`);
            - `digits`: the digits of scikit-learn (for a folder of that name write `./digits`).
        seed: Seed for drawing the validation images if the data has no validation split; see `Holdout`.
        val_share: Share of the images to draw for validation, between 0 and 1. Every class with two or more images has
            at least one in each split.
        drawn_by: `content` and `position` reproduce the splits that earlier versions made.

    Raises:
        DataError: The data does not exist, or is none of the above.
    """
    if not 0 < val_share < 1:
        raise DataError(f"the share of validation images must be between 0 and 1, got {val_share}")
    holdout = Holdout(seed, val_share, drawn_by)
    if data == "digits":
        return _digits(holdout)
    if is_sharded(data):
        return open_shards(data, holdout)
    if str(data).startswith(PREFIX):
        return open_hub(str(data), holdout)
    path = Path(data)
    if path.is_dir():
        return _of_files(str(path), read_folder(path), holdout)
    if path.is_file() and path.suffix.lower() in CSV_SUFFIXES:
        return _of_files(str(path), read_csv(path), holdout)
    problem = "no such file or folder" if not path.exists() else "neither a folder nor a CSV file nor shards"
    raise DataError(
        f"{data}: {problem}; expected a folder of class folders, a CSV of path,label, shards (.tar or shards.json), "
        "hf://name or the word digits"
    )


def is_data(name: str) -> bool:
    """Whether a name refers to data rather than to a model."""
    listed = name.lower().endswith((*CSV_SUFFIXES, ".yaml", ".yml", ".json")) and not name.endswith(INDEX)
    return name == "digits" or listed or Path(name).is_dir() or name.startswith(PREFIX) or is_sharded(name)


def is_listed(data: str | Path) -> bool:
    """Whether data consists of separate files, which must be found before they can be read."""
    return data != "digits" and not str(data).startswith(PREFIX) and not is_sharded(data)


def is_sharded(data: str | Path) -> bool:
    """Whether `data` has a suffix of WebDataset shards, is a URL (except `hf://`), or is a folder of shards."""
    text = str(data)
    if ".tar" in Path(text).suffixes[-2:] or text.endswith((".tgz", INDEX)):
        return True
    folder = Path(data)
    if is_remote(text) or not folder.is_dir():
        return is_remote(text) and not text.startswith(PREFIX)
    if (folder / INDEX).exists() or (folder / UNFINISHED).exists():
        return True
    # tar files beside folders do not count, because the folders may hold the unpacked images
    visible = [child for child in folder.iterdir() if not child.name.startswith(".")]
    return any(child.suffix == ".tar" for child in visible) and not any(child.is_dir() for child in visible)


def _digits(holdout: Holdout) -> Dataset:
    """The 1,797 handwritten digits of scikit-learn, 8x8 pixels each."""
    from sklearn.datasets import load_digits

    loaded = load_digits()
    images = [(pixels * 255 / 16).round().astype(np.uint8) for pixels in loaded.images]  # pyright: ignore
    labels = [int(label) for label in loaded.target]  # pyright: ignore
    split = Split(images, labels, [f"digits/{index}" for index in range(len(images))])
    return dataset_of("digits", tuple("0123456789"), {"all": split}, holdout, _contents)


def _of_files(name: str, listing: Listing, holdout: Holdout) -> Dataset:
    """Make a dataset from images that are separate files."""
    listed, problems = holdout.arrange(listing.splits)
    present = {name: images.present() for name, images in listed.items()}
    tested = present.pop("test", set())
    classes = tuple(sorted(set().union(*present.values()) or tested))
    label_of = {name: label for label, name in enumerate([*classes, *sorted(tested.difference(classes))])}
    splits = {}
    for split, images in listed.items():
        labels = np.array([label_of.get(label, -1) for label in images.classes], np.int32)  # -1: a class without files
        splits[split] = Split(images.files, labels[images.numbers], images.files.texts())
    return dataset_of(name, classes, splits, holdout, _contents, [*problems, *listing.warnings])


def _contents(split: Split) -> Iterator[bytes]:
    """The bytes that the fingerprint covers: name, size and label of each file, or pixels and label of each array."""
    for image, label, size in zip(split.images, split.labels, file_sizes(split).tolist(), strict=True):
        content = image.name.encode(errors="surrogatepass") if isinstance(image, Path) else np.asarray(image).tobytes()
        yield content + f"\0{None if size < 0 else size}\0{label}\n".encode()
    yield b"split\n"
