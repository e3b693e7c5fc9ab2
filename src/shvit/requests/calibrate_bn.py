"""The options of `shvit calibrate-bn`."""

from dataclasses import KW_ONLY, dataclass
from pathlib import Path

from cyclopts import Parameter

from . import Device, ModelName, Workers


@Parameter(name="*")
@dataclass(frozen=True)
class CalibrateRequest:
    """Which model to adapt to which image size, and on which images."""

    model: ModelName
    data: str
    """Labelled images, as for train. Statistics are measured on training images, top-1 on validation images."""
    _: KW_ONLY
    image_size: int
    """Side of the square images, in pixels."""
    out: Path | None = None
    """The new model file. Default: beside the old one, with the size in its name."""
    images: int = 4096
    """Maximum number of training images."""
    batch_size: int = 64
    """Images per batch."""
    device: Device = "auto"
    workers: Workers = 2
