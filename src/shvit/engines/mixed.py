"""Find the layers that run in higher precision so that an int8 network loses little accuracy, in any runtime."""

from collections.abc import Callable, Collection, Sequence
from typing import TypeVar

import torch
from jaxtyping import UInt8
from torch import Tensor

from ..tasks import task_of
from ..tasks.base import Predict
from .base import Candidate, ExportJob

CALIBRATION_IMAGES = 300
"""Maximum number of images for calibration. More images do not change the ranges."""
MAX_FLOAT_SHARE = 0.5
"""Maximum share of an int8 network's layers that may run in floating point."""
DETECTOR_PARTS = ("network.backbone.", "network.pyramid.", ".conv.", ".mask_head.", "_tower.", ".compare.")
"""An operation of a detector may be quantized if its name contains one of these. The others compute boxes in pixels
and scores, for which 256 values are too few."""
Network = TypeVar("Network")


def mix_precisions(
    exact: Predict,
    mixed: Callable[[Collection[str]], Network],
    run: Callable[[Network], Predict],
    layers: Sequence[str],
    job: ExportJob,
) -> Network | None:
    """Quantize a network with as few layers in floating point as `job.accept` allows; None if none is accepted.

    Layers are ranked by how much closer to fp32 the outputs get when only that layer runs in floating point. Candidates
    run the first layers of this ranking in floating point, at most half of all layers. The smallest accepted
    number of layers is found by doubling and bisection.

    Args:
        exact: The network in fp32.
        mixed: Returns the quantized network with these layers in floating point.
        run: Prepares a quantized network to run.
        layers: Names of the layers that can be quantized.
        job: Its `accept` must be set.
    """
    accept, task = job.accept, task_of(job.model_file)
    assert accept is not None
    whole = mixed(())
    if accept(Candidate(run(whole), exact, len(layers))):
        return whole
    ranked_on = torch.cat(list(job.calibration[: task.ranking_images]))[: task.ranking_images]
    costs = rank_layers(exact, lambda back: run(mixed(back)), layers, ranked_on, task.signal)
    tried: dict[int, Network] = {}

    def holds(count: int) -> bool:
        given_back = dict(list(costs.items())[:count])
        tried[count] = mixed(given_back)
        return accept(Candidate(run(tried[count]), exact, len(layers), given_back))

    count = fewest(holds, int(MAX_FLOAT_SHARE * len(layers)))
    return None if count is None else tried[count]


def rank_layers(
    exact: Predict,
    mixed: Callable[[Collection[str]], Predict],
    layers: Sequence[str],
    images: UInt8[Tensor, "n 3 h w"],
    signal: Callable[[Tensor], Tensor] = lambda outputs: outputs,
) -> dict[str, float]:
    """Each layer's share of the squared error that int8 causes in `signal(outputs)`, largest share first.

    A layer's share is the part of this error that vanishes when only this layer runs in floating point.
    """
    expected = signal(exact(images))

    def error(back: Collection[str]) -> float:
        return float((signal(mixed(back)(images)) - expected).square().mean())

    whole = error(()) or 1.0  # avoids a division by zero if there is no error
    costs = {name: 1 - error((name,)) / whole for name in layers}
    return dict(sorted(costs.items(), key=lambda entry: -entry[1]))


def fewest(holds: Callable[[int], bool], most: int) -> int | None:
    """The smallest count from 1 to `most` for which `holds` is true; None if it never is. `holds` must be monotonic."""
    low, high = 0, min(1, most)
    while not holds(high):
        if high == most:
            return None
        low, high = high, min(2 * high, most)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high


def whole_batches(calibration: Sequence[Tensor], size: int | None) -> list[Tensor]:
    """The calibration images in batches of exactly `size` (None: any size). Incomplete batches are left out."""
    if size is None:
        return list(calibration)
    return [part for batch in calibration for part in batch.split(size) if len(part) == size]
