"""The options of `shvit export`."""

from dataclasses import KW_ONLY, dataclass
from pathlib import Path

from cyclopts import Parameter

from . import ModelName


@Parameter(name="*")
@dataclass(frozen=True)
class ExportRequest:
    """Which model to export, in which format, and how the file is checked."""

    model: ModelName
    _: KW_ONLY
    format: str
    """onnx (.onnx), openvino (.xml and .bin), coreml (.mlpackage), executorch (.pte), torch (.pt2), or timm: a folder
    (.timm) for timm.create_model("local-dir:FOLDER", pretrained=True)."""
    precision: str | None = None
    """fp32, fp16, bf16 or int8, if the format supports it. Default: the default of the format."""
    out: Path | None = None
    """The file. Default: beside the model file, with its name."""
    calibrate: str | None = None
    """Labelled images, as for train. int8 is calibrated on them, and files are compared with PyTorch on them."""
    max_drop: float = 0.5
    """Points of top-1 or AP that int8 may lose on the validation images. Layers that cost the most run in higher
    precision."""
    image_size: int | None = None
    """Side of the square images, in pixels. Detectors see the whole image in the square. Default: that of the model."""
    batch_size: int | None = None
    """Images per batch. Default: any number, if the format supports it."""
    dynamic_size: bool = False
    """Take images of any height and width: from 65 pixels for onnx and torch, from 32 for openvino. Not for
    detectors."""
    threads: int | None = None
    """CPU threads for comparing latency."""
