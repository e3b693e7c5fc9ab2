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
    """Labelled images, in any form that shvit train accepts. The dataset's classes are matched to the model's by name:
    exact names first, then names and synonyms regardless of case. A name that matches two classes is an error."""
    _: KW_ONLY
    engine: EngineName = "auto"
    precision: str | None = None
    """fp32, bf16, fp16 or auto. auto: the fastest precision that loses no accuracy. Default: the file's precision
    for exported files, otherwise fp32."""
    device: Device = "auto"
    threads: int | None = None
    """CPU threads of the engine."""
    batch_size: int | None = None
    """Images per batch. Default: 64 for classifiers, 8 for detectors."""
    workers: Workers = 2
    split: Literal["auto", "train", "val", "all"] = "auto"
    """Which images to evaluate. auto: the validation images. Without splits, auto means the images held out in the
    model's training, or all images if the model was trained on other data. auto and val exclude the model's training
    images, which are recognized by content."""
    fit: Literal["crop", "squash"] | None = None
    """How images are resized for a classifier. crop: center crop. squash: resize the whole image to a square, as the
    authors do for fine-tuned networks. Default: the setting in the model file."""
    out: Path | None = None
    """Folder for metrics.json, per_class.csv and, for classifiers, confusion.csv and confusion.png."""
    raw_cells: RawCells = False
    target_accuracy: float | None = None
    """For classifiers, such as 0.99: find the smallest score for which the images with at least this score have, with
    95 % confidence, at least this accuracy. Also prints their share of all images."""
    store: bool = False
    """Write the temperature fitted on the evaluated images into MODEL, a .safetensors model file, and with
    --target-accuracy also the score threshold, which shvit predict then uses. Training images are refused."""
