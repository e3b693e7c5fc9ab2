"""The options of `shvit eval`."""

from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from . import Device, EngineName, ModelName, RawCells, Workers, with_current_fit


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
    split: Literal["auto", "train", "val", "test", "all"] = "auto"
    """Which images to evaluate. auto: the validation images. Without splits, auto means the images held out in the
    model's training, or all images if the model was trained on other data. all: the training and validation images.
    The test images are evaluated only with --split test. auto, val and test exclude the model's training images, which
    are recognized by content."""
    fit: Annotated[Literal["crop", "letterbox", "stretch"] | None, Parameter(converter=with_current_fit)] = None
    """How images fit the square input of a classifier. crop: center crop. letterbox: the whole image in its aspect
    ratio, padded. stretch: the whole image, resized to the square. Default: the setting in the model file."""
    out: Path | None = None
    """Folder for report.html, metrics.json, per_class.csv and, for classifiers, confusion.csv and confusion.png."""
    raw_cells: RawCells = False
    target_accuracy: float | None = None
    """For classifiers, such as 0.99: find the smallest score for which the images with at least this score have, with
    95 % confidence, at least this accuracy. Also prints their share of all images."""
    store: bool = False
    """Write the temperature fitted on the evaluated images into MODEL, a .safetensors model file, and with
    --target-accuracy also the score threshold, which shvit predict then uses. Training images are refused."""
