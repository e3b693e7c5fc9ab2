"""The options of `shvit bench`."""

from dataclasses import KW_ONLY, dataclass
from typing import Annotated

from cyclopts import Parameter

from . import Device, Many


@dataclass(frozen=True)
class BenchRequest:
    """What to compare. Empty fields and None select the defaults."""

    models: Annotated[
        tuple[str, ...],
        Parameter(
            help="shvit_s1 to shvit_s4 and timm/NAME (random weights), published names, model files, exported files "
            "(run as they were written, at their own size). Default: SHViT and its peers. Name them before the flags.",
            show_default=False,
        ),
    ] = ()
    _: KW_ONLY
    engines: Annotated[
        Many[str],
        Parameter(
            name="--engine",
            help="Engines by name. Default: all that can run here or, without models, the fastest of them. Only by "
            "name: torch-eager, torch-compiled (max-autotune, the faster of NCHW and channels_last) and torch-traced "
            "(as in the paper).",
        ),
    ] = ()
    precisions: Annotated[
        Many[str],
        Parameter(
            name="--precision",
            help="fp32, bf16, int8, .... Default: all that each engine has here. Models by name are quantised on "
            "random images.",
        ),
    ] = ()
    batch_sizes: Annotated[
        Many[int],
        Parameter(name="--batch-size", help="Images per call. Default: 16, for detectors 16 (GPUs: 32) and 1."),
    ] = ()
    image_sizes: Annotated[
        Many[int],
        Parameter(name="--image-size", help="Image sides in pixels. Default: the model's own size, for detectors 512."),
    ] = ()
    threads: Annotated[int | None, Parameter(help="CPU threads. Default: each engine's own choice.")] = None
    device: Device = "auto"
    rounds: Annotated[int, Parameter(help="How often each configuration is timed.")] = 10
    protocol: Annotated[
        str | None,
        Parameter(
            help="Measure as in the paper: paper-cpu, paper-onnx or paper-gpu. Fixes everything except the models, and "
            "shows the paper's numbers."
        ),
    ] = None
    task: Annotated[
        str,
        Parameter(
            help="detect, segment: time each model as the backbone of a detector and as the whole detector, from "
            "pixels to boxes. Defaults: SHViT, two peers and torchvision's detectors, on the engine torch. "
            "torchvision/NAME is a detector of torchvision; it runs on torch-eager."
        ),
    ] = "classify"
    profile: Annotated[
        bool,
        Parameter(help="Also show where the time goes: kernels and, for the engine cuda, the minimum time of each."),
    ] = False
