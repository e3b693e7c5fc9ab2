"""Measure how much time a network spends on each kind of operation, in each of its modules.

Source: Yun and Ro, "SHViT" (CVPR 2024), where multi-head layers spend most of their time on memory-bound operations.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

import torch
from torch import nn

from ..engines import ENGINES
from ..engines import operations as profiling
from ..errors import InputError
from ..modelfile import ModelFile
from .heads import attention_layers

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
"""Kinds of operations. Matrix products include dense convolutions. Fused attention combines matrix products and softmax
in one kernel. The last kind is overhead of the engine, mostly dispatch."""
MEMORY_BOUND = (DEPTHWISE, NORM, MOVE, SOFTMAX, ELEMENTWISE)
"""Kinds of operations that do few FLOPs per byte of memory traffic."""

KIND_WORDS: Sequence[tuple[str, tuple[str, ...]]] = (
    (ELEMENTWISE, ("convert", "upsample")),  # first, since names with these words can contain "conv" or "linear"
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
"""For each kind, substrings of operation names. An operation belongs to the first kind with a matching substring."""


@dataclass(frozen=True)
class PartTime:
    """Time of one kind of operation in one module, per call of the network."""

    part: str
    """Name of the innermost module, as in `named_modules`; `network` for the network's own `forward`; empty for the
    preprocessing of pixels. If an engine fuses operations of several modules, all the time counts for one of them."""
    kind: str
    seconds: float


@dataclass(frozen=True)
class Breakdown:
    """How one network spends its time in one engine."""

    model: str
    """Name of the model, as given by the user."""
    engine: str
    batch_size: int
    image_size: int
    spent: tuple[PartTime, ...]
    attention_modules: tuple[str, ...] = ()
    """Names of the attention layers, as in `named_modules`."""

    @property
    def attention(self) -> "Breakdown":
        """The same breakdown, restricted to the attention layers."""
        prefixes = tuple(f"{name}." for name in self.attention_modules)
        return replace(self, spent=tuple(row for row in self.spent if f"{row.part}.".startswith(prefixes)))

    def seconds(self, kinds: Sequence[str] = KINDS) -> float:
        """Seconds per call spent in operations of these kinds. Default: all kinds."""
        return sum(row.seconds for row in self.spent if row.kind in kinds)

    def stage_seconds(self) -> dict[str, float]:
        """Seconds per call in each part of SHViT: preprocessing, stem, stages and head."""
        seconds: dict[str, float] = defaultdict(float)
        for row in self.spent:
            seconds[_stage(row.part)] += row.seconds
        return seconds

    def shares(self) -> dict[str, float]:
        """Share of the time by kind of operation, from 0 to 1. Empty if no time was spent."""
        whole = self.seconds()
        return {kind: self.seconds([kind]) / whole for kind in KINDS} if whole else {}

    def memory_bound(self) -> float | None:
        """Share of the time in memory-bound operations, from 0 to 1. None if no time was spent."""
        shares = self.shares()
        return sum(shares[kind] for kind in MEMORY_BOUND) if shares else None

    def to_dict(self) -> dict[str, Any]:
        """Convert to JSON data, without the model's name."""
        return {
            "engine": self.engine,
            "batch_size": self.batch_size,
            "image_size": self.image_size,
            "seconds": self.seconds(),
            "shares": self.shares(),
            "memory_bound": self.memory_bound(),
            "stage_seconds": self.stage_seconds(),
            "attention_seconds": self.attention.seconds(),
            "attention_shares": self.attention.shares(),
            "attention_memory_bound": self.attention.memory_bound(),
        }


def _stage(part: str) -> str:
    first, _, rest = part.partition(".")
    if first == "stages":
        return f"stage {int(rest.partition('.')[0]) + 1}"
    if part == "network":  # global average pooling
        return "head"
    return first if first in ("stem", "head") else "pixels to floats"


def pick_profilers(names: Sequence[str] = ()) -> list[str]:
    """Return `names`; by default, all engines with a profiler that run here. Raises InputError for other engines."""
    able = profiling.PROFILERS
    here = [name for name in able if ENGINES[name].unavailable("cpu") is None]
    for name in names:
        if name not in here:
            reason = ENGINES[name].unavailable("cpu") if name in able else "it has no profiler"
            raise InputError(f"cannot profile with engine {name!r}: {reason}. Choose from: {', '.join(here)}")
    return list(names) or here


def time_breakdown(
    model: ModelFile, engine: str, batch_size: int, threads: int | None = None, name: str | None = None
) -> Breakdown:
    """Profile a classifier on random images of its input size, in fp32 on the CPU. Times are medians of several calls.

    `threads` is the number of CPU threads; None lets the engine choose. `name` defaults to that of the architecture.

    Raises:
        InputError: The engine has no profiler, or it cannot run here.
    """
    [engine] = pick_profilers([engine])
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
    spent = tuple(row for row in rows if row.seconds)
    return Breakdown(name or model.architecture.name, engine, batch_size, side, spent, _attention_modules(model.model))


def _attention_modules(network: nn.Module) -> tuple[str, ...]:
    try:
        attention = {layer.module for layer in attention_layers(network)}
    except InputError:  # the network has no attention layers
        return ()
    return tuple(name for name, module in network.named_modules() if module in attention)


def _kind(operation: profiling.Operation) -> str:
    if operation.overhead:
        return OTHER
    if operation.depthwise:
        return DEPTHWISE
    fused = set(map(operation_kind, operation.fused))
    return next((kind for kind in (FUSED, NORM, SOFTMAX) if kind in fused), operation_kind(operation.name))


def operation_kind(name: str) -> str:
    """The kind of an operation, derived from the name that an engine gives it."""
    name = name.lower()
    return next((kind for kind, words in KIND_WORDS if any(word in name for word in words)), OTHER)
