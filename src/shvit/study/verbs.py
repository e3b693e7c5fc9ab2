"""What `shvit study …` does: each function measures, writes its report as far as it has come, and returns it."""

from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path
from typing import Any

from torch import nn

from ..bench.case import as_failure
from ..bench.run import Progress, about
from ..engines import check_threads, pick_device
from ..engines.threads import torch_threads
from ..errors import Failure, InputError
from ..model.config import VARIANTS
from ..provenance import facts
from ..redact import redacted
from ..tasks.classify import Classify
from ..tasks.labelled_data import Which, open_as_trained
from ..train.report import Reporter
from .accuracy import Training
from .breakdown import Breakdown, able
from .breakdown import breakdown as measure_breakdown
from .compare import Compared, compare, need_model_file
from .experiments import COMPARISONS
from .head_study import Studied, study_heads
from .heads import attention_layers
from .inputs import Images, open_subject, read_pictures
from .pages.breakdown import breakdown_page
from .pages.comparison import compared_page
from .pages.redundancy import redundancy_page
from .pages.resolution import resolution_page
from .report import Report, write
from .resolution import MODELS, SIZES, AgainstSize, against_size
from .speeds import SpeedOptions

Written = tuple[Report, list[Path]]


def redundancy(
    model: str,
    data: str,
    out: Path,
    *,
    images: int = 1000,
    similarity_images: int = 128,
    split: Which = "auto",
    pictures: tuple[str, ...] = (),
    queries: Sequence[str] = (),
    tolerance: float = 0.5,
    device: str = "auto",
    threads: int | None = None,
    batch_size: int = 32,
    workers: int = 2,
    told: Progress = lambda what, done, total: None,
) -> Written:
    """Attention maps, similarity and ablation of heads; see `shvit study redundancy`.

    Raises:
        InputError: A model, data, picture or place that cannot be used.
        Failure: No image could be read.
    """
    for name, value in (("images", images), ("similarity-images", similarity_images), ("batch-size", batch_size)):
        if value < 1:
            raise InputError(f"--{name} must be at least 1, got {value}")
    device = pick_device(device)
    check_threads(threads, device)
    places = [_place(text) for text in queries] or [(0.5, 0.5)]
    subject = open_subject(model, device)
    source: Any = open_as_trained(data, subject.model_file) if subject.model_file else Classify.open(data)
    told("reading images", 0, 1)
    chosen = Images(subject, source, split, images, batch_size, workers)
    shown = read_pictures(pictures, subject.preprocess) if pictures else chosen.pictures(max(4, len(places)))
    context = {
        **facts(),
        "data": redacted(str(data)),
        "split": chosen.split,
        "bad_images": chosen.bad,
        "similarity_images": similarity_images,
        "queries": places,
        "threads": threads,
    }
    name = subject.model_file.architecture.name if subject.model_file else model
    publish = _publisher(out, lambda found: redundancy_page(found, context))
    with torch_threads(threads):
        found: Studied = study_heads(
            name, subject, chosen, similarity_images, tolerance, shown, places, threads, told, publish
        )
    return publish(found)


def comparison(
    name: str,
    out: Path,
    *,
    size: str | None = None,
    how: SpeedOptions | None = None,
    training: Training | None = None,
    told: Progress = lambda what, done, total: None,
    reporter: Reporter | None = None,
) -> Written:
    """`macro`, `ablation` or `designs`, at the paper's size or another.

    Raises:
        InputError: What cannot be measured here, or data that cannot be trained on.
        KeyboardInterrupt: Ctrl-C; the report holds what was known, and the same call goes on.
    """
    plan = COMPARISONS[name](size) if size else COMPARISONS[name]()
    how = how or SpeedOptions()
    publish = _publisher(out, lambda found: compared_page(found, about(found.how.device)))
    found: Compared = compare(plan, how, training, out, told, reporter, publish)
    return publish(found)


def breakdown(
    models: Sequence[str],
    out: Path,
    *,
    engines: Sequence[str] = (),
    batch_size: int = 16,
    image_size: int | None = None,
    threads: int | None = None,
    told: Progress = lambda what, done, total: None,
) -> Written:
    """Time by kind of operation; a variant of SHViT is shown beside its multi-head sister.

    An engine that fails on a network costs the others nothing.

    Raises:
        InputError: No such model, or an engine that cannot be looked into.
    """
    if batch_size < 1:
        raise InputError(f"--batch-size must be at least 1, got {batch_size}")
    check_threads(threads, "cpu")
    names, chosen = list(dict.fromkeys(models)), able(engines)
    if len(names) == 1 and names[0] in VARIANTS:
        names.append(f"study/{names[0].removeprefix('shvit_')}-multi-head")
    opened = {name: need_model_file(name, image_size) for name in names}
    layers = {name: _attention(model.model) for name, model in opened.items()}
    rows: list[Breakdown] = []
    omitted: list[str] = []
    publish = _publisher(out, lambda found: breakdown_page(found, layers, omitted, {**facts(), "threads": threads}))
    for done, (name, engine) in enumerate(product(opened, chosen)):
        told(f"{name}, {engine}", done, len(opened) * len(chosen))
        try:
            with as_failure():
                rows.append(measure_breakdown(opened[name], engine, batch_size, threads, name))
        except Failure as failure:
            omitted.append(f"{name}, {engine}: {failure}")
        publish(rows)
    return publish(rows)


def _attention(network: nn.Module) -> tuple[str, ...]:
    """Paths of the attention layers' modules; none where the network has no attention."""
    try:
        layers = attention_layers(network)
    except InputError:
        return ()
    inside = {id(layer.module) for layer in layers}
    names = (name for name, module in network.named_modules() if id(module) in inside)
    return tuple(names)


def resolution(
    models: Sequence[str],
    out: Path,
    *,
    sizes: Sequence[int] = (),
    how: SpeedOptions | None = None,
    data: str | None = None,
    training: Training | None = None,
    workers: int = 2,
    told: Progress = lambda what, done, total: None,
    reporter: Reporter | None = None,
) -> Written:
    """Latency and accuracy against size.

    Raises:
        InputError: A model, engine, size or data that cannot be used.
        KeyboardInterrupt: Ctrl-C; the report holds what was known, and the same call goes on.
    """
    how = how or SpeedOptions()
    publish = _publisher(out, lambda found: resolution_page(found, about(found.how.device)))
    found: AgainstSize = against_size(
        models or MODELS, sizes or SIZES, how, data, training, out, told, reporter, workers, publish
    )
    return publish(found)


def _publisher(out: Path, page: Callable[[Any], Report]) -> Callable[[Any], Any]:
    """Writes the report of what is known so far, and returns it."""

    def publish(found: Any) -> Written:
        report = page(found)
        return report, write(report, out)

    return publish


def _place(text: str) -> tuple[float, float]:
    """X,Y as shares of the image."""
    try:
        x, y = (float(part) for part in text.split(","))
    except ValueError:
        x = y = -1.0
    if not (0 <= x < 1 and 0 <= y < 1):
        raise InputError(
            f"--queries are places X,Y as shares of the image from 0 to below 1, such as 0.5,0.25; got {text!r}"
        )
    return x, y
