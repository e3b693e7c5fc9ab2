"""Everything `shvit study redundancy` measures: attention maps, similarity, ablation, and savings with single heads."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8

from .. import engines
from ..bench.case import as_failure
from ..bench.run import Progress
from ..bench.timing import interleave, sample, warm_up
from ..data.transforms import Normalize
from ..errors import Failure, InputError
from ..model.cost import cost
from ..modelfile import ModelFile
from ..requests.study import RedundancyRequest
from .heads import AttentionLayer
from .inputs import StudyImages, StudyModel
from .prune import can_prune, with_single_heads
from .redundancy import Redundancy, attention_from, count_correct, measure_redundancy, single_together

TIMED_BATCH, TIMED_ROUNDS = 16, 10


@dataclass(frozen=True)
class AttentionMaps:
    """Attention maps over images, one row per image."""

    images: Sequence[UInt8[np.ndarray, "h w 3"]]
    queries: Sequence[tuple[int, int]]
    """Pixels (x, y)."""
    columns: Sequence[str]
    maps: Sequence[Sequence[Float[np.ndarray, "h w"]]]


@dataclass(frozen=True)
class HeadStudy:
    """The measurements of a network so far."""

    name: str
    redundancy: Redundancy
    tolerance: float
    single: dict[str, int]
    """The head to keep in each layer that can run with one head while the other layers keep all heads."""
    together: dict[str, int]
    """The head to keep in each layer of a set that can run with one head at the same time."""
    savings: dict[str, Any] | None
    """Measured savings of the layers in `together`. None if there are none, or their heads cannot be pruned."""
    pictures: AttentionMaps | None
    notes: tuple[str, ...] = ()
    complete: bool = True
    """False until every layer was measured."""


def study_heads(
    name: str,
    model: StudyModel,
    images: StudyImages,
    request: RedundancyRequest,
    pictures: UInt8[np.ndarray, "n h w 3"],
    queries: Sequence[tuple[float, float]],
    progress: Progress,
    on_update: Callable[[HeadStudy], object] = lambda study: None,
) -> HeadStudy:
    """Run the whole study.

    Args:
        name: Name of the model, for the report.
        model: The network.
        images: For measuring accuracy.
        request: Gives the tolerance, the number of images for similarity, and the CPU threads for timing.
        pictures: Images for the figure, resized for the network.
        queries: Query points (x, y) as fractions of the image. Each picture takes the next point in turn, until all
            pictures and all points were shown.
        progress: Called with the current step.
        on_update: Called with the results so far after each layer and each part.
    """
    network, layers, tolerance = model.network, model.layers, request.tolerance
    notes = [f"{len(images.bad)} images could not be read and were left out."] if images.bad else []

    def after_layer(redundancy: Redundancy) -> None:
        on_update(HeadStudy(name, redundancy, tolerance, {}, {}, None, None, tuple(notes), complete=False))

    compared = images.first(request.similarity_images)
    redundancy = measure_redundancy(network, layers, images, progress, compared, after_layer)
    maps = None
    if len(pictures):
        try:
            maps = _attention_maps(model, redundancy, pictures, queries)
        except InputError as error:
            notes.append(f"Attention maps were not drawn: {error}.")
    single = _named(layers, redundancy.could_be_single(tolerance))
    study = HeadStudy(name, redundancy, tolerance, single, {}, None, maps, tuple(notes))
    on_update(study)
    chosen = single_together(network, layers, redundancy, images, tolerance, progress)
    study = replace(study, together=_named(layers, chosen))
    on_update(study)
    savings = None
    kept = {layers[index]: head for index, head in chosen.items()}
    if kept and model.model_file is not None and all(can_prune(layer) for layer in kept):
        progress("pruning heads and timing", 0, 1)
        pruned: Any = with_single_heads(network, kept)
        correct, count = count_correct(pruned, images)
        network.cpu()
        smaller = replace(model.model_file, model=pruned.cpu())
        savings = {"top1": correct / count, **_savings(model.model_file, smaller, request.threads, notes)}
    elif kept:
        notes.append("The savings of single heads were not measured: the heads of this network cannot be pruned.")
    return replace(study, savings=savings, notes=tuple(notes))


def _named(layers: Sequence[AttentionLayer], heads: Mapping[int, int]) -> dict[str, int]:
    return {layers[index].name: heads[index] for index in sorted(heads)}


def _savings(whole: ModelFile, single: ModelFile, threads: int | None, notes: list[str]) -> dict[str, Any]:
    """Cost and speed of the pruned network next to the whole one, in fp32 on the CPU, timed in turn.

    An engine that fails adds a note and does not stop the others.
    """
    size = whole.preprocess.image_size
    costs = [cost(model.model, (size, size)) for model in (whole, single)]
    speeds = {}
    for name in ("torch", "onnx", "openvino"):
        if engines.ENGINES[name].unavailable("cpu") is None:
            try:
                speeds[name] = _speeds({"whole": whole, "single": single}, name, threads)
            except Failure as failure:
                notes.append(f"{name}: {failure}")
    return {
        "params": [one.params for one in costs],
        "macs": [one.macs for one in costs],
        "params_saved": 1 - costs[1].params / costs[0].params,
        "macs_saved": 1 - costs[1].macs / costs[0].macs,
        "images_per_second": {name: [speed["whole"], speed["single"]] for name, speed in speeds.items()},
        "speed_ratio": {name: speed["single"] / speed["whole"] for name, speed in speeds.items()},
        "batch_size": TIMED_BATCH,
    }


class _Timed:
    """A network to be timed. Raises Failure if the engine fails."""

    def __init__(self, model: ModelFile, engine: str, threads: int | None) -> None:
        size = model.preprocess.image_size
        pixels = torch.randint(0, 256, (TIMED_BATCH, 3, size, size), dtype=torch.uint8)
        with as_failure():
            run = engines.load(model, engine, "fp32", "cpu", threads)
            self._call: Callable[[], object] = lambda: run(pixels)
            self._repetitions = warm_up(self._call)

    def time(self) -> list[float]:
        with as_failure():
            return sample(self._call, self._repetitions)


def _speeds(models: Mapping[str, ModelFile], engine: str, threads: int | None) -> dict[str, float]:
    """Images per second of each network, timed in turn. Raises Failure if one cannot run."""
    timings, failed = interleave({name: _Timed(model, engine, threads) for name, model in models.items()}, TIMED_ROUNDS)
    if len(timings) < len(models):
        raise Failure(next(iter(failed.values()), "stopped"))
    return {name: TIMED_BATCH / timing.median for name, timing in timings.items()}


def _columns(redundancy: Redundancy, layers: int) -> dict[str, tuple[int, int]]:
    """(Layer, head) for each column of the figure, by title.

    Shows the most important and the most redundant head of all layers, and of an early, a middle and the last layer.
    """
    ranked = redundancy.ranked()
    if not ranked:
        indices = dict.fromkeys((layers // 6, layers // 2, layers - 1))
        return {f"layer {index + 1}": (index, 0) for index in indices}
    shown = {}
    for what, (index, head) in (("important", ranked[0]), ("redundant", ranked[-1])):
        shown[f"most {what} of all:\nlayer {index + 1}, head {head}"] = (index, head)
    several = sorted({index for index, _ in ranked})
    for index in dict.fromkeys((several[len(several) // 6], several[len(several) // 2], several[-1])):
        here = [one for one in ranked if one[0] == index]
        shown[f"layer {index + 1}:\nimportant, head {here[0][1]}"] = here[0]
        shown[f"layer {index + 1}:\nredundant, head {here[-1][1]}"] = here[-1]
    return shown


def _attention_maps(
    model: StudyModel,
    redundancy: Redundancy,
    pictures: UInt8[np.ndarray, "n h w 3"],
    queries: Sequence[tuple[float, float]],
) -> AttentionMaps:
    """Raises InputError if the tokens are not a square grid."""
    columns = _columns(redundancy, len(model.layers))
    normalize = Normalize(model.preprocess)
    images, rows, pixels = [], [], []
    for number in range(max(len(pictures), len(queries))):
        picture, (x, y) = pictures[number % len(pictures)], queries[number % len(queries)]
        inputs = normalize(torch.from_numpy(picture).permute(2, 0, 1)[None]).to(model.device)
        maps = attention_from(model.network, model.layers, inputs, x, y)
        height, width = picture.shape[:2]
        images.append(picture)
        rows.append([_enlarged(maps[index][head], height, width) for index, head in columns.values()])
        pixels.append((int(x * width), int(y * height)))
    return AttentionMaps(images, pixels, list(columns), rows)


def _enlarged(small: Float[np.ndarray, "h w"], height: int, width: int) -> Float[np.ndarray, "height width"]:
    """The map at the size of the image, by nearest neighbour."""
    rows = np.arange(height) * small.shape[0] // height
    columns = np.arange(width) * small.shape[1] // width
    return small[np.ix_(rows, columns)]
