"""How much time a network spends on each kind of operation, and in which of its modules.

Source: Yun and Ro, "SHViT" (CVPR 2024): most of the time of a multi-head layer is memory-bound work.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

import torch

from ..engines import ENGINES
from ..engines import operations as profiling
from ..errors import InputError
from ..modelfile import ModelFile

PRODUCT, FUSED, DEPTHWISE, NORM, MOVE, SOFTMAX, ELEMENTWISE, OTHER = KINDS = (
    "matrix product",
    "fused attention",
    "depthwise convolution",
    "normalisation",
    "reshape and copy",
    "softmax",
    "elementwise and means",
    "the engine's own",
)
"""Matrix products include dense convolutions. Fused attention is matrix products and softmax in one kernel. The last
kind is overhead of the engine, mostly dispatch."""
MEMORY_BOUND = (DEPTHWISE, NORM, MOVE, SOFTMAX, ELEMENTWISE)
"""Kinds with few FLOPs per byte."""

WORDS: Sequence[tuple[str, tuple[str, ...]]] = (
    (ELEMENTWISE, ("convert", "upsample")),  # first, because they contain "conv" and "linear"
    (FUSED, ("attention", "mha")),
    (SOFTMAX, ("softmax",)),
    (NORM, ("norm", "mvn")),
    (PRODUCT, ("conv", "mm", "matmul", "gemm", "fullyconnected", "linear")),
    (MOVE, (
        "reshape", "reorder", "transpose", "permute", "copy", "clone", "contiguous", "concat", "cat", "split", "slice",
        "flatten", "squeeze", "expand", "view", "stack", "chunk", "narrow", "select", "roll", "pad", "gather", "shape",
        "index", "as_strided", "empty", "fill", "zero", "broadcast", "tile", "resize", "resolve", "alias", "unbind",
    )),
    (ELEMENTWISE, (
        "add", "sub", "mul", "div", "pow", "sqrt", "relu", "gelu", "erf", "clip", "clamp", "threshold", "sigmoid",
        "tanh", "exp", "mean", "reduce", "pool", "sum", "max", "min", "cast", "to", "quantize", "math",
        "eltwise", "swish", "silu", "identity", "where", "subgraph",
    )),
)  # fmt: skip
"""Substrings of operation names for each kind. The first match determines the kind."""


@dataclass(frozen=True)
class PartTime:
    """Time of one kind of operation in one module, per call."""

    part: str
    """Name of the innermost module, as in `named_modules`. `network` is the network's own `forward`. An empty
    name is the preprocessing of pixels. A fused operation counts for one of its modules."""
    kind: str
    seconds: float


@dataclass(frozen=True)
class Breakdown:
    """Time of one network in one engine."""

    model: str
    """Name of the model, as given by the user."""
    engine: str
    batch_size: int
    image_size: int
    spent: tuple[PartTime, ...]

    def seconds(self, kinds: Sequence[str] = KINDS, within: Callable[[str], bool] = lambda part: True) -> float:
        """Seconds per call of some kinds in some parts."""
        return sum(row.seconds for row in self.spent if row.kind in kinds and within(row.part))

    def shares(self, within: Callable[[str], bool] = lambda part: True) -> dict[str, float]:
        """Each kind's share of the time of these parts. Empty if they took no time."""
        whole = self.seconds(within=within)
        return {kind: self.seconds([kind], within) / whole for kind in KINDS} if whole else {}

    def memory_bound(self, within: Callable[[str], bool] = lambda part: True) -> float | None:
        """The share of time in memory-bound operations. None if these parts took no time."""
        shares = self.shares(within)
        return sum(shares[kind] for kind in MEMORY_BOUND) if shares else None


def profilers(names: Sequence[str] = ()) -> list[str]:
    """The engines with a profiler that run here, or those named. Raises InputError for an engine that has none."""
    able = profiling.PROFILERS
    here = [name for name in able if ENGINES[name].unavailable("cpu") is None]
    for name in names:
        if name not in here:
            reason = ENGINES[name].unavailable("cpu") if name in able else "it has no profiler"
            raise InputError(f"engine {name!r}: {reason}. Choose from: {', '.join(here)}")
    return list(names) or here


def time_breakdown(
    model: ModelFile, engine: str, batch_size: int, threads: int | None = None, name: str | None = None
) -> Breakdown:
    """Profile random images of the model's size, in fp32 on the CPU. Times are medians over several calls.

    Args:
        model: A classifier.
        engine: One of `profilers()`.
        batch_size: Images per batch.
        threads: As for `shvit bench`.
        name: Name of the model. Default: its architecture's.

    Raises:
        InputError: The engine has no profiler.
    """
    [engine] = profilers([engine])
    side = model.preprocess.image_size
    images = torch.randint(0, 256, (batch_size, 3, side, side), dtype=torch.uint8)
    calls = []
    for call in profiling.PROFILERS[engine](model, images, threads):
        times: dict[tuple[str, str], float] = defaultdict(float)
        for operation in call:
            times[operation.part.removeprefix("network."), _kind(operation)] += operation.seconds
        calls.append(times)
    keys = dict.fromkeys(key for times in calls for key in times)
    rows = (PartTime(part, kind, median(times[part, kind] for times in calls)) for part, kind in keys)
    return Breakdown(
        name or model.architecture.name, engine, batch_size, side, tuple(row for row in rows if row.seconds)
    )


def _kind(operation: profiling.Operation) -> str:
    if operation.overhead:
        return OTHER
    if operation.depthwise:
        return DEPTHWISE
    fused = set(map(operation_kind, operation.fused))
    return next((kind for kind in (FUSED, NORM, SOFTMAX) if kind in fused), operation_kind(operation.name))


def operation_kind(name: str) -> str:
    """The kind of an operation, by its name in any engine."""
    name = name.lower()
    return next((kind for kind, words in WORDS if any(word in name for word in words)), OTHER)
