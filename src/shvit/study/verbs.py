"""The verbs of `shvit study`. Each verb measures, writes its report after every step, and returns the final report."""

from collections.abc import Callable
from contextlib import suppress
from itertools import product
from pathlib import Path
from typing import Any

from ..bench.case import as_failure
from ..bench.run import OnProgress, about
from ..engines import check_threads, pick_device
from ..engines.threads import torch_threads
from ..errors import Failure, InputError, check_at_least
from ..model.config import VARIANTS
from ..provenance import facts
from ..redact import redacted
from ..requests.study import BreakdownRequest, ComparisonRequest, RedundancyRequest, ResolutionRequest
from ..tasks.classify import Classify
from ..tasks.labelled_data import open_as_trained
from ..train.progress import Reporter
from .accuracy import Training
from .breakdown import Breakdown, pick_profilers, time_breakdown
from .compare import need_model_file, run_comparison
from .experiments import make_comparison
from .head_study import study_heads
from .inputs import StudyImages, open_study_model, read_pictures
from .pages.breakdown import breakdown_page
from .pages.comparison import comparison_page
from .pages.redundancy import redundancy_page
from .pages.resolution import resolution_page
from .report import StudyReport, save_report
from .resolution import measure_resolution

Written = tuple[StudyReport, list[Path]]
"""A report and the paths of its files."""


def redundancy(request: RedundancyRequest, progress: OnProgress) -> Written:
    """Compare attention heads: their maps, their similarity, and the accuracy when heads are switched off.

    Raises:
        InputError: The model, data, a picture or a query point cannot be used.
        Failure: No image could be read.
    """
    check_at_least(1, images=request.images, similarity_images=request.similarity_images, batch_size=request.batch_size)
    device = pick_device(request.device)
    check_threads(request.threads, device)
    queries = [_query(text) for text in request.queries] or [(0.5, 0.5)]
    model = open_study_model(request.model, device)
    source: Any = open_as_trained(request.data, model.model_file) if model.model_file else Classify.open(request.data)
    progress("reading images", 0, 1)
    images = StudyImages(model, source, request.split, request.images, request.batch_size, request.workers)
    if request.pictures:
        pictures = read_pictures(request.pictures, model.preprocess)
    else:
        pictures = images.pictures(max(4, len(queries)))
    context = {
        **facts(),
        "data": redacted(str(request.data)),
        "split": images.split,
        "bad_images": images.bad,
        "similarity_images": request.similarity_images,
        "queries": queries,
        "threads": request.threads,
    }
    publish = _publisher(request.out, lambda result: redundancy_page(result, context))
    with torch_threads(request.threads):
        return publish(study_heads(model, images, request, pictures, queries, progress, publish))


def comparison(name: str, request: ComparisonRequest, progress: OnProgress, reporter: Reporter) -> Written:
    """Run `macro`, `ablation` or `designs`.

    Raises:
        InputError: An engine, precision or device cannot be used here, or the data cannot be used for training.
        KeyboardInterrupt: Ctrl-C. The report holds all results so far. The same call resumes interrupted training.
    """
    plan = make_comparison(name, request.size)
    publish = _publisher(request.out, lambda result: comparison_page(result, about(result.speed.device)))
    training = Training.requested(request.accuracy, request.speed.device, request.seeds)
    return publish(run_comparison(plan, request, training, progress, reporter, publish))


def breakdown(request: BreakdownRequest, progress: OnProgress) -> Written:
    """Measure time by kind of operation. If the only model is a variant of SHViT, its multi-head version is added.

    If an engine fails on a network, the rest is still measured.

    Raises:
        InputError: A model does not exist, or an engine has no profiler.
    """
    check_at_least(1, batch_size=request.batch_size)
    check_threads(request.threads, "cpu")
    names, engines = list(dict.fromkeys(request.models)), pick_profilers(request.engines)
    if len(names) == 1 and names[0] in VARIANTS:
        names.append(f"study/{names[0].removeprefix('shvit_')}-multi-head")
    opened = {name: need_model_file(name, request.image_size) for name in names}
    rows: list[Breakdown] = []
    omitted: list[str] = []
    context = {**facts(), "threads": request.threads}
    publish = _publisher(request.out, lambda result: breakdown_page(result, omitted, context))
    for done, (name, engine) in enumerate(product(opened, engines)):
        progress(f"{name}, {engine}", done, len(opened) * len(engines))
        try:
            with as_failure():
                rows.append(time_breakdown(opened[name], engine, request.batch_size, request.threads, name))
        except Failure as failure:
            omitted.append(f"{name}, {engine}: {failure}")
        publish(rows)
    return publish(rows)


def resolution(request: ResolutionRequest, progress: OnProgress, reporter: Reporter) -> Written:
    """Measure latency and accuracy at several image sizes.

    Raises:
        InputError: A model, an engine, an image size or the data cannot be used.
        KeyboardInterrupt: Ctrl-C. The report holds all results so far. The same call resumes interrupted training.
    """
    publish = _publisher(request.out, lambda result: resolution_page(result, about(result.speed.device)))
    training = Training.requested(request.accuracy, request.speed.device)
    return publish(measure_resolution(request, training, progress, reporter, publish))


def _publisher(out: Path, page: Callable[[Any], StudyReport]) -> Callable[[Any], Written]:
    """Make a function that writes the report of the results so far, and returns the report and its files."""

    def publish(result: Any) -> Written:
        report = page(result)
        return report, save_report(report, out)

    return publish


def _query(text: str) -> tuple[float, float]:
    """Parse X,Y, given as fractions of the image."""
    with suppress(ValueError):
        x, y = map(float, text.split(","))
        if 0 <= x < 1 and 0 <= y < 1:
            return x, y
    raise InputError(
        f"--queries must be points X,Y in fractions of the image (from 0 to below 1), such as 0.5,0.25; got {text!r}"
    )
