"""The options of `shvit calibrate-bn`."""

from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from . import Device, ModelName, Workers


@dataclass(frozen=True)
class CalibrateRequest:
    """Which model to adapt to which image size, and on which images."""

    model: ModelName
    data: Annotated[
        str,
        Parameter(
            help="Labelled images, as for train. Statistics are measured on training images, top-1 on validation "
            "images."
        ),
    ]
    _: KW_ONLY
    image_size: Annotated[int, Parameter(help="Side of the square images, in pixels.")]
    out: Annotated[
        Path | None, Parameter(help="The new model file. Default: beside the old one, with the size in its name.")
    ] = None
    images: Annotated[int, Parameter(help="Maximum number of training images.")] = 4096
    batch_size: Annotated[int, Parameter(help="Images per batch.")] = 64
    device: Device = "auto"
    workers: Workers = 2
