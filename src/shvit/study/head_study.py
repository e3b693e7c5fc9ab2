"""One network's heads, all that is asked of them: maps, similarity, ablation, and what single heads would save."""

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
from .heads import AttentionLayer
from .inputs import Images, Subject
from .prune import is_known, with_single_heads
from .redundancy import Redundancy, count_right, looks, redundancy, single_together

TIMED_BATCH, TIMED_ROUNDS = 16, 10


@dataclass(frozen=True)
class Looked:
    """Attention maps over images; a row for each image."""

    images: Sequence[UInt8[np.ndarray, "h w 3"]]
    queries: Sequence[tuple[int, int]]
    """Pixels (x, y)."""
    columns: Sequence[str]
    maps: Sequence[Sequence[Float[np.ndarray, "h w"]]]


@dataclass(frozen=True)
class Studied:
    """What was found of a network."""

    name: str
    result: Redundancy
    tolerance: float
    single: dict[str, int]
    """The layers that could do with one head while the others keep theirs, and which."""
    together: dict[str, int]
    """Those that could all at once."""
    savings: dict[str, Any] | None
    """Of these, measured; None where there are none, or heads cannot be taken out."""
    pictures: Looked | None
    notes: tuple[str, ...] = ()
    complete: bool = True
    """Whether every layer was looked at."""


def study_heads(
    name: str,
    subject: Subject,
    images: Images,
    similarity_images: int,
    tolerance: float,
    pictures: UInt8[np.ndarray, "n h w 3"],
    queries: Sequence[tuple[float, float]],
    threads: int | None,
    told: Progress,
    so_far: Callable[[Studied], None] = lambda found: None,
) -> Studied:
    """All of it.

    Args:
        name: Of the model, for people.
        subject: The network.
        images: To judge accuracy by.
        similarity_images: How many of them the maps are compared on.
        tolerance: Points of top-1 that a layer may lose with a single head.
        pictures: Images as the network sees them, for the figure.
        queries: Places (x, y) as shares of the image; pictures and places go together in turn, until all were shown.
        threads: CPU threads of the timed networks.
        told: Of progress.
        so_far: Given what is known after each layer and each part.
    """
    network, layers = subject.network, subject.layers
    notes = [f"{len(images.bad)} images could not be read and were left out."] if images.bad else []

    def after_layer(result: Redundancy) -> None:
        so_far(Studied(name, result, tolerance, {}, {}, None, None, tuple(notes), complete=False))

    result = redundancy(network, layers, images, told, images.first(similarity_images), after_layer)
    looked = None
    if len(pictures):
        try:
            looked = _looked(subject, result, pictures, queries)
        except InputError as error:
            notes.append(f"Attention maps were not drawn: {error}.")
    chosen = result.could_be_single(tolerance)
    found = Studied(name, result, tolerance, _named(layers, chosen), {}, None, looked, tuple(notes))
    so_far(found)
    chosen = single_together(network, layers, result, images, tolerance, told)
    found = replace(found, together=_named(layers, chosen))
    so_far(found)
    kept = {layers[place]: head for place, head in chosen.items()}
    if kept and subject.model_file is not None and all(is_known(layer) for layer in kept):
        told("taking heads out, and timing", 0, 1)
        pruned: Any = with_single_heads(network, kept)
        right, count = count_right(pruned, images)
        network.cpu()
        single = replace(subject.model_file, model=pruned.cpu())
        savings = {"top1": right / count, **_savings(subject.model_file, single, threads, notes)}
        return replace(found, savings=savings, notes=tuple(notes))
    if kept:
        notes.append("What single heads would save was not measured: heads of this network cannot be taken out here.")
    return replace(found, notes=tuple(notes))


def _named(layers: Sequence[AttentionLayer], heads: Mapping[int, int]) -> dict[str, int]:
    return {layers[place].name: heads[place] for place in sorted(heads)}


def _savings(whole: ModelFile, single: ModelFile, threads: int | None, notes: list[str]) -> dict[str, Any]:
    """Of the network with heads taken out beside the whole one; speeds in fp32 on the CPU, timed in turn.

    An engine that fails is noted, and costs the others nothing.
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
        "images_per_second": {name: [found["whole"], found["single"]] for name, found in speeds.items()},
        "speed_ratio": {name: found["single"] / found["whole"] for name, found in speeds.items()},
        "batch_size": TIMED_BATCH,
    }


class _Timed:
    """Raises Failure where the engine does anything."""

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
    """Images a second of each, timed in turn. Raises Failure where one cannot run."""
    subjects = {name: _Timed(model, engine, threads) for name, model in models.items()}
    timings, failed = interleave(subjects, TIMED_ROUNDS)
    if len(timings) < len(models):
        raise Failure(next(iter(failed.values()), "stopped"))
    return {name: TIMED_BATCH / timing.median for name, timing in timings.items()}


def _columns(result: Redundancy, layers: int) -> dict[str, tuple[int, int]]:
    """(Layer, head) by what is to be shown: the most important and the most redundant head of all, and of some layers.

    These are an early one, a middle one and the last one.
    """
    ranked = result.ranked()
    if not ranked:
        places = dict.fromkeys((layers // 6, layers // 2, layers - 1))
        return {f"layer {place + 1}": (place, 0) for place in places}
    shown = {}
    for what, (place, head) in (("important", ranked[0]), ("redundant", ranked[-1])):
        shown[f"most {what} of all:\nlayer {place + 1}, head {head}"] = (place, head)
    several = sorted({place for place, _ in ranked})
    for place in dict.fromkeys((several[len(several) // 6], several[len(several) // 2], several[-1])):
        here = [one for one in ranked if one[0] == place]
        shown[f"layer {place + 1}:\nimportant, head {here[0][1]}"] = here[0]
        shown[f"layer {place + 1}:\nredundant, head {here[-1][1]}"] = here[-1]
    return shown


def _looked(
    subject: Subject,
    result: Redundancy,
    pictures: UInt8[np.ndarray, "n h w 3"],
    queries: Sequence[tuple[float, float]],
) -> Looked:
    """Raises InputError where tokens are no maps."""
    columns = _columns(result, len(subject.layers))
    normalize = Normalize(subject.preprocess)
    images, rows, marks = [], [], []
    for number in range(max(len(pictures), len(queries))):
        picture, (x, y) = pictures[number % len(pictures)], queries[number % len(queries)]
        pixels = normalize(torch.from_numpy(picture).permute(2, 0, 1)[None]).to(subject.device)
        found = looks(subject.network, subject.layers, pixels, x, y)
        height, width = picture.shape[:2]
        images.append(picture)
        rows.append([_as_large(found[place][head], height, width) for place, head in columns.values()])
        marks.append((int(x * width), int(y * height)))
    return Looked(images, marks, list(columns), rows)


def _as_large(found: Float[np.ndarray, "h w"], height: int, width: int) -> Float[np.ndarray, "height width"]:
    """A map as large as the image, each of its places a rectangle."""
    rows = np.arange(height) * found.shape[0] // height
    columns = np.arange(width) * found.shape[1] // width
    return found[np.ix_(rows, columns)]
