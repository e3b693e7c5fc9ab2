"""The options of `shvit export`."""

from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from . import ModelName


@dataclass(frozen=True)
class ExportRequest:
    """Which model to export, in which format, and how the file is checked."""

    model: ModelName
    _: KW_ONLY
    format: Annotated[
        str,
        Parameter(
            help="onnx (.onnx), openvino (.xml and .bin), coreml (.mlpackage), executorch (.pte), torch (.pt2), or "
            'timm: a folder (.timm) for timm.create_model("local-dir:FOLDER", pretrained=True).'
        ),
    ]
    precision: Annotated[
        str | None,
        Parameter(help="fp32, fp16, bf16 or int8, if the format supports it. Default: the default of the format."),
    ] = None
    out: Annotated[Path | None, Parameter(help="The file. Default: beside the model file, with its name.")] = None
    calibrate: Annotated[
        str | None,
        Parameter(
            help="Labelled images, as for train. int8 is calibrated on them, and files are compared with PyTorch on "
            "them."
        ),
    ] = None
    max_drop: Annotated[
        float,
        Parameter(
            help="Points of top-1 or AP that int8 may lose on the validation images. Layers that cost the most run in "
            "higher precision."
        ),
    ] = 0.5
    image_size: Annotated[
        int | None,
        Parameter(
            help="Side of the square images, in pixels. Detectors see the whole image in the square. Default: that of "
            "the model."
        ),
    ] = None
    batch_size: Annotated[
        int | None, Parameter(help="Images per batch. Default: any number, if the format supports it.")
    ] = None
    dynamic_size: Annotated[
        bool,
        Parameter(
            help="Take images of any height and width: from 65 pixels for onnx and torch, from 32 for openvino. Not "
            "for detectors."
        ),
    ] = False
    threads: Annotated[int | None, Parameter(help="CPU threads for comparing latency.")] = None
