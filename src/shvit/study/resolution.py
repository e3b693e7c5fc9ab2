"""Latency and accuracy against the size of the images: the paper's Fig. 8."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from .. import engines
from ..bench.case import as_failure, has_random_weights
from ..bench.run import Progress, Row
from ..classnames import match_classes
from ..errors import Failure, InputError
from ..evaluate import evaluate
from ..model.architecture import TIMM_PREFIX
from ..model.config import VARIANTS
from ..modelfile import ModelFile
from ..pretrained import load_model
from ..tasks.classify import Classify
from ..tasks.labelled_data import open_as_trained
from ..train.report import Reporter
from .accuracy import Training
from .compare import need_model_file
from .speeds import SpeedOptions, timed

MODELS = ("shvit_s3", "shvit_s4", "timm/mobilenetv4_conv_small", "timm/fastvit_t8", "timm/repvit_m0_9")
"""SHViT beside networks that take images of any size."""
SIZES = (224, 256, 384, 512)


@dataclass(frozen=True)
class Point:
    """A network at a size."""

    model: str
    image_size: int
    engine: str
    precision: str
    batch_size: int
    milliseconds: float
    """An image."""
    spread: float

    @classmethod
    def of(cls, row: Row) -> "Point":
        case = row.case
        sizes = case.image_size, case.engine, case.precision, case.batch_size
        return cls(case.model, *sizes, 1e3 / row.images_per_second, row.timing.spread)


@dataclass(frozen=True)
class Accuracy:
    """Of weights at a size."""

    model: str
    image_size: int
    top1: float
    images: int


@dataclass(frozen=True)
class AgainstSize:
    """What was found."""

    models: tuple[str, ...]
    sizes: tuple[int, ...]
    how: SpeedOptions
    training: Training | None
    points: tuple[Point, ...] = ()
    accuracies: tuple[Accuracy, ...] = ()
    omitted: tuple[str, ...] = ()

    def without(self, why: str) -> "AgainstSize":
        """With something more that has no number."""
        return replace(self, omitted=(*self.omitted, why))

    def to_dict(self) -> dict[str, Any]:
        return {"study": "resolution", **asdict(self)}


def against_size(
    models: Sequence[str],
    sizes: Sequence[int],
    how: SpeedOptions,
    data: str | None,
    training: Training | None,
    out: Path,
    told: Progress = lambda what, done, total: None,
    reporter: Reporter | None = None,
    workers: int = 2,
    so_far: Callable[[AgainstSize], None] = lambda found: None,
) -> AgainstSize:
    """Time each network at each size, engine by engine; then judge weights at each size, as they are.

    A network that takes no such size, or an engine that fails, costs the others nothing.

    Args:
        models: Names of networks, model files, published weights.
        sizes: Sides of the images, in pixels.
        how: Of speed; its image size is not used.
        data: Labelled images to judge the models with weights on.
        training: Networks without weights are trained so, at the training's size or their own; None: they are not.
        out: Where runs are kept.
        told: Of progress.
        reporter: Of training.
        workers: Processes that decode images.
        so_far: Given what is known after each step that took long.

    Raises:
        InputError: No such model, or an engine or data that cannot be used.
    """
    for name in models:
        need_model_file(name)
    if training:
        training = training.like(next((name for name in models if name in VARIANTS), "shvit_s1"))
    judged_on = data or (training.data if training else None)
    if judged_on:
        Classify.open(judged_on)  # what is wrong with it is told before anything is measured
    how = replace(how, device=engines.pick_device(how.device))
    found = AgainstSize(tuple(dict.fromkeys(models)), tuple(sorted(set(sizes))), how, training)
    for rows, why in timed(how, found.models, found.sizes, told):
        found = replace(found, points=(*found.points, *map(Point.of, rows)), omitted=(*found.omitted, *why))
        so_far(found)
    for name in found.models if judged_on else ():
        found = _with_accuracy(found, name, judged_on or "", out, told, reporter or Reporter(), workers)
        so_far(found)
    return found


def _with_accuracy(
    found: AgainstSize, name: str, data: str, out: Path, told: Progress, reporter: Reporter, workers: int
) -> AgainstSize:
    """With top-1 of a model's weights at every size."""
    try:
        weights = _weights(name, found.training, out, reporter)
        source = open_as_trained(data, weights)
        match_classes(source.classes, weights.classes)
    except (InputError, Failure) as error:
        return found.without(f"top-1 of {name}: {error}")
    for number, size in enumerate(found.sizes):
        told(f"top-1 of {name} at {size} pixels", number, len(found.sizes))
        at_size = replace(weights, preprocess=replace(weights.preprocess, image_size=size))
        try:
            with as_failure():
                engine = engines.load(at_size, precision="fp32", device=found.how.device)
                report = evaluate(at_size, engine, source, workers=workers)
        except Failure as failure:
            found = found.without(f"top-1 of {name} at {size} pixels: {failure}")
            continue
        metrics = report.evaluation.metrics()
        row = Accuracy(name, size, metrics["top1"], metrics["images"])
        found = replace(found, accuracies=(*found.accuracies, row))
    return found


def _weights(name: str, training: Training | None, out: Path, reporter: Reporter) -> ModelFile:
    """The model's own, or freshly trained ones. Raises InputError where it has none, Failure where it cannot learn."""
    if not has_random_weights(name) or "." in name.removeprefix(TIMM_PREFIX).partition(":")[0]:
        return load_model(name)
    if training is None:
        raise InputError("has no weights: give a model file, or --train DATA")
    folder = out / "runs" / f"{name.replace('/', '-')}-seed0"
    training.run(name, folder, training.image_size, 0, reporter)
    return load_model(folder / "best.safetensors")
