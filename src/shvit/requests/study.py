"""The options of `shvit study`: one dataclass per analysis. `macro`, `ablation` and `designs` share a dataclass."""

from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from . import Device, Many, Workers

BatchSize = Annotated[int, Parameter(help="Images per batch.")]
Out = Annotated[Path, Parameter(help="Output folder for the report and for any training runs.")]
Threads = Annotated[int | None, Parameter(help="CPU threads. Default: chosen by each engine.")]


@Parameter(name="*", group="Speed")
@dataclass(frozen=True)
class SpeedOptions:
    """How a study measures speed."""

    engines: Annotated[Many[str], Parameter("--engine")] = ()
    """Engines to time. Default: all that run on this machine."""
    precisions: Annotated[Many[str], Parameter("--precision")] = ()
    """Precisions to time. Default: fp32, or fp16 on CUDA GPUs."""
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
    """Epochs of each training run. Every run starts from random weights."""
    train_size: int | None = None
    """Training image size in pixels. Default: --image-size if it has one value, otherwise the network's own size."""
    workers: Workers = 2


@Parameter(name="*")
@dataclass(frozen=True)
class RedundancyRequest:
    """Which model's attention heads to analyze, and on which images."""

    model: str
    """A model file, published weights such as timm/deit_tiny_patch16_224.fb_in1k, or FILE.py:FUNCTION for a function of
    yours that returns (network, layers, classes, preprocess); docs/studies.md has an example."""
    data: str
    """Labelled images, in any form that shvit eval accepts."""
    _: KW_ONLY
    out: Path
    """Output folder for the report."""
    images: int = 1000
    """Number of images for measuring accuracy. They are drawn at random with a fixed seed."""
    similarity_images: int = 128
    """Number of images for comparing attention maps. They are taken from the images for measuring accuracy."""
    split: Literal["auto", "train", "val", "all"] = "auto"
    """Which images of the dataset to use, as for shvit eval --split."""
    pictures: Many[str] = ()
    """Image files to draw attention maps over. Default: images of the dataset."""
    queries: Many[str] = ()
    """Query points X,Y whose attention is drawn, as fractions of the image's width and height. Default: 0.5,0.5.
    Pictures and points are paired in order; the shorter list is repeated."""
    tolerance: float = 0.5
    """A layer is reported to need a single head if removing all but the best costs at most this many top-1 points."""
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
    """SHViT variant. Default: the variant that the paper uses for this comparison."""
    image_size: int | None = None
    """Image size in pixels. Default: the network's own."""
    seeds: int = 1
    """Number of training runs per network, each with a different seed."""
    speed: SpeedOptions = SpeedOptions()
    accuracy: AccuracyOptions = AccuracyOptions()


@Parameter(name="*")
@dataclass(frozen=True)
class BreakdownRequest:
    """Which networks to profile."""

    models: tuple[str, ...]
    """Networks (by name), model files or published weights. If a single SHViT variant is given
    (shvit_s1 to shvit_s4), its multi-head version is added."""
    _: KW_ONLY
    out: Path
    """Output folder for the report."""
    engines: Annotated[Many[str], Parameter("--engine")] = ()
    """onnx, openvino or torch. Default: all that are installed."""
    batch_size: BatchSize = 16
    image_size: int | None = None
    """Image size in pixels. Default: each model's own."""
    threads: Threads = None


@Parameter(name="*")
@dataclass(frozen=True)
class ResolutionRequest:
    """Which networks to time at which image sizes."""

    models: Annotated[tuple[str, ...], Parameter(show_default=False)] = ()
    """Models, named as for shvit bench. Default: SHViT S3 and S4, and three peers."""
    _: KW_ONLY
    out: Out
    image_sizes: Annotated[Many[int], Parameter("--image-size")] = ()
    """Image sizes in pixels. Default: 224, 256, 384, 512."""
    data: str | None = None
    """Labelled images for measuring the top-1 of trained models at each size."""
    speed: SpeedOptions = SpeedOptions()
    accuracy: AccuracyOptions = AccuracyOptions()
