"""Predictions as a file that other programs read: CSV, JSON lines, Parquet or COCO results."""

import csv
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path

from ..data.coco_ids import CocoIds
from ..errors import InputError
from ..files import escaped, replacing, to_cell
from .predictor import Prediction

Write = Callable[[Iterable[Prediction]], None]
PARQUET_ROWS = 4096


def table_writer(
    path: Path,
    top_k: int,
    categories: Mapping[str, int] | None = None,
    ids: CocoIds | None = None,
    raw_cells: bool = False,
) -> Write:
    """What writes predictions into a file, whole or not at all; the suffix of `path` says in which format.

    Of a classifier CSV has columns path, label, score, error, and label_2, score_2, … up to `top_k`; of a detector a
    row for each object (one without label where there is none): path, label, score, left, top, right, bottom, error,
    in pixels. JSON lines and Parquet have path, labels, scores, error, and for detectors boxes and masks. JSON, for
    detectors alone, is COCO's list of results. Its image_id and category_id are those of `ids`; without, image_id is
    guessed from the file's name: the number, or the name itself.

    A byte of a name that is not UTF-8 is written as \\udcff; see `files.escaped`.

    Args:
        path: The file.
        top_k: Labels that a classifier gives.
        categories: The id that each class of a detector has in COCO results; None of a classifier. Objects of a class
            without id are left out.
        ids: The ids of all images that are written.
        raw_cells: Whether cells of a CSV stay as they are that a spreadsheet takes for formulas; see `files.to_cell`.

    Raises:
        InputError: Another suffix, or Parquet without pyarrow.
    """
    writers = {".csv": partial(_csv, top_k=top_k, raw=raw_cells), ".jsonl": _jsonl, ".parquet": _parquet}
    if categories is not None:
        writers[".csv"] = partial(_objects_csv, raw=raw_cells)
        writers[".parquet"] = partial(_parquet, objects=True)
        writers[".json"] = partial(_coco, categories=categories, ids=ids)
    if path.suffix.lower() not in writers:
        raise InputError(f"--out must end in {', '.join(writers)}, got {path}")
    if path.suffix.lower() == ".parquet":
        try:
            import pyarrow  # noqa: F401
        except ImportError:
            raise InputError("Parquet needs pyarrow: pip install 'shvit[parquet]'") from None

    def write(predictions: Iterable[Prediction]) -> None:
        with replacing(path.resolve()) as temporary:
            writers[path.suffix.lower()](temporary, predictions)

    return write


def _csv(path: Path, predictions: Iterable[Prediction], top_k: int, raw: bool) -> None:
    header = ["path", "label", "score", "error"]
    header += [f"{name}_{rank}" for rank in range(2, top_k + 1) for name in ("label", "score")]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        for prediction in predictions:
            ranked = [
                cell
                for label, score in zip(prediction.labels, prediction.scores, strict=True)
                for cell in (label, f"{score:.6f}")
            ]
            first = ranked[:2] or ["", ""]
            row = [prediction.path, *first, prediction.error or "", *ranked[2:]]
            writer.writerow(to_cell(cell, raw) for cell in row + [""] * (len(header) - len(row)))


def _objects_csv(path: Path, predictions: Iterable[Prediction], raw: bool) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label", "score", "left", "top", "right", "bottom", "error"])
        for prediction in predictions:
            name = to_cell(prediction.path, raw)
            for label, score, box in zip(prediction.labels, prediction.scores, prediction.boxes or (), strict=True):
                writer.writerow([name, to_cell(label, raw), f"{score:.6f}", *(f"{side:.2f}" for side in box), ""])
            if not prediction.labels:
                writer.writerow([name, *[""] * 6, to_cell(prediction.error or "", raw)])


def _coco(path: Path, predictions: Iterable[Prediction], categories: Mapping[str, int], ids: CocoIds | None) -> None:
    with path.open("w", encoding="utf-8", errors="backslashreplace") as file:
        between = "["
        for prediction in predictions:
            image = ids.images[Path(prediction.path)] if ids else _guessed_id(prediction.path)
            for place, (label, box) in enumerate(zip(prediction.labels, prediction.boxes or (), strict=True)):
                if label not in categories:
                    continue
                left, top, right, bottom = box
                row = {
                    "image_id": image,
                    "category_id": categories[label],
                    "bbox": [left, top, right - left, bottom - top],
                    "score": prediction.scores[place],
                }
                if prediction.masks is not None:
                    row["segmentation"] = prediction.masks[place]
                print(between, json.dumps(row, ensure_ascii=False), sep="\n", end="", file=file)
                between = ","
        print("[]" if between == "[" else "\n]", file=file)


def _guessed_id(path: str) -> int | str:
    stem = Path(path).stem
    return int(stem) if stem.isdecimal() else stem


def _jsonl(path: Path, predictions: Iterable[Prediction]) -> None:
    with path.open("w", encoding="utf-8", errors="backslashreplace") as file:  # JSON's own escapes, of surrogates
        for prediction in predictions:
            print(json.dumps(prediction.to_dict(), ensure_ascii=False), file=file)


def _parquet(path: Path, predictions: Iterable[Prediction], objects: bool = False) -> None:
    import pyarrow as pa
    from pyarrow.parquet import ParquetWriter

    columns: list = [
        ("path", pa.string()),
        ("labels", pa.list_(pa.string())),
        ("scores", pa.list_(pa.float32())),
        ("error", pa.string()),
    ]
    if objects:
        mask = pa.struct([("size", pa.list_(pa.int32())), ("counts", pa.string())])
        columns += [("boxes", pa.list_(pa.list_(pa.float32()))), ("masks", pa.list_(mask))]
    schema = pa.schema(columns)
    with path.open("wb") as file, ParquetWriter(file, schema) as writer:
        rows = iter(predictions)
        while batch := list(islice(rows, PARQUET_ROWS)):
            writer.write_table(pa.Table.from_pylist([_in_utf8(prediction) for prediction in batch], schema))


def _in_utf8(prediction: Prediction) -> dict:
    labels = tuple(map(escaped, prediction.labels))
    error = prediction.error and escaped(prediction.error)
    return replace(prediction, path=escaped(prediction.path), labels=labels, error=error).to_dict()
