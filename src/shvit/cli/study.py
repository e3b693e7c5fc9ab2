"""`shvit study`."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import App, Parameter
from rich.console import Console

from ..requests import Device, Many, Workers
from .app import NONE_TYPED, Flags, Json, console_for, finish
from .flags import Typed

if TYPE_CHECKING:
    from ..study.accuracy import Training
    from ..study.speeds import SpeedOptions
    from ..study.verbs import Written
    from ..train.progress import Reporter


study = App(
    name="study",
    help="The paper's analyses, on its networks or on yours. Each writes a folder: report.html, JSON, CSV, PNG.",
)


@study.command(name="redundancy")
def study_redundancy(
    model: str,
    data: str,
    /,
    *,
    out: Path,
    images: int = 1000,
    similarity_images: int = 128,
    split: Literal["auto", "train", "val", "all"] = "auto",
    pictures: Many[str] = (),
    queries: Many[str] = (),
    tolerance: float = 0.5,
    device: Device = "auto",
    threads: int | None = None,
    batch_size: int = 32,
    workers: Workers = 2,
    json: Json = False,
    typed: Flags = NONE_TYPED,
) -> None:
    """Are a network's attention heads redundant? Where they look, how alike they are, what is lost without them.

    For timm's ViT and Swin, SHViT with any mixer, and your own network. Every head of every layer is switched off, and
    left alone, in turn: 1 + twice as many passes over the images as there are heads.

    Parameters
    ----------
    model
        A model file, published weights such as timm/deit_tiny_patch16_224.fb_in1k, or FILE.py:FUNCTION of yours that
        returns (network, layers, classes, preprocess); docs/studies.md has an example.
    data
        Labelled images, as for eval.
    out
        A folder for the report.
    images
        Drawn by seed; accuracy is judged on these.
    similarity_images
        So many of them have their attention maps compared.
    split
        Of the data, as for eval.
    pictures
        Photographs to draw attention maps over; default: some of the data.
    queries
        Places X,Y whose attention is drawn, as shares of the image; default: 0.5,0.5. Pictures and places go together
        in turn.
    tolerance
        Points of top-1 that a layer may lose with a single head and still be said to do with it.
    threads
        CPU threads.
    batch_size
        Images that run at once.
    """
    from ..study.verbs import redundancy

    if similarity_images > images:
        typed.refuse("similarity-images", because=f"above --images {images}")
    _run_study(
        redundancy,
        json,
        out,
        model,
        data,
        images=images,
        similarity_images=similarity_images,
        split=split,
        pictures=pictures,
        queries=queries,
        tolerance=tolerance,
        device=device,
        threads=threads,
        batch_size=batch_size,
        workers=workers,
    )


@dataclass(frozen=True)
class _Measure:
    """How a study measures speed, as `shvit bench` does."""

    engine: Annotated[Many[str], Parameter(help="Engines by name; default: all that can run here.")] = ()
    precision: Annotated[Many[str], Parameter(help="Default: fp32, on GPUs fp16.")] = ()
    batch_size: Annotated[Many[int], Parameter(help="Images a call; default: 16.")] = ()
    threads: Annotated[int | None, Parameter(help="CPU threads; default: as many as each engine takes.")] = None
    device: Device = "auto"
    rounds: Annotated[int, Parameter(help="How often each network is timed.")] = 10

    def how(self, image_size: int | None = None) -> "SpeedOptions":
        from ..study.speeds import SpeedOptions

        batches = self.batch_size or (16,)
        return SpeedOptions(image_size, self.engine, self.precision, batches, self.threads, self.device, self.rounds)


@dataclass(frozen=True)
class _Learn:
    """How a study measures accuracy."""

    train: Annotated[str | None, Parameter(help="Data to train each network on, as for train; default: none is.")] = (
        None
    )
    epochs: Annotated[int, Parameter(help="Of each run, from fresh weights.")] = 10
    train_size: Annotated[
        int | None,
        Parameter(help="Side of the images in training; default: the networks' own, or --image-size where it is one."),
    ] = None
    workers: Workers = 2

    def training(self, device: str, seeds: int = 1) -> "Training | None":
        from ..study.accuracy import Training

        if self.train is None:
            return None
        return Training(self.train, self.epochs, seeds, self.train_size, {}, device, self.workers)


Measure = Annotated[_Measure | None, Parameter(name="*", group="Speed")]


Learn = Annotated[_Learn | None, Parameter(name="*", group="Accuracy")]


Size = Annotated[Literal["s1", "s2", "s3", "s4"] | None, Parameter(help="Of SHViT; default: the paper's.")]


def _measured(
    measure: _Measure | None,
    learn: _Learn | None,
    typed: Typed,
    json: bool,
    image_size: int | None = None,
    seeds: int = 1,
) -> dict[str, Any]:
    """What the verbs that measure speed and accuracy take of these."""
    measure, learn = measure or _Measure(), learn or _Learn()
    if learn.train is None:
        typed.refuse("epochs", "train-size", "seeds", because="without --train DATA")
        if "data" not in typed.flags:
            typed.refuse("workers", because="without data to decode")
    training = learn.training(measure.device, seeds)
    return {"how": measure.how(image_size), "training": training, "reporter": _plain_reporter(json)}


def _comparison(name: str, about: str) -> None:
    """Adds one of the comparisons, which take the same."""

    @study.command(name=name, help=f"{about}\n\nStarted again after a stop, training goes on where it was.")
    def command(
        *,
        out: Path,
        size: Size = None,
        image_size: int | None = None,
        seeds: int = 1,
        measure: Measure = None,
        learn: Learn = None,
        json: Json = False,
        typed: Flags = NONE_TYPED,
    ) -> None:
        """Compare networks.

        Parameters
        ----------
        out
            A folder for the report and the runs.
        image_size
            Side of the images in pixels; default: the network's own.
        seeds
            Runs of each network that is trained.
        """
        from ..study.verbs import comparison

        options = _measured(measure, learn, typed, json, image_size, seeds)
        _run_study(comparison, json, out, name, size=size, **options)


_comparison(
    "macro",
    "A 16x16 stem and three stages against a 4x4 stem and four; larger images; attention in the first stage: "
    "parameters, operations, activations, speed on every engine and time by stage; accuracy with --train.",
)


_comparison(
    "ablation",
    "No attention, many heads, or one over 1/8, 1/4.67 or 1/2 of the channels: speed, and accuracy with --train.",
)


_comparison(
    "designs",
    "Three designs of single-head attention, (a) in a bottleneck, (b) over all channels, (c) over a part of them: "
    "speed, and accuracy with --train.",
)


@study.command(name="breakdown")
def study_breakdown(
    models: Annotated[tuple[str, ...], Parameter(negative=())],
    /,
    *,
    out: Path,
    engine: Many[str] = (),
    batch_size: int = 16,
    image_size: int | None = None,
    threads: int | None = None,
    json: Json = False,
) -> None:
    """What a network's time goes to: matrix products, depthwise convolution, normalisation, copies, softmax and so on.

    Parameters
    ----------
    models
        Networks' names, model files or published weights; one of shvit_s1 to shvit_s4 alone is shown beside its
        multi-head sister.
    out
        A folder for the report.
    engine
        onnx, openvino, torch; default: all that are installed.
    batch_size
        Images a call.
    image_size
        Side of the images in pixels; default: each model's own.
    threads
        CPU threads.
    """
    from ..study.verbs import breakdown

    options: dict[str, Any] = {"batch_size": batch_size, "image_size": image_size, "threads": threads}
    _run_study(breakdown, json, out, models, engines=engine, **options)


@study.command(name="resolution")
def study_resolution(
    models: Annotated[tuple[str, ...], Parameter(show_default=False, negative=())] = (),
    /,
    *,
    out: Path,
    image_size: Many[int] = (),
    data: str | None = None,
    measure: Measure = None,
    learn: Learn = None,
    json: Json = False,
    typed: Flags = NONE_TYPED,
) -> None:
    """Latency and accuracy against the size of the images, SHViT beside its peers.

    Parameters
    ----------
    models
        As for bench; default: SHViT S3 and S4 and three peers.
    out
        A folder for the report and the runs.
    image_size
        Sides in pixels; default: 224, 256, 384, 512.
    data
        Labelled images to judge models with weights on, at each size.
    """
    from ..study.verbs import resolution

    options = {"data": data, "workers": (learn or _Learn()).workers, **_measured(measure, learn, typed, json)}
    _run_study(resolution, json, out, models, sizes=image_size, **options)


def _run_study(verb: "Callable[..., Written]", json: bool, out: Path, *subjects: Any, **options: Any) -> None:
    """Runs the verb with a bar on the screen, and shows what it found."""
    from ..bench.report import watching
    from ..files import check_folder
    from ..study.report import show

    console = console_for(json)
    check_folder(out)
    with watching(console) as told:
        report, files = verb(*subjects, out=out, told=told, **options)
    show(console, report, files)
    finish(json, {**report.data, "findings": list(report.findings), "files": [str(path) for path in files]})


def _plain_reporter(json: bool) -> "Reporter":
    """Tells of training in lines: the study's own bar is on the screen."""
    from ..train.progress import Reporter

    console = console_for(json)
    return Reporter(Console(file=console.file, stderr=console.stderr, force_terminal=False))
