"""The options of `shvit export`."""

from dataclasses import KW_ONLY, dataclass
from pathlib import Path

from cyclopts import Parameter

from . import ModelName


@Parameter(name="*")
@dataclass(frozen=True)
class ExportRequest:
    """Which model to export, in which format, and how to check the file."""

    model: ModelName
    _: KW_ONLY
    format: str
    """onnx (.onnx), openvino (.xml and .bin), coreml (.mlpackage), executorch (.pte), litert (.tflite), torch (.pt2),
    web: a folder (.web) with a page that runs the model in browsers, or timm: a folder (.timm) for
    timm.create_model("local-dir:FOLDER", pretrained=True)."""
    precision: str | None = None
    """fp32, fp16, bf16 or int8, if the format supports it. Default: depends on the format."""
    out: Path | None = None
    """The exported file. Default: next to the model file, and named after it."""
    calibrate: str | None = None
    """Labelled images for int8 calibration and for comparison with PyTorch, in any form that shvit train accepts."""
    max_drop: float | None = None
    """Maximum loss of top-1 or AP caused by int8, in percentage points on the validation images. If it is exceeded,
    openvino runs the layers with the largest quantization error in higher precision. Default: 0.5."""
    image_size: int | None = None
    """Side of the square images, in pixels. Detectors letterbox the image. Default: the model's size."""
    batch_size: int | None = None
    """Fixed batch size. Default: any batch size, if the format supports it."""
    dynamic_size: bool = False
    """Accept images of any height and width. The minimum is 65 pixels for onnx and torch, and 32 for openvino. Not
    for detectors."""
    end_to_end: bool = False
    """Put resizing, cropping and the conversion to scores into the file, too. Its input is one RGB image of any size,
    uint8 (height, width, 3); its outputs are `scores` or, for detectors, `boxes`, `scores` and `classes`. For onnx and
    openvino; web folders always are end to end."""
    overwrite: bool = False
    """Replace --out even if it is not an export of this model."""
    snippet: str | None = None
    """Print a program that reads the file and checks itself with the sample image, in this language: python,
    javascript, cpp, csharp, swift or kotlin."""
    threads: int | None = None
    """CPU threads for comparing the file's latency with PyTorch's."""
