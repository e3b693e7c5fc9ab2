"""The requests of `shvit study ...`: one dataclass per verb. `macro`, `ablation` and `designs` use the same one."""

from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from . import Device, Many, Workers

BatchSize = Annotated[int, Parameter(help="Images per batch.")]
Out = Annotated[Path, Parameter(help="Output folder for the report and, if networks are trained, their runs.")]
Threads = Annotated[int | None, Parameter(help="CPU threads. Default: chosen by each engine.")]


@Parameter(name="*", group="Speed")
@dataclass(frozen=True)
class SpeedOptions:
    """How a study measures speed."""

    engines: Annotated[Many[str], Parameter("--engine")] = ()
    """Engines. Default: all that run here."""
    precisions: Annotated[Many[str], Parameter("--precision")] = ()
    """Default: fp32; fp16 on CUDA GPUs."""
    batch_sizes: Annotated[Many[int], Parameter("--batch-size")] = (16,)
    """Images per batch. Default: 16."""
    threads: Threads = None
    device: Device = "auto"
    rounds: int = 10
    """How many times each network is timed."""


@Parameter(name="*", group="Accuracy")
@dataclass(frozen=True)
class AccuracyOptions:
    """How a study measures accuracy."""

    train: str | None = None
    """Train each network on this dataset. Default: accuracy is not measured."""
    epochs: int = 10
    """Epochs of each run. Runs start from random weights."""
    train_size: int | None = None
    """Training image size in pixels. Default: --image-size if it is one number, else the network's own size."""
    workers: Workers = 2


@Parameter(name="*")
@dataclass(frozen=True)
class RedundancyRequest:
    """Which attention heads to analyze, on which images."""

    model: str
    """A model file, published weights such as timm/deit_tiny_patch16_224.fb_in1k, or FILE.py:FUNCTION. Your function
    returns (network, layers, classes, preprocess); docs/studies.md has an example."""
    data: str
    """Labelled images, as for eval."""
    _: KW_ONLY
    out: Path
    """Output folder for the report."""
    images: int = 1000
    """Images for measuring accuracy, drawn at random with a fixed seed."""
    similarity_images: int = 128
    """How many of them to compare attention maps on."""
    split: Literal["auto", "train", "val", "all"] = "auto"
    """Split of the data, as for eval."""
    pictures: Many[str] = ()
    """Photographs to draw attention maps over. Default: images of the dataset."""
    queries: Many[str] = ()
    """Query points X,Y whose attention is drawn, as fractions of the image. Default: 0.5,0.5. Each picture takes the
    next point in turn."""
    tolerance: float = 0.5
    """A layer can run with a single head if that costs at most this many points of top-1."""
    device: Device = "auto"
    threads: Threads = None
    batch_size: BatchSize = 32
    workers: Workers = 2


@Parameter(name="*")
@dataclass(frozen=True)
class ComparisonRequest:
    """How to run `macro`, `ablation` or `designs`."""

    _: KW_ONLY
    out: Out
    size: Literal["s1", "s2", "s3", "s4"] | None = None
    """SHViT variant. Default: the one in the paper."""
    image_size: int | None = None
    """Image size in pixels. Default: the network's own."""
    seeds: int = 1
    """Training runs per network."""
    speed: SpeedOptions = SpeedOptions()
    accuracy: AccuracyOptions = AccuracyOptions()


@Parameter(name="*")
@dataclass(frozen=True)
class BreakdownRequest:
    """Which networks to profile."""

    models: tuple[str, ...]
    """Names of networks, model files or published weights. A single shvit_s1 to shvit_s4 is shown next to its
    multi-head version."""
    _: KW_ONLY
    out: Path
    """Output folder for the report."""
    engines: Annotated[Many[str], Parameter("--engine")] = ()
    """onnx, openvino, torch. Default: all that are installed."""
    batch_size: BatchSize = 16
    image_size: int | None = None
    """Image size in pixels. Default: each model's own."""
    threads: Threads = None


@Parameter(name="*")
@dataclass(frozen=True)
class ResolutionRequest:
    """Which networks to time at which image sizes."""

    models: Annotated[tuple[str, ...], Parameter(show_default=False)] = ()
    """As for bench. Default: SHViT S3 and S4 and three peers."""
    _: KW_ONLY
    out: Out
    image_sizes: Annotated[Many[int], Parameter("--image-size")] = ()
    """Image sizes in pixels. Default: 224, 256, 384, 512."""
    data: str | None = None
    """Labelled images for measuring the top-1 of trained models at each size."""
    speed: SpeedOptions = SpeedOptions()
    accuracy: AccuracyOptions = AccuracyOptions()
