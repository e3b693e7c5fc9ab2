"""All measurements of `shvit study redundancy`: attention maps, similarity, ablation, and savings with single heads."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8

from .. import engines
from ..bench.case import as_failure
from ..bench.run import OnProgress
from ..bench.timing import interleave, sample, warm_up
from ..data.transforms import Normalize
from ..errors import Failure, InputError, counted
from ..model.cost import cost
from ..modelfile import ModelFile
from ..requests.study import RedundancyRequest
from .heads import AttentionLayer, HeadMaps, record_attention
from .inputs import StudyImages, StudyModel
from .prune import can_prune, with_single_heads
from .redundancy import Redundancy, count_correct, measure_redundancy, single_together

TIMED_BATCH, TIMED_ROUNDS = 16, 10


@dataclass(frozen=True)
class AttentionMaps:
    """Attention maps to draw over images, one row per image."""

    images: Sequence[UInt8[np.ndarray, "h w 3"]]
    queries: Sequence[tuple[int, int]]
    """Query point (x, y) of each image, in pixels."""
    columns: Sequence[str]
    """Titles of the columns of maps."""
    maps: Sequence[Sequence[Float[np.ndarray, "h2 w2"]]]
    """For each image, one map per column, at a lower resolution. NaN at positions to which the query cannot attend."""


@dataclass
class HeadStudy:
    """The measurements of a network so far."""

    name: str
    redundancy: Redundancy
    tolerance: float
    single: dict[str, int] = field(default_factory=dict)
    """Maps each layer that can run with one head, if all other layers keep all heads, to the head that it keeps."""
    together: dict[str, int] = field(default_factory=dict)
    """Like `single`, but all of these layers can run with one head at the same time."""
    savings: dict[str, Any] | None = None
    """Savings with one head in the layers of `together`. None if there are no such layers or they cannot be pruned."""
    pictures: AttentionMaps | None = None
    notes: list[str] = field(default_factory=list)
    complete: bool = True
    """False until every layer has been measured."""


def study_heads(
    model: StudyModel,
    images: StudyImages,
    request: RedundancyRequest,
    pictures: UInt8[np.ndarray, "n h w 3"],
    queries: Sequence[tuple[float, float]],
    progress: OnProgress,
    on_update: Callable[[HeadStudy], object],
) -> HeadStudy:
    """Run the whole study. `on_update` is called with the results so far after each layer and each part.

    Attention maps are drawn over `pictures`, which must have the input size of the network. `queries` are points (x, y)
    in fractions of the image. Pictures and queries are paired in order; the shorter of the two lists is repeated.
    """
    network, layers, tolerance = model.network, model.layers, request.tolerance
    study = HeadStudy(model.name, Redundancy(0.0, 0, ()), tolerance, complete=False)
    if images.bad:
        study.notes.append(f"Left out {counted(len(images.bad), 'image')} that could not be read.")

    def after_layer(redundancy: Redundancy) -> None:
        study.redundancy = redundancy
        on_update(study)

    compared = images.first(request.similarity_images)
    redundancy = measure_redundancy(network, layers, images, compared, progress, after_layer)
    study.complete = True
    try:
        study.pictures = _attention_maps(model, redundancy, pictures, queries)
    except InputError as error:
        study.notes.append(f"Attention maps were not drawn: {error}.")
    study.single = _named(layers, redundancy.could_be_single(tolerance))
    on_update(study)
    chosen = single_together(network, layers, redundancy, images, tolerance, progress)
    study.together = _named(layers, chosen)
    on_update(study)
    kept = {layers[index]: head for index, head in chosen.items()}
    if kept and model.model_file is not None and all(can_prune(layer) for layer in kept):
        progress("pruning heads and measuring the savings", 0, 1)
        pruned: Any = with_single_heads(network, kept)
        correct, count = count_correct(pruned, images)
        network.cpu()
        models = model.model_file, replace(model.model_file, model=pruned.cpu())
        study.savings = {"top1": correct / count, **_savings(models, request.threads, study.notes)}
    elif kept:
        study.notes.append("The savings with single heads were not measured: heads of this network cannot be pruned.")
    return study


def _named(layers: Sequence[AttentionLayer], heads: Mapping[int, int]) -> dict[str, int]:
    return {layers[index].name: heads[index] for index in sorted(heads)}


def _savings(models: Sequence[ModelFile], threads: int | None, notes: list[str]) -> dict[str, Any]:
    """Measure cost and speed of the full and the pruned network, in fp32 on the CPU. If an engine fails, add a note."""
    size = models[0].preprocess.image_size
    whole, single = (cost(model.model, (size, size)) for model in models)
    speeds: dict[str, list[float]] = {}
    for name in ("torch", "onnx", "openvino"):
        if engines.ENGINES[name].unavailable("cpu") is None:
            try:
                speeds[name] = _speeds(models, name, threads)
            except Failure as failure:
                notes.append(f"{name}: {failure}")
    return {
        "params": [whole.params, single.params],
        "macs": [whole.macs, single.macs],
        "params_saved": 1 - single.params / whole.params,
        "macs_saved": 1 - single.macs / whole.macs,
        "images_per_second": speeds,
        "speed_ratio": {name: after / before for name, (before, after) in speeds.items()},
        "batch_size": TIMED_BATCH,
    }


class _Timed:
    """A network, loaded into an engine and ready to be timed. Raises Failure if the engine fails."""

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


def _speeds(models: Sequence[ModelFile], engine: str, threads: int | None) -> list[float]:
    """Measure the images per second of each network, alternating between them. Raises Failure if a network fails."""
    subjects = {number: _Timed(model, engine, threads) for number, model in enumerate(models)}
    timings, failed = interleave(subjects, TIMED_ROUNDS)
    if len(timings) < len(models):
        raise Failure(next(iter(failed.values()), "timing was interrupted"))
    return [TIMED_BATCH / timing.median for timing in timings.values()]


def _columns(redundancy: Redundancy) -> dict[str, tuple[int, int]]:
    """Choose the most important and the most redundant head overall, and in an early, a middle and the last layer."""
    ranked = redundancy.ranked()
    layers = sorted({index for index, _ in ranked}) or range(len(redundancy.layers))
    indices = dict.fromkeys((layers[len(layers) // 6], layers[len(layers) // 2], layers[-1]))
    if not ranked:
        return {f"layer {index + 1}": (index, 0) for index in indices}
    shown = {}
    for what, (index, head) in (("important", ranked[0]), ("redundant", ranked[-1])):
        shown[f"most {what} of all:\nlayer {index + 1}, head {head}"] = (index, head)
    for index in indices:
        here = [one for one in ranked if one[0] == index]
        shown[f"layer {index + 1}:\nimportant, head {here[0][1]}"] = here[0]
        shown[f"layer {index + 1}:\nredundant, head {here[-1][1]}"] = here[-1]
    return shown


@torch.inference_mode()
def _attention_maps(
    model: StudyModel,
    redundancy: Redundancy,
    pictures: UInt8[np.ndarray, "n h w 3"],
    queries: Sequence[tuple[float, float]],
) -> AttentionMaps:
    """Compute the attention maps of the heads in `_columns`. Raises InputError if the tokens are not a square grid."""
    columns = _columns(redundancy)
    normalize = Normalize(model.preprocess)
    images, rows, pixels = [], [], []
    maps: dict[AttentionLayer, HeadMaps] = {}
    for number in range(max(len(pictures), len(queries))):
        picture, (x, y) = pictures[number % len(pictures)], queries[number % len(queries)]
        with record_attention(model.layers, maps.__setitem__):
            model.network(normalize(torch.from_numpy(picture).permute(2, 0, 1)[None]).to(model.device))
        from_query = [layer.layout.attention_from(maps[layer].cpu(), x, y) for layer in model.layers]
        images.append(picture)
        rows.append([from_query[index][head] for index, head in columns.values()])
        pixels.append((int(x * picture.shape[1]), int(y * picture.shape[0])))
    return AttentionMaps(images, pixels, list(columns), rows)
