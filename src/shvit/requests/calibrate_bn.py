"""The options of `shvit calibrate-bn`."""

from dataclasses import KW_ONLY, dataclass
from pathlib import Path

from cyclopts import Parameter

from . import Device, ModelName, Workers


@Parameter(name="*")
@dataclass(frozen=True)
class CalibrateRequest:
    """Which model to adapt, to which image size, and on which images."""

    model: ModelName
    data: str
    """Labelled images, in any form that shvit train accepts. BatchNorm statistics are measured on the training images,
    top-1 on the validation images."""
    _: KW_ONLY
    image_size: int
    """Side of the square images, in pixels."""
    out: Path | None = None
    """The new model file. Default: next to the old file, with the image size added to the name."""
    images: int = 4096
    """Maximum number of training images to measure the statistics on."""
    batch_size: int = 64
    """Images per batch."""
    device: Device = "auto"
    workers: Workers = 2
