"""The options of `shvit predict`."""

from dataclasses import KW_ONLY, dataclass
from pathlib import Path

from cyclopts import Parameter

from . import Device, EngineName, ModelName, Precision, RawCells


@Parameter(name="*")
@dataclass(frozen=True)
class PredictRequest:
    """Which model to run on which images, and where to write the results."""

    model: ModelName
    paths: tuple[str, ...]
    """Image files, folders (including their subfolders) and glob patterns."""
    _: KW_ONLY
    out: Path | None = None
    """A .csv, .jsonl or .parquet file for the results; for detectors also .json, in COCO's results format. Default:
    print the results. Until the end, rows are collected in FILE.partial, and an existing FILE is kept."""
    annotations: Path | None = None
    """COCO JSON file or dataset folder that supplies the image ids and category ids for --out FILE.json. Images without
    an id are left out. Default: guess image ids from file names."""
    top_k: int = 5
    """Number of labels per image, for classifiers."""
    threshold: float | None = None
    """Minimum score of an object, for detectors. Default: the score with the best F1 on the validation images of the
    training, or 0.3 if the model file does not have it."""
    min_score: float | None = None
    """Minimum score of the most probable class, for classifiers. Images below it are marked as uncertain: in CSV, their
    label is `uncertain`, and the column best_label has the class. Default: the threshold stored in the model by
    shvit eval --store, if any. 0: no image is uncertain."""
    draw: Path | None = None
    """New folder for copies of the images with boxes, masks, classes and scores drawn on them."""
    resume: bool = False
    """Resume an interrupted run from FILE.partial. Requires the same model, images and flags."""
    raw_cells: RawCells = False
    engine: EngineName = "auto"
    precision: Precision = "auto"
    device: Device = "auto"
    threads: int | None = None
    """CPU threads per batch. Default: a few, with several batches running at once."""
    batch_size: int | None = None
    """Images per batch. Default: 16 for classifiers, 4 for detectors."""
    workers: int | None = None
    """Threads that decode images. Default: one per core."""
