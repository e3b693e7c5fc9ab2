"""Measure latency and accuracy at several image sizes, as in the paper's Fig. 8."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any

from .. import engines
from ..bench.case import as_failure, has_random_weights
from ..bench.run import OnProgress, Row
from ..classnames import match_classes
from ..errors import Failure, InputError
from ..evaluate import evaluate_model
from ..model.architecture import TIMM_PREFIX
from ..model.config import VARIANTS
from ..modelfile import ModelFile
from ..pretrained import load_model
from ..requests.study import ResolutionRequest, SpeedOptions
from ..tasks.classify import Classify
from ..tasks.labelled_data import open_as_trained
from ..train.progress import Reporter
from .accuracy import Training
from .compare import need_model_file
from .speeds import timed

MODELS = ("shvit_s3", "shvit_s4", "timm/mobilenetv4_conv_small", "timm/fastvit_t8", "timm/repvit_m0_9")
"""Default models: SHViT, and peers that accept any image size."""
IMAGE_SIZES = (224, 256, 384, 512)


@dataclass(frozen=True)
class Latency:
    """Latency of one network at one image size."""

    model: str
    image_size: int
    engine: str
    precision: str
    batch_size: int
    milliseconds: float
    """Milliseconds per image."""
    spread: float

    @classmethod
    def of(cls, row: Row) -> "Latency":
        """Convert a row of a benchmark to a latency."""
        case = row.case
        sizes = case.image_size, case.engine, case.precision, case.batch_size
        return cls(case.model, *sizes, 1e3 / row.images_per_second, row.timing.spread)


@dataclass(frozen=True)
class SizeAccuracy:
    """Accuracy of one network at one image size."""

    model: str
    image_size: int
    top1: float
    images: int


@dataclass
class ResolutionResult:
    """The measurements so far."""

    models: tuple[str, ...]
    sizes: tuple[int, ...]
    speed: SpeedOptions
    training: Training | None
    latencies: list[Latency] = field(default_factory=list)
    accuracies: list[SizeAccuracy] = field(default_factory=list)
    omitted: list[str] = field(default_factory=list)
    """What was not measured, and why."""

    def to_dict(self) -> dict[str, Any]:
        """Convert to JSON data, without credentials."""
        return {
            "study": "resolution",
            "models": self.models,
            "sizes": self.sizes,
            "how": {"image_size": None, **asdict(self.speed)},
            "training": self.training.to_dict() if self.training else None,
            "points": [asdict(row) for row in self.latencies],
            "accuracies": [asdict(row) for row in self.accuracies],
            "omitted": self.omitted,
        }


def measure_resolution(
    request: ResolutionRequest,
    training: Training | None,
    progress: OnProgress,
    reporter: Reporter,
    on_update: Callable[[ResolutionResult], object],
) -> ResolutionResult:
    """Time each network at each size, one engine at a time. Then evaluate each network's weights at each size.

    If an engine fails or a network does not accept a size, the rest is still measured. Networks without weights are
    trained if `training` is given. `on_update` is called with the results so far after each long step.

    Raises:
        InputError: A model does not exist, or an engine or the data cannot be used.
    """
    models, sizes = request.models or MODELS, request.image_sizes or IMAGE_SIZES
    for name in models:
        need_model_file(name)
    if training:
        training = training.like(next((name for name in models if name in VARIANTS), "shvit_s1"))
    data = request.data or (training.data if training else None)
    if data:
        Classify.open(data)  # refuse bad data before anything is measured
    speed = replace(request.speed, device=engines.pick_device(request.speed.device))
    result = ResolutionResult(tuple(dict.fromkeys(models)), tuple(sorted(set(sizes))), speed, training)
    for rows, reasons in timed(speed, list(product(result.models, result.sizes)), progress):
        result.latencies += map(Latency.of, rows)
        result.omitted += reasons
        on_update(result)
    for name in result.models if data else ():
        try:
            weights = _weights(name, training, request.out, reporter)
            source = open_as_trained(data or "", weights)
            match_classes(source.classes, weights.classes)
        except (InputError, Failure) as error:
            result.omitted.append(f"top-1 of {name}: {error}")
        else:
            _add_accuracies(result, name, weights, source, request.accuracy.workers, progress)
        on_update(result)
    return result


def _add_accuracies(
    result: ResolutionResult, name: str, weights: ModelFile, source: Any, workers: int, progress: OnProgress
) -> None:
    """Evaluate a model's weights at every size, and add each top-1 to the results."""
    for number, size in enumerate(result.sizes):
        progress(f"top-1 of {name} at {size} pixels", number, len(result.sizes))
        at_size = replace(weights, preprocess=replace(weights.preprocess, image_size=size))
        try:
            with as_failure():
                engine = engines.load(at_size, precision="fp32", device=result.speed.device)
                metrics = evaluate_model(at_size, engine, source, workers=workers).evaluation.metrics()
        except Failure as failure:
            result.omitted.append(f"top-1 of {name} at {size} pixels: {failure}")
        else:
            result.accuracies.append(SizeAccuracy(name, size, metrics["top1"], metrics["images"]))


def _weights(name: str, training: Training | None, out: Path, reporter: Reporter) -> ModelFile:
    """Load the model. If it has no weights, train it first, or raise InputError if `training` is None."""
    if not has_random_weights(name) or "." in name.removeprefix(TIMM_PREFIX).partition(":")[0]:
        return load_model(name)
    if training is None:
        raise InputError("it has no weights: give a model file, or train it with --train DATA")
    folder = out / "runs" / f"{name.replace('/', '-')}-seed0"
    training.run(name, folder, training.image_size, 0, reporter)
    return load_model(folder / "best.safetensors")
