"""Predictions as a file that other programs read: CSV, JSON lines or Parquet, written row by row."""

import csv
import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from .errors import InputError
from .predict import Prediction

Write = Callable[[Prediction], None]
PARQUET_ROWS = 4096


def table_writer(path: Path, top_k: int) -> AbstractContextManager[Write]:
    """A context whose value writes one prediction; the suffix of `path` says in which format.

    CSV has columns path, label, score, error, and label_2, score_2, … up to `top_k`. JSON lines and Parquet have path,
    labels, scores, error.

    Raises:
        InputError: Another suffix, or Parquet without pyarrow.
    """
    writers = {".csv": _csv_writer, ".jsonl": _jsonl_writer, ".parquet": _parquet_writer}
    if path.suffix.lower() not in writers:
        raise InputError(f"--out must end in {', '.join(writers)}, got {path}")
    if path.suffix.lower() == ".parquet":
        try:
            import pyarrow  # noqa: F401
        except ImportError:
            raise InputError("Parquet needs pyarrow: pip install 'shvit[parquet]'") from None
    path.parent.mkdir(parents=True, exist_ok=True)
    return writers[path.suffix.lower()](path, top_k)


@contextmanager
def _csv_writer(path: Path, top_k: int) -> Iterator[Write]:
    header = ["path", "label", "score", "error"]
    header += [f"{name}_{rank}" for rank in range(2, top_k + 1) for name in ("label", "score")]
    with path.open("w", newline="", encoding="utf-8") as file:
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
def _jsonl_writer(path: Path, top_k: int) -> Iterator[Write]:
    with path.open("w", encoding="utf-8") as file:
        yield lambda prediction: print(json.dumps(prediction.to_dict(), ensure_ascii=False), file=file)


@contextmanager
def _parquet_writer(path: Path, top_k: int) -> Iterator[Write]:
    import pyarrow as pa
    from pyarrow.parquet import ParquetWriter

    schema = pa.schema(
        [
            ("path", pa.string()),
            ("labels", pa.list_(pa.string())),
            ("scores", pa.list_(pa.float32())),
            ("error", pa.string()),
        ]
    )
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
