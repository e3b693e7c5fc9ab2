"""The options of `shvit bench`."""

from dataclasses import KW_ONLY, dataclass
from typing import Annotated, Literal

from cyclopts import Parameter

from . import Device, Many


@Parameter(name="*")
@dataclass(frozen=True)
class BenchRequest:
    """What to compare. Empty fields and None select the defaults."""

    models: tuple[str, ...] = ()
    """shvit_s1 to shvit_s4 and timm/NAME (random weights), published names, model files, exported files (run as they
    were written, at their own size). Default: SHViT and its peers. Name them before the flags."""
    _: KW_ONLY
    engines: Annotated[Many[str], Parameter(name="--engine")] = ()
    """Engines by name. Default: all that can run here or, without models, the fastest of them. Only by name:
    torch-eager, torch-compiled (max-autotune, the faster of NCHW and channels_last) and torch-traced (as in the
    paper)."""
    precisions: Annotated[Many[str], Parameter(name="--precision")] = ()
    """Such as fp32, bf16 or int8. Default: all that each engine has here. Models by name are quantized on random
    images."""
    batch_sizes: Annotated[Many[int], Parameter(name="--batch-size")] = ()
    """Images per call. Default: 16, for detectors 16 (GPUs: 32) and 1."""
    image_sizes: Annotated[Many[int], Parameter(name="--image-size")] = ()
    """Image sides in pixels. Default: the model's own size, for detectors 512."""
    threads: int | None = None
    """CPU threads. Default: each engine's own choice."""
    device: Device = "auto"
    rounds: int = 10
    """How many times each configuration is timed."""
    protocol: str | None = None
    """Measure as in the paper: paper-cpu, paper-onnx or paper-gpu. Fixes everything except the models, and shows the
    paper's numbers."""
    task: Literal["classify", "detect", "segment"] = "classify"
    """With detect and segment, each model is timed as the backbone of a detector, and as a whole detector from pixels
    to boxes. torchvision/NAME is a detector of torchvision, which runs on torch-eager. Default models: SHViT, two peers
    and detectors of torchvision, on the engine torch."""
    profile: bool = False
    """Also show where the time goes: kernels and, for the engine cuda, the minimum time of each."""
