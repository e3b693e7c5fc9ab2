"""The options of `shvit eval`."""

from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from . import Device, Engine, ModelName, RawCells, Workers


@dataclass(frozen=True)
class EvalRequest:
    """What to evaluate, on which images, and how."""

    model: ModelName
    data: Annotated[
        str,
        Parameter(
            help="Labelled images, as for train. Classes are matched with the model's by name: the exact name first, "
            "then synonyms, ignoring case. A name that matches two classes is an error."
        ),
    ]
    _: KW_ONLY
    engine: Engine = "auto"
    precision: Annotated[
        str | None,
        Parameter(
            help="fp32, bf16, fp16, or auto for the fastest without a loss of accuracy. Default: fp32; for an exported "
            "file, its own."
        ),
    ] = None
    device: Device = "auto"
    threads: Annotated[int | None, Parameter(help="CPU threads of the engine.")] = None
    batch_size: Annotated[
        int | None, Parameter(help="Images per batch. Default: 64 for classifiers, 8 for detectors.")
    ] = None
    workers: Workers = 2
    split: Annotated[
        Literal["auto", "train", "val", "all"],
        Parameter(
            help="auto: the validation images, or all images if the dataset has no splits and the model was not "
            "trained on it. auto and val leave out images that the model was trained on, compared by content."
        ),
    ] = "auto"
    fit: Annotated[
        Literal["crop", "squash"] | None,
        Parameter(
            help="How images fit a classifier's input. crop: the centre. squash: the whole image, resized to a square, "
            "as the authors evaluate fine-tuned networks. Default: from the model file."
        ),
    ] = None
    out: Annotated[
        Path | None,
        Parameter(help="Folder for metrics.json, per_class.csv and, for classifiers, confusion.csv and confusion.png."),
    ] = None
    raw_cells: RawCells = False
