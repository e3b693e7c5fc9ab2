"""Write predictions to a file for other programs: CSV, JSON lines, Parquet, or COCO's results format."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice, repeat
from pathlib import Path

from ..classnames import match_classes
from ..data.coco_ids import read_ids
from ..engines import Runnable
from ..errors import InputError, counted, notice
from ..files import escaped, replacing, write_csv
from ..tasks.base import Prediction, Task
from ..tasks.objects import coco_row

Write = Callable[[Iterable[Prediction]], None]
PARQUET_ROWS = 4096
"""Rows per row group."""


@dataclass(frozen=True)
class ResultIds:
    """The ids that a file in COCO's results format needs."""

    categories: Mapping[str, int]
    """Category id by class name. Objects of classes without an id are left out."""
    images: Mapping[Path, int] | None = None
    """Image id by path. None: the id is the file name without its suffix, as an integer if the name has only digits."""


def table_writer(
    path: Path,
    task: type[Task],
    top_k: int,
    ids: ResultIds | None = None,
    raw_cells: bool = False,
    judged: bool = False,
) -> Write:
    """Return a function that writes predictions to a file atomically. The suffix of the path sets the format.

    CSV has the columns `Task.csv_header`; for `raw_cells`, see `files.to_cell`. JSON lines and Parquet have path,
    labels, scores and error; for classifiers uncertain, and for detectors boxes and masks. JSON is COCO's results
    format. It is only for detectors and needs `ids`. `judged`: a classifier's images can be uncertain. Bytes of a file
    name that are not valid UTF-8 are written as \\udcff; see `files.escaped`.

    Raises:
        InputError: The suffix is not supported, or pyarrow is needed but not installed.
    """
    suffix = path.suffix.lower()
    allowed = [".csv", ".jsonl", ".parquet", *([] if task.labels_images else [".json"])]
    if suffix not in allowed:
        raise InputError(f"--out must end in one of {', '.join(allowed)}, got {path}")
    if suffix == ".parquet":
        try:
            import pyarrow  # noqa: F401
        except ImportError:
            raise InputError("Parquet needs pyarrow: pip install 'shvit[parquet]'") from None

    def write(predictions: Iterable[Prediction]) -> None:
        if suffix == ".csv":
            header, tables = task.csv_header(top_k, judged), (task.csv_rows(each, judged) for each in predictions)
            rows = (row + [""] * (len(header) - len(row)) for table in tables for row in table)
            write_csv(path.resolve(), header, rows, raw_cells)
            return
        with replacing(path.resolve()) as temporary:
            if suffix == ".parquet":
                _parquet(temporary, predictions, with_objects=not task.labels_images)
            elif suffix == ".json":
                assert ids is not None
                _coco(temporary, predictions, ids)
            else:
                _jsonl(temporary, predictions)

    return write


def result_ids(annotations: Path | None, images: Sequence[Path], model: Runnable) -> tuple[Sequence[Path], ResultIds]:
    """The images to predict, and the ids for COCO's results format.

    Args:
        annotations: A COCO JSON file or dataset. Images that it does not list are left out. None: all images are
            predicted, with ids guessed from file names and the category ids of the training dataset.

    Raises:
        InputError: The annotations list none of the images, or have a category that the model does not know.
    """
    known = model.provenance.get("categories") or range(1, 1 + len(model.classes))
    if annotations is None:
        notice("image ids are guessed from file names: to use the ids of a COCO dataset, give --annotations FILE")
        return images, ResultIds(dict(zip(model.classes, known, strict=True)))
    ids = read_ids(annotations, images)
    if not ids.images:
        raise InputError(f"{annotations} lists none of the {counted(len(images), 'image')}, such as {images[0]}")
    if ids.missing:
        notice(
            f"{annotations} does not list {len(ids.missing):,} of {counted(len(images), 'image')}, such as "
            f"{ids.missing[0]}; unlisted images are left out"
        )
    matched = match_classes(tuple(ids.categories), model.classes)
    categories = {model.classes[index]: id_ for index, id_ in zip(matched, ids.categories.values(), strict=True)}
    if other := [name for name in model.classes if name not in categories]:
        notice(
            f"{annotations} lacks {len(other)} of the model's classes, such as {other[0]}: objects of these classes "
            "are left out"
        )
    return list(ids.images), ResultIds(categories, ids.images)


def _coco(path: Path, predictions: Iterable[Prediction], ids: ResultIds) -> None:
    rows = (
        coco_row(_image_id(one.path, ids), ids.categories[label], box, score, mask)
        for one in predictions
        for label, box, score, mask in zip(
            one.labels, one.boxes or (), one.scores, one.masks or repeat(None), strict=False
        )
        if label in ids.categories
    )
    with path.open("w", encoding="utf-8", errors="backslashreplace") as file:
        between = "["
        for row in rows:
            print(between, json.dumps(row, ensure_ascii=False), sep="\n", end="", file=file)
            between = ","
        print("[]" if between == "[" else "\n]", file=file)


def _image_id(path: str, ids: ResultIds) -> int | str:
    stem = Path(path).stem
    guess = int(stem) if stem.isdecimal() else stem
    return guess if ids.images is None else ids.images[Path(path)]


def _jsonl(path: Path, predictions: Iterable[Prediction]) -> None:
    with path.open("w", encoding="utf-8", errors="backslashreplace") as file:  # surrogates become JSON escapes
        for prediction in predictions:
            print(json.dumps(prediction.to_dict(), ensure_ascii=False), file=file)


def _parquet(path: Path, predictions: Iterable[Prediction], with_objects: bool) -> None:
    import pyarrow as pa
    from pyarrow.parquet import ParquetWriter

    columns: list = [
        ("path", pa.string()),
        ("labels", pa.list_(pa.string())),
        ("scores", pa.list_(pa.float32())),
        ("error", pa.string()),
    ]
    if with_objects:
        mask = pa.struct([("size", pa.list_(pa.int32())), ("counts", pa.string())])
        columns += [("boxes", pa.list_(pa.list_(pa.float32()))), ("masks", pa.list_(mask))]
    else:
        columns.append(("uncertain", pa.bool_()))
    schema = pa.schema(columns)
    with path.open("wb") as file, ParquetWriter(file, schema) as writer:
        rows = iter(predictions)
        while batch := list(islice(rows, PARQUET_ROWS)):
            writer.write_table(pa.Table.from_pylist([_in_utf8(prediction) for prediction in batch], schema))


def _in_utf8(prediction: Prediction) -> dict:
    labels = tuple(map(escaped, prediction.labels))
    error = prediction.error and escaped(prediction.error)
    return replace(prediction, path=escaped(prediction.path), labels=labels, error=error).to_dict()
