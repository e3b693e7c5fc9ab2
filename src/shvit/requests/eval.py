"""The options of `shvit eval`."""

from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Literal

from cyclopts import Parameter

from . import Device, EngineName, ModelName, RawCells, Workers


@Parameter(name="*")
@dataclass(frozen=True)
class EvalRequest:
    """What to evaluate, on which images, and how."""

    model: ModelName
    data: str
    """Labelled images, as for train. Classes are matched with the model's by name: the exact name first, then synonyms,
    ignoring case. A name that matches two classes is an error."""
    _: KW_ONLY
    engine: EngineName = "auto"
    precision: str | None = None
    """fp32, bf16, fp16, or auto for the fastest without a loss of accuracy. Default: fp32; for an exported file, its
    own."""
    device: Device = "auto"
    threads: int | None = None
    """CPU threads of the engine."""
    batch_size: int | None = None
    """Images per batch. Default: 64 for classifiers, 8 for detectors."""
    workers: Workers = 2
    split: Literal["auto", "train", "val", "all"] = "auto"
    """auto: the validation images, or all images if the dataset has no splits and the model was not trained on it. auto
    and val leave out images that the model was trained on, compared by content."""
    fit: Literal["crop", "squash"] | None = None
    """How images fit a classifier's input. crop: the center. squash: the whole image, resized to a square, as the
    authors evaluate fine-tuned networks. Default: as in the model file."""
    out: Path | None = None
    """Folder for metrics.json, per_class.csv and, for classifiers, confusion.csv and confusion.png."""
    raw_cells: RawCells = False
