"""`shvit study`."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from cyclopts import App
from rich.console import Console

from ..requests.study import AccuracyOptions, BreakdownRequest, ComparisonRequest, RedundancyRequest, ResolutionRequest
from .app import NONE_TYPED, Flags, Json, console_for, finish
from .flags import Typed

if TYPE_CHECKING:
    from ..study.verbs import Written
    from ..train.progress import Reporter

study = App(
    name="study",
    help="Repeat the paper's analyses on its networks or on yours. Each analysis writes a folder with report.html and "
    "JSON, CSV and PNG files.",
)


@study.command(name="redundancy")
def study_redundancy(request: RedundancyRequest, *, json: Json = False, typed: Flags = NONE_TYPED) -> None:
    """Measure how redundant a network's attention heads are.

    Draws and compares the attention maps of all heads. For each head, measures top-1 without the head, and with it as
    the only head of its layer. Works with timm's ViT and Swin, SHViT with any token mixer, and your own network. Runs
    the network up to 1 + 2 x (total number of heads) times on each image.
    """
    from ..study.verbs import redundancy

    if request.similarity_images > request.images:
        typed.refuse("similarity-images", because=f"above --images {request.images}")
    _run(partial(redundancy, request), request.out, json)


def _comparison(name: str, about: str) -> None:
    """Add the command of a comparison. All comparisons take the same request."""

    @study.command(name=name, help=f"{about}\n\nRun the same command again to resume interrupted training.")
    def command(request: ComparisonRequest, *, json: Json = False, typed: Flags = NONE_TYPED) -> None:
        from ..study.verbs import comparison

        _check_training(request.accuracy, typed)
        _run(partial(comparison, name, request, reporter=_plain_reporter(json)), request.out, json)


for _name, _about in {
    "macro": "Compare macro designs: a 4x4 stem with four stages, and a 16x16 stem with three stages. The latter is "
    "also measured on larger images, and with attention in the first stage. Reports parameters, MACs, activations, "
    "speed on every engine, time per stage and, with --train, accuracy.",
    "ablation": "Compare token mixers: no attention, multi-head attention, and single-head attention over 1/8, "
    "1/4.67 or 1/2 of the channels. Reports cost and speed and, with --train, accuracy.",
    "designs": "Compare three designs of single-head attention: (a) in a bottleneck, (b) over all channels, (c) over "
    "some of the channels. Reports cost and speed and, with --train, accuracy.",
}.items():
    _comparison(_name, _about)


@study.command(name="breakdown")
def study_breakdown(request: BreakdownRequest, *, json: Json = False) -> None:
    """Show where a network's time goes: matrix products, depthwise convolution, normalization, copies, softmax, etc."""
    from ..study.verbs import breakdown

    _run(partial(breakdown, request), request.out, json)


@study.command(name="resolution")
def study_resolution(request: ResolutionRequest, *, json: Json = False, typed: Flags = NONE_TYPED) -> None:
    """Measure the latency and accuracy of models at several image sizes. Default models: SHViT and peers."""
    from ..study.verbs import resolution

    _check_training(request.accuracy, typed)
    _run(partial(resolution, request, reporter=_plain_reporter(json)), request.out, json)


def _check_training(accuracy: AccuracyOptions, typed: Typed) -> None:
    """Without --train, refuse the flags that only affect training."""
    if accuracy.train is None:
        typed.refuse("epochs", "train-size", "seeds", because="without --train DATA")
        if "data" not in typed.flags:
            typed.refuse("workers", because="without data to decode")


def _run(verb: "Callable[..., Written]", out: Path, json: bool) -> None:
    """Run the verb with a progress bar, then print its tables and findings."""
    from ..bench.report import watching
    from ..files import check_folder
    from ..study.report import print_report

    console = console_for(json)
    check_folder(out)
    with watching(console) as progress:
        report, files = verb(progress=progress)
    print_report(console, report, files)
    finish(json, {**report.data, "findings": list(report.findings), "files": [str(path) for path in files]})


def _plain_reporter(json: bool) -> "Reporter":
    """Make a reporter that logs training in plain lines, because the terminal shows the progress bar of the study."""
    from ..train.progress import Reporter

    return Reporter(Console(stderr=json, force_terminal=False))
