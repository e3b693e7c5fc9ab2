"""The options of `shvit predict`."""

from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from . import Device, Engine, ModelName, Precision, RawCells


@dataclass(frozen=True)
class PredictRequest:
    """Which images to predict, with which model, and where the results go."""

    model: ModelName
    paths: Annotated[
        tuple[str, ...], Parameter(negative=(), help="Files, folders (including their subfolders) and globs.")
    ]
    _: KW_ONLY
    out: Annotated[
        Path | None,
        Parameter(
            help="A .csv, .jsonl or .parquet file for the results; for detectors also .json, in COCO's results "
            "format. Default: print them. Rows are collected in FILE.partial, and an existing file is replaced at the "
            "end."
        ),
    ] = None
    annotations: Annotated[
        Path | None,
        Parameter(
            help="COCO JSON file or dataset folder that supplies the image and category ids for --out FILE.json. "
            "Images not listed there are left out. Default: guess image ids from file names."
        ),
    ] = None
    top_k: Annotated[int, Parameter(help="Labels per image of a classifier.")] = 5
    threshold: Annotated[float, Parameter(help="Minimum score of the objects of a detector.")] = 0.3
    draw: Annotated[Path | None, Parameter(help="New folder for images with boxes, masks, classes and scores.")] = None
    resume: Annotated[
        bool,
        Parameter(help="Resume an interrupted run from FILE.partial. Requires the same model, images and flags."),
    ] = False
    raw_cells: RawCells = False
    engine: Engine = "auto"
    precision: Precision = "auto"
    device: Device = "auto"
    threads: Annotated[
        int | None, Parameter(help="CPU threads per batch. Default: several batches at once, with few threads each.")
    ] = None
    batch_size: Annotated[
        int | None, Parameter(help="Images per batch. Default: 16 for classifiers, 4 for detectors.")
    ] = None
    workers: Annotated[int | None, Parameter(help="Threads that decode images. Default: one per core.")] = None
