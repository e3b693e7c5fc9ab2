"""int8 with an accuracy floor: the layers that cost most go back to higher precision until the floor holds."""

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import UInt8
from torch import Tensor

from ..console import METRICS
from ..data.loader import Batch
from ..engines import quantize
from ..engines.openvino import computed_in
from ..engines.openvino_runtime import Compiled
from ..errors import Failure, InputError
from ..modelfile import ModelFile
from ..tasks import task_of
from ..tasks.base import Predict

if TYPE_CHECKING:
    import openvino as ov

MOST = 0.5
"""Share of the layers that may go back; beyond it the network is no longer one in int8."""
RANKED_ON = {"classify": 64, "detect": 8, "segment": 8}
"""Calibration images by which layers are ranked; a detector says more of each, and takes longer."""


@dataclass(frozen=True)
class Floor:
    """What int8 costs in accuracy, and what was given back to hold the floor."""

    metric: str
    """What is held: `top1`, or `AP` of a detector."""
    max_drop: float
    """Points of it that may be lost."""
    reference: float
    """Of the network in fp32, from 0 to 1."""
    score: float
    """Of the network in int8."""
    images: int
    layers: int
    """That could run in int8 and be given back one by one."""
    given_back: dict[str, float] = field(default_factory=dict)
    """Layers in higher precision, the costliest first, and the share of int8's error that each alone is worth."""
    tried: list[tuple[int, float]] = field(default_factory=list)
    """(layers given back, score then), in the order of trying."""

    @property
    def drop(self) -> float:
        """Points lost."""
        return 100 * (self.reference - self.score)

    @property
    def holds(self) -> bool:
        return self.drop <= self.max_drop + 1e-9  # which shares of whole numbers of images may be off

    def to_dict(self) -> dict[str, Any]:
        """For JSON; the score under the metric's own name, too."""
        return {**vars(self), self.metric: self.score, "drop": self.drop}


class FloorError(Failure):
    """No mixture of precisions that was tried loses as little as was asked."""


def quantize_within(
    model_file: ModelFile,
    network: "ov.Model",
    calibration: Sequence[Tensor],
    validation: Iterable[Batch],
    max_drop: float,
    threads: int | None = None,
    tell: Callable[[str], None] = lambda _: None,
) -> tuple["ov.Model", Floor]:
    """The network in int8, as many of its layers as lose no more than `max_drop` points of top-1, or of AP.

    Layers are ranked by how much nearer to fp32 the outputs come when one alone goes back; then the fewest of the first
    of them that hold the floor are searched for by doubling and halving.

    Args:
        model_file: What the network was made from.
        network: In fp32.
        calibration: Batches of uint8 images that the ranges are measured on.
        validation: Labelled batches that the floor is held on.
        max_drop: Points.
        threads: CPU threads.
        tell: Called with each step, for people.

    Raises:
        InputError: The labelled images have no object to find.
        FloorError: Not even with half the layers given back does it hold; the message says what is best.
    """
    task = task_of(model_file)

    def score(candidate: "ov.Model", precision: str = "int8") -> tuple[float, int]:
        runs = Compiled(candidate, computed_in(task.name, precision), threads)
        evaluation = task.evaluate(runs, validation)
        return evaluation.metrics()[task.headline], evaluation.images

    reference, images = score(network, "fp32")
    _check_reference(reference)
    quantized = quantize.quantize_convolutions(network, calibration)
    layers = quantize.quantized_layers(quantized)

    def mixed(back: Collection[str]) -> "ov.Model":
        return quantize.tune(quantize.give_back(quantized, network, back))

    best, tried = mixed(()), []
    result = Floor(task.headline, max_drop, reference, score(best)[0], images, len(layers), {}, tried)
    tell(
        f"int8: {METRICS[task.headline]} {result.score:.2%}, fp32 {reference:.2%}: {result.drop:+.2f} points lost of "
        f"{max_drop} allowed"
    )
    if result.holds:
        return best, result

    tell(f"ranking {len(layers)} layers by what each costs")
    wanted = RANKED_ON[task.name]
    ranked_on = torch.cat(list(calibration[:wanted]))[:wanted]
    costs = rank(network, mixed, layers, ranked_on, threads, task.signal)
    ranked = list(costs)
    results: dict[int, tuple[ov.Model, Floor]] = {}

    def holds(count: int) -> bool:
        candidate = mixed(ranked[:count])
        share = {name: costs[name] for name in ranked[:count]}
        held = Floor(task.headline, max_drop, reference, score(candidate)[0], images, len(layers), share, tried)
        results[count] = candidate, held
        tried.append((count, held.score))
        tell(f"{count} of {len(layers)} layers given back: {held.drop:+.2f} points lost")
        return held.holds

    count = fewest(holds, int(MOST * len(layers)))
    if count is None:
        closest = max([result, *(floor for _, floor in results.values())], key=lambda floor: floor.score)
        raise FloorError(
            f"int8 loses {closest.drop:.2f} points of {METRICS[task.headline]} at best, with "
            f"{len(closest.given_back)} of {len(layers)} layers given back; allowed were {max_drop}. Nothing was "
            "written"
        )
    return results[count]


def check_within(
    model_file: ModelFile, quantized: Predict, exact: Predict, validation: Iterable[Batch], max_drop: float
) -> Floor:
    """The floor of a network that is in int8 whole, as formats have it whose layers cannot be given back.

    Raises:
        FloorError: It loses more than `max_drop` points.
    """
    task = task_of(model_file)
    reference, found = task.evaluate(exact, validation), task.evaluate(quantized, validation)
    before, after = (evaluation.metrics()[task.headline] for evaluation in (reference, found))
    _check_reference(before)
    result = Floor(task.headline, max_drop, before, after, found.images, 0)
    if not result.holds:
        raise FloorError(
            f"int8 loses {result.drop:.2f} points of {METRICS[task.headline]}, allowed were {max_drop}. Nothing was "
            "written; the format openvino can give layers back to higher precision"
        )
    return result


def _check_reference(score: float) -> None:
    if score < 0:
        raise InputError("int8 cannot be held to a floor: no validation image has an object")


def rank(
    network: "ov.Model",
    mixed: Callable[[Collection[str]], "ov.Model"],
    layers: Sequence[str],
    images: UInt8[Tensor, "n 3 h w"],
    threads: int | None,
    signal: Callable[[Tensor], Tensor] = lambda outputs: outputs,
) -> dict[str, float]:
    """The share of int8's squared error that giving back each layer alone removes, the largest first.

    The error is of what `signal` makes of the outputs.
    """
    exact = signal(Compiled(network, "fp32", threads)(images))

    def error(back: Collection[str]) -> float:
        return float((signal(Compiled(mixed(back), "int8", threads)(images)) - exact).square().mean())

    whole = error(()) or 1.0  # no error at all: no layer costs anything
    costs = {name: 1 - error((name,)) / whole for name in layers}
    return dict(sorted(costs.items(), key=lambda entry: -entry[1]))


def fewest(holds: Callable[[int], bool], most: int) -> int | None:
    """The least count from 1 to `most` that holds, if more always hold where fewer do; None where none does."""
    low, high = 0, 1
    while not holds(min(high, most)):
        if high >= most:
            return None
        low, high = high, 2 * high
    high = min(high, most)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high
