"""One network's heads, all that is asked of them: maps, similarity, ablation, and what single heads would save."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8

from .. import engines
from ..bench.timing import interleave, sample, warm_up
from ..data.transforms import Normalize
from ..model.cost import cost
from ..modelfile import ModelFile
from .compare import Told
from .heads import AttentionLayer
from .prune import is_known, with_single_heads
from .redundancy import Redundancy, count_right, looks, redundancy, single_together
from .subject import Images, Subject

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


def study_heads(
    name: str,
    subject: Subject,
    images: Images,
    similarity_images: int,
    tolerance: float,
    pictures: UInt8[np.ndarray, "n h w 3"],
    queries: Sequence[tuple[float, float]],
    threads: int | None,
    told: Told,
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
        queries: Places (x, y) as shares of the image, one for each picture in turn.
        threads: CPU threads of the timed networks.
        told: Of progress.
        so_far: Given what is known before the last part.
    """
    network, layers = subject.network, subject.layers
    result = redundancy(network, layers, images, told, images.first(similarity_images))
    looked = _looked(subject, result, pictures, queries) if len(pictures) else None
    chosen = result.could_be_single(tolerance)
    notes = [f"{len(images.bad)} images could not be read and were left out."] if images.bad else []
    found = Studied(name, result, tolerance, _named(layers, chosen), {}, None, looked)
    so_far(replace(found, notes=tuple(notes)))
    chosen = single_together(network, layers, result, images, tolerance, told)
    found = replace(found, together=_named(layers, chosen))
    kept = {layers[place]: head for place, head in chosen.items()}
    if kept and subject.model_file is not None and all(is_known(layer) for layer in kept):
        told("taking heads out, and timing", 0, 1)
        pruned = with_single_heads(network, kept)
        savings = _savings(subject.model_file, replace(subject.model_file, model=pruned), images, threads)  # pyright: ignore
        found = replace(found, savings=savings)
    elif kept:
        notes.append("What single heads would save was not measured: heads of this network cannot be taken out here.")
    return replace(found, notes=tuple(notes))


def _named(layers: Sequence[AttentionLayer], heads: Mapping[int, int]) -> dict[str, int]:
    return {layers[place].name: heads[place] for place in sorted(heads)}


def _savings(whole: ModelFile, single: ModelFile, images: Images, threads: int | None) -> dict[str, Any]:
    """Of the network with heads taken out beside the whole one; speeds in fp32 on each engine, timed in turn."""
    right, count = count_right(single.model, images)
    size = whole.preprocess.image_size
    costs = [cost(model.model, (size, size)) for model in (whole, single)]
    speeds = {}
    for name in ("torch", "onnx", "openvino"):
        if engines.ENGINES[name].unavailable("cpu") is None:
            speeds[name] = _speeds({"whole": whole, "single": single}, name, threads)
    return {
        "top1": right / count,
        "params": [one.params for one in costs],
        "macs": [one.macs for one in costs],
        "params_saved": 1 - costs[1].params / costs[0].params,
        "macs_saved": 1 - costs[1].macs / costs[0].macs,
        "images_per_second": {name: [found["whole"], found["single"]] for name, found in speeds.items()},
        "speed_ratio": {name: found["single"] / found["whole"] for name, found in speeds.items()},
        "batch_size": TIMED_BATCH,
    }


class _Timed:
    def __init__(self, call: Callable[[], object]) -> None:
        self._call, self._repetitions = call, warm_up(call)

    def time(self) -> list[float]:
        return sample(self._call, self._repetitions)


def _speeds(models: Mapping[str, ModelFile], engine: str, threads: int | None) -> dict[str, float]:
    size = next(iter(models.values())).preprocess.image_size
    pixels = torch.randint(0, 256, (TIMED_BATCH, 3, size, size), dtype=torch.uint8)
    subjects = {}
    for name, model in models.items():
        runner = engines.load(model, engine, "fp32", "cpu", threads)
        subjects[name] = _Timed(lambda runner=runner: runner(pixels))
    timings, _ = interleave(subjects, TIMED_ROUNDS)
    return {name: TIMED_BATCH / timing.median for name, timing in timings.items()}


def _looked(
    subject: Subject,
    result: Redundancy,
    pictures: UInt8[np.ndarray, "n h w 3"],
    queries: Sequence[tuple[float, float]],
) -> Looked:
    """The most important and the most redundant head of all, and those of an early, a middle and the last layer."""
    ranked = result.ranked() or [(place, 0) for place in range(len(subject.layers))]
    columns: dict[str, tuple[int, int]] = {}
    for what, (place, head) in (("important", ranked[0]), ("redundant", ranked[-1])) if result.ranked() else ():
        columns[f"most {what} of all:\nlayer {place + 1}, head {head}"] = (place, head)
    several = sorted({place for place, _ in ranked})
    for place in dict.fromkeys((several[len(several) // 6], several[len(several) // 2], several[-1])):
        here = [one for one in ranked if one[0] == place]
        if len(here) > 1:
            columns[f"layer {place + 1}:\nimportant, head {here[0][1]}"] = here[0]
            columns[f"layer {place + 1}:\nredundant, head {here[-1][1]}"] = here[-1]
        else:
            columns[f"layer {place + 1}"] = here[0]
    normalize = Normalize(subject.preprocess)
    rows, marks = [], []
    for number, picture in enumerate(pictures):
        x, y = queries[number % len(queries)]
        found = looks(
            subject.network, subject.layers, normalize(torch.from_numpy(picture).permute(2, 0, 1)[None]), x, y
        )
        height, width = picture.shape[:2]
        rows.append([_as_large(found[place][head], height, width) for place, head in columns.values()])
        marks.append((int(x * width), int(y * height)))
    return Looked(list(pictures), marks, list(columns), rows)


def _as_large(found: Float[np.ndarray, "h w"], height: int, width: int) -> Float[np.ndarray, "height width"]:
    """A map as large as the image, each of its places a rectangle."""
    rows = np.arange(height) * found.shape[0] // height
    columns = np.arange(width) * found.shape[1] // width
    return found[np.ix_(rows, columns)]
