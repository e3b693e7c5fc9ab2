"""Latency and accuracy against the size of the images: the paper's Fig. 8."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from .. import engines
from ..bench.peers import Top1, published_top1
from ..bench.subject import has_random_weights
from ..errors import Failure, InputError
from ..evaluate import evaluate
from ..modelfile import ModelFile
from ..pretrained import load_model
from ..tasks.classify import Classify
from ..train.report import Reporter
from .compare import How, Told, Training, need_model_file, timed, train_one

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
    how: How
    training: Training | None
    points: tuple[Point, ...] = ()
    accuracies: tuple[Accuracy, ...] = ()
    omitted: tuple[str, ...] = ()

    def published(self, model: str, size: int) -> Top1 | None:
        """On ImageNet-1K, of weights for this size."""
        return published_top1(model, size)

    def to_dict(self) -> dict[str, Any]:
        return {"study": "resolution", **asdict(self)}


def against_size(
    models: Sequence[str],
    sizes: Sequence[int],
    how: How,
    data: str | None,
    training: Training | None,
    out: Path,
    told: Told = lambda what, done, total: None,
    reporter: Reporter | None = None,
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
        so_far: Given what is known after each step that took long.

    Raises:
        InputError: No such model, or an engine or data that cannot be used.
    """
    for name in models:
        need_model_file(name)
    how = replace(how, device=engines.pick_device(how.device))
    found = AgainstSize(tuple(models), tuple(sorted(sizes)), how, training)
    for rows, why in timed(how, found.models, found.sizes, told):
        points = tuple(
            Point(
                row.case.model,
                row.case.image_size,
                row.case.engine,
                row.case.precision,
                row.case.batch_size,
                1e3 / row.images_per_second,
                row.timing.spread,
            )
            for row in rows
        )
        found = replace(found, points=found.points + points, omitted=(*found.omitted, *why))
        so_far(found)
    for name in models:
        weights = _weights(name, training, out, reporter or Reporter())
        if weights is not None and (data or training):
            found = _judged(found, name, weights, data or (training.data if training else ""), told)
            so_far(found)
    return found


def _weights(name: str, training: Training | None, out: Path, reporter: Reporter) -> ModelFile | None:
    """The model's own, or freshly trained ones; None where it has none."""
    if not has_random_weights(name):
        return load_model(name)
    if training is None:
        return None
    folder = out / "runs" / f"{name.replace('/', '-')}-seed0"
    settings: dict[str, Any] = {**training.settings, "epochs": training.epochs, "seed": 0}
    if training.image_size:
        settings["image_size"] = training.image_size
    train_one(training, name, folder, settings, reporter)
    return load_model(folder / "best.safetensors")


def _judged(found: AgainstSize, name: str, weights: ModelFile, data: str, told: Told) -> AgainstSize:
    source = Classify.open(data)
    accuracies, omitted = list(found.accuracies), list(found.omitted)
    for number, size in enumerate(found.sizes):
        told(f"top-1 of {name} at {size} pixels", number, len(found.sizes))
        at_size = replace(weights, preprocess=replace(weights.preprocess, image_size=size))
        try:
            report = evaluate(at_size, engines.load(at_size, device=found.how.device), source, workers=2)
        except InputError:
            raise
        except (Failure, RuntimeError, AssertionError) as error:
            omitted.append(f"top-1 of {name} at {size} pixels: {str(error).partition(chr(10))[0]}")
            continue
        metrics = report.evaluation.metrics()
        accuracies.append(Accuracy(name, size, metrics["top1"], metrics["images"]))
    return replace(found, accuracies=tuple(accuracies), omitted=tuple(omitted))
