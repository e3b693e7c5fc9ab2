"""The options of `shvit bench`."""

from dataclasses import KW_ONLY, dataclass
from typing import Annotated, Literal

from cyclopts import Parameter

from . import Device, Many


@Parameter(name="*")
@dataclass(frozen=True)
class BenchRequest:
    """Which models to compare, and how. An empty field or None selects the default."""

    models: tuple[str, ...] = ()
    """Published weights, model files, exported files, or names (shvit_s1 to shvit_s4, timm/NAME) for random weights. An
    exported file is timed in its format and image size. Default: SHViT and its peers. Models come before the flags."""
    _: KW_ONLY
    engines: Annotated[Many[str], Parameter(name="--engine")] = ()
    """Engines to time. Default: all engines that run on this machine, or the fastest one if no models are given. Not
    included by default: torch-eager, torch-compiled (max-autotune, the faster of NCHW and channels_last) and
    torch-traced (as in the paper)."""
    precisions: Annotated[Many[str], Parameter(name="--precision")] = ()
    """Precisions to time, such as fp32, bf16 or int8. Default: all that each engine supports on this machine. For
    int8, models given by name are calibrated on random images."""
    batch_sizes: Annotated[Many[int], Parameter(name="--batch-size")] = ()
    """Images per call. Default: 16 for classifiers; 1 and 16 (on GPUs: 1 and 32) for detectors."""
    image_sizes: Annotated[Many[int], Parameter(name="--image-size")] = ()
    """Side of the square images, in pixels. Default: each model's own size for classifiers, 512 for detectors."""
    threads: int | None = None
    """CPU threads. Default: chosen by each engine."""
    device: Device = "auto"
    rounds: int = 10
    """How many times each configuration is timed."""
    protocol: str | None = None
    """Measure as in the paper: paper-cpu, paper-onnx or paper-gpu. Sets the engine, precision, batch size, image size,
    threads and device, and also shows the paper's numbers."""
    task: Literal["classify", "detect", "segment"] = "classify"
    """With detect or segment, each model is timed as a backbone, and within a whole detector (pixels to boxes).
    torchvision/NAME is a torchvision detector, and runs on torch-eager. Default models: SHViT, two peers and
    torchvision detectors, on the engine torch."""
    head: Literal["light", "retinanet", "mask_rcnn"] | None = None
    """Kind of detector for networks given by name, as in shvit train. Default: light for detect, mask_rcnn for
    segment."""
    profile: bool = False
    """Also show the time of each kernel. For the engine cuda, also show each kernel's theoretical minimum."""
