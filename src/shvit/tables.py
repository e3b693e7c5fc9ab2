"""Predictions as a file that other programs read: CSV, JSON lines, Parquet or COCO results, written row by row."""

import csv
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path

from .data.coco_ids import CocoIds
from .errors import InputError
from .predict import Prediction

Write = Callable[[Prediction], None]
PARQUET_ROWS = 4096


def table_writer(
    path: Path, top_k: int, categories: Mapping[str, int] | None = None, ids: CocoIds | None = None
) -> AbstractContextManager[Write]:
    """A context whose value writes one prediction; the suffix of `path` says in which format.

    Of a classifier CSV has columns path, label, score, error, and label_2, score_2, … up to `top_k`; of a detector a
    row for each object (one without label where there is none): path, label, score, left, top, right, bottom, error,
    in pixels. JSON lines and Parquet have path, labels, scores, error, and for detectors boxes and masks. JSON, for
    detectors alone, is COCO's list of results. Its image_id and category_id are those of `ids`; without, image_id is
    guessed from the file's name: the number, or the name itself.

    Args:
        path: The file.
        top_k: Labels that a classifier gives.
        categories: The id that each class of a detector has in COCO results; None of a classifier. Objects of a class
            without id are left out.
        ids: The ids of all images that are written.

    Raises:
        InputError: Another suffix, or Parquet without pyarrow.
    """
    writers = {".csv": partial(_csv_writer, top_k=top_k), ".jsonl": _jsonl_writer, ".parquet": _parquet_writer}
    if categories is not None:
        writers[".csv"] = _objects_csv_writer
        writers[".parquet"] = partial(_parquet_writer, objects=True)
        writers[".json"] = partial(_coco_writer, categories=categories, ids=ids)
    if path.suffix.lower() not in writers:
        raise InputError(f"--out must end in {', '.join(writers)}, got {path}")
    if path.suffix.lower() == ".parquet":
        try:
            import pyarrow  # noqa: F401
        except ImportError:
            raise InputError("Parquet needs pyarrow: pip install 'shvit[parquet]'") from None
    path.parent.mkdir(parents=True, exist_ok=True)
    return writers[path.suffix.lower()](path)


@contextmanager
def _csv_writer(path: Path, top_k: int) -> Iterator[Write]:
    header = ["path", "label", "score", "error"]
    header += [f"{name}_{rank}" for rank in range(2, top_k + 1) for name in ("label", "score")]
    with path.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file:
        writer = csv.writer(file)
        writer.writerow(header)

        def write(prediction: Prediction) -> None:
            ranked = [
                cell
                for label, score in zip(prediction.labels, prediction.scores, strict=True)
                for cell in (label, f"{score:.6f}")
            ]
            first = ranked[:2] or ["", ""]
            row = [prediction.path, *first, prediction.error or "", *ranked[2:]]
            writer.writerow(row + [""] * (len(header) - len(row)))

        yield write


@contextmanager
def _objects_csv_writer(path: Path) -> Iterator[Write]:
    with path.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label", "score", "left", "top", "right", "bottom", "error"])

        def write(prediction: Prediction) -> None:
            for label, score, box in zip(prediction.labels, prediction.scores, prediction.boxes or (), strict=True):
                writer.writerow([prediction.path, label, f"{score:.6f}", *(f"{side:.2f}" for side in box), ""])
            if not prediction.labels:
                writer.writerow([prediction.path, *[""] * 6, prediction.error or ""])

        yield write


@contextmanager
def _coco_writer(path: Path, categories: Mapping[str, int], ids: CocoIds | None) -> Iterator[Write]:
    with path.open("w", encoding="utf-8", errors="backslashreplace") as file:
        between = "["

        def write(prediction: Prediction) -> None:
            nonlocal between
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

        try:
            yield write
        finally:  # also where the work ends in a failure: what was done can be read
            print("[]" if between == "[" else "\n]", file=file)


def _guessed_id(path: str) -> int | str:
    stem = Path(path).stem
    return int(stem) if stem.isdecimal() else stem


@contextmanager
def _jsonl_writer(path: Path) -> Iterator[Write]:
    with path.open("w", encoding="utf-8", errors="backslashreplace") as file:
        yield lambda prediction: print(json.dumps(prediction.to_dict(), ensure_ascii=False), file=file)


@contextmanager
def _parquet_writer(path: Path, objects: bool = False) -> Iterator[Write]:
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
    rows: list[dict] = []
    with ParquetWriter(path, schema) as writer:

        def flush() -> None:
            writer.write_table(pa.Table.from_pylist(rows, schema))
            rows.clear()

        def write(prediction: Prediction) -> None:
            rows.append(prediction.to_dict())
            if len(rows) == PARQUET_ROWS:
                flush()

        try:
            yield write
        finally:  # also where the work ends in a failure: what was done is kept
            flush()
