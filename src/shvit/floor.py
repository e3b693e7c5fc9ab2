"""int8 with an accuracy floor: the layers that cost most go back to higher precision until the floor holds."""

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .data.loader import Batch
from .engines import quantize
from .engines.openvino import Compiled
from .errors import Failure
from .modelfile import ModelFile
from .tasks import task_of
from .tasks.base import Predict

if TYPE_CHECKING:
    import openvino as ov

MOST = 0.5
"""Share of the layers that may go back; beyond it the network is no longer one in int8."""
RANKED_ON = 64
"""Calibration images by which layers are ranked."""


@dataclass(frozen=True)
class Floor:
    """What int8 costs in accuracy, and what was given back to hold the floor."""

    max_drop: float
    """Points of top-1 that may be lost."""
    reference: float
    """Top-1 of the network in fp32, from 0 to 1."""
    top1: float
    images: int
    layers: int
    """That could run in int8 and be given back one by one."""
    given_back: dict[str, float] = field(default_factory=dict)
    """Layers in higher precision, the costliest first, and the share of int8's logit error that each alone is worth."""
    tried: list[tuple[int, float]] = field(default_factory=list)
    """(layers given back, top-1 then), in the order of trying."""

    @property
    def drop(self) -> float:
        """Points of top-1 lost."""
        return 100 * (self.reference - self.top1)

    @property
    def holds(self) -> bool:
        return self.drop <= self.max_drop + 1e-9  # which shares of whole numbers of images may be off

    def to_dict(self) -> dict[str, Any]:
        return {**vars(self), "drop": self.drop}


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
    """The network in int8, as many of its layers as lose no more than `max_drop` points of top-1.

    Layers are ranked by how much nearer to fp32 the logits come when one alone goes back; then the fewest of the first
    of them that hold the floor are searched for by doubling and halving.

    Args:
        model_file: What the network was made from.
        network: In fp32.
        calibration: Batches of uint8 images that the ranges are measured on.
        validation: Labelled batches that the floor is held on.
        max_drop: Points of top-1.
        threads: CPU threads.
        tell: Called with each step, for people.

    Raises:
        FloorError: Not even with half the layers given back does it hold; the message says what is best.
    """

    def top1(candidate: "ov.Model", precision: str = "int8") -> tuple[float, int]:
        evaluation = task_of(model_file).evaluate(Compiled(candidate, precision, threads), validation)
        return evaluation.top1, evaluation.images

    reference, images = top1(network, "fp32")
    quantized = quantize.quantize_convolutions(network, calibration)
    layers = quantize.quantized_layers(quantized)

    def mixed(back: Collection[str]) -> "ov.Model":
        return quantize.tune(quantize.give_back(quantized, network, back))

    best, tried = mixed(()), []
    result = Floor(max_drop, reference, top1(best)[0], images, len(layers), {}, tried)
    tell(f"int8: top-1 {result.top1:.2%}, fp32 {reference:.2%}: {result.drop:+.2f} points lost of {max_drop} allowed")
    if result.holds:
        return best, result

    tell(f"ranking {len(layers)} layers by what each costs")
    costs = rank(network, mixed, layers, calibration, threads)
    ranked = list(costs)
    results: dict[int, tuple[ov.Model, Floor]] = {}

    def holds(count: int) -> bool:
        candidate = mixed(ranked[:count])
        share = {name: costs[name] for name in ranked[:count]}
        results[count] = candidate, Floor(max_drop, reference, top1(candidate)[0], images, len(layers), share, tried)
        tried.append((count, results[count][1].top1))
        tell(f"{count} of {len(layers)} layers given back: {results[count][1].drop:+.2f} points lost")
        return results[count][1].holds

    count = fewest(holds, int(MOST * len(layers)))
    if count is None:
        closest = max([result, *(floor for _, floor in results.values())], key=lambda floor: floor.top1)
        raise FloorError(
            f"int8 loses {closest.drop:.2f} points of top-1 at best, with {len(closest.given_back)} of {len(layers)} "
            f"layers given back; allowed were {max_drop}. Nothing was written"
        )
    return results[count]


def check_within(
    model_file: ModelFile, quantized: Predict, exact: Predict, validation: Iterable[Batch], max_drop: float
) -> Floor:
    """The floor of a network that is in int8 whole, as formats have it whose layers cannot be given back.

    Raises:
        FloorError: It loses more than `max_drop` points of top-1.
    """
    task = task_of(model_file)
    reference, found = task.evaluate(exact, validation), task.evaluate(quantized, validation)
    result = Floor(max_drop, reference.top1, found.top1, found.images, 0)
    if not result.holds:
        raise FloorError(
            f"int8 loses {result.drop:.2f} points of top-1, allowed were {max_drop}. Nothing was written; the format "
            "openvino can give layers back to higher precision"
        )
    return result


def rank(
    network: "ov.Model",
    mixed: Callable[[Collection[str]], "ov.Model"],
    layers: Sequence[str],
    calibration: Sequence[Tensor],
    threads: int | None,
) -> dict[str, float]:
    """The share of int8's squared logit error that giving back each layer alone removes, the largest first."""
    images = torch.cat(list(calibration))[:RANKED_ON]
    exact = Compiled(network, "fp32", threads)(images)

    def error(back: Collection[str]) -> float:
        return float((Compiled(mixed(back), "int8", threads)(images) - exact).square().mean())

    whole = error(())
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
