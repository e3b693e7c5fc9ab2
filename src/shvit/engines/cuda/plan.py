"""What a run of the kernels is: launches on memory laid out ahead, and for each part the fastest of several ways."""

from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from math import ceil
from typing import Any

import torch
from torch import Tensor

from ..base import TooLarge

OPTIONS = {"enable_fp_fusion": True}
"""Of Triton, for all kernels: a multiplication and an addition are one instruction. Its default is about to change."""


@dataclass(frozen=True)
class Launch:
    """One kernel on fixed memory."""

    layer: str
    kernel: Any
    grid: tuple[int, ...]
    arguments: dict[str, Any]
    """By their names in kernels.py; and Triton's `num_warps` and `num_stages`."""
    operations: int
    """Of the layer as it is defined: two a multiply-accumulate, without what a kernel computes twice or in vain."""
    bytes: int
    """The least that must move: each map and weight once."""

    @classmethod
    def of(
        cls, layer: str, kernel: Any, grid: tuple[int, ...], operations: int, moved: int, /, **arguments: Any
    ) -> "Launch":
        """One that moves so many bytes; arguments by name."""
        return cls(layer, kernel, grid, arguments, operations, moved)

    def __call__(self) -> None:
        self.kernel[self.grid](**self.arguments, **OPTIONS)

    @property
    def key(self) -> tuple[Any, ...]:
        """Equal for launches that differ in layer, weights and memory alone."""
        fixed = (v.dtype if isinstance(v, Tensor) else v for v in self.arguments.values())
        return (self.kernel.__name__, self.grid, *fixed)

    def compile(self) -> Any:
        """Without running; what Triton made of it. Several threads may do so at once."""
        return self.kernel.warmup(grid=self.grid, **self.arguments, **OPTIONS)


Way = Sequence[Launch]


@dataclass(frozen=True)
class Part:
    """One part of the network and the ways to run it, which read the same maps and write the same."""

    ways: tuple[Way, ...]

    @property
    def key(self) -> tuple[Any, ...]:
        """Equal for parts that differ in layer, weights and memory alone."""
        return tuple(launch.key for way in self.ways for launch in way)


@dataclass(frozen=True)
class Map:
    """Channels of images: rows are (images * height * width, channels)."""

    rows: Tensor
    images: int
    height: int
    width: int

    @property
    def places(self) -> int:
        """Of one image."""
        return self.height * self.width

    @property
    def channels(self) -> int:
        return self.rows.shape[1]

    def part(self, start: int, stop: int) -> "Map":
        """The images from `start` to `stop`, in the same memory."""
        return Map(self.rows[start * self.places : stop * self.places], stop - start, self.height, self.width)


class Plan:
    """Parts in their order, and the memory that they share.

    Maps that are read no more leave their place to later ones: less to hold, and more of it stays in the GPU's cache.

    Args:
        processors: Multiprocessors to find work for.
    """

    def __init__(self, dtype: torch.dtype, device: str, processors: int) -> None:
        self.parts: list[Part] = []
        self.processors = processors
        self.largest = 0
        """Elements of its largest map."""
        self._dtype = dtype
        self._device = device
        self._free: list[Tensor] = []
        self._taken: dict[int, Tensor] = {}

    def take(self, images: int, height: int, width: int, channels: int, dtype: torch.dtype | None = None) -> Map:
        """A map, with whatever its memory held before."""
        dtype = dtype or self._dtype
        count = images * height * width * channels
        self.largest = max(self.largest, count)
        size = ceil(count * dtype.itemsize / 256) * 256
        block = min((block for block in self._free if len(block) >= size), key=len, default=None)
        if block is None:
            block = torch.empty(size, dtype=torch.uint8, device=self._device)
        self._free = [other for other in self._free if other is not block]
        rows = block[: count * dtype.itemsize].view(dtype).view(-1, channels)
        self._taken[rows.data_ptr()] = block
        return Map(rows, images, height, width)

    def take_like(self, x: Map, channels: int | None = None) -> Map:
        """As high and wide as `x`."""
        return self.take(x.images, x.height, x.width, channels or x.channels)

    def give(self, *maps: Map) -> None:
        """These are read by no launch that is planned from here on."""
        self._free += [self._taken.pop(one.rows.data_ptr()) for one in maps]

    def add(self, ways: Sequence[Way]) -> None:
        self.parts.append(Part(tuple(ways)))

    def tile(self, rows: int, most: int = 64) -> int:
        """The largest power of two, from 16 to `most` rows, that still gives each multiprocessor a tile."""
        tile = most
        while tile > 16 and ceil(rows / tile) < self.processors:
            tile //= 2
        return tile


class Choices:
    """Which way of each part is taken: the first, until `tune` has found a faster one."""

    def __init__(self) -> None:
        self._picked: dict[tuple[Any, ...], int] = {}

    def launches(self, plan: Plan) -> list[Launch]:
        return [launch for part in plan.parts for launch in part.ways[self._picked.get(part.key, 0)]]

    def tune(self, plan: Plan, seconds: Callable[[Way], float], shared_memory: int, pool: Executor) -> None:
        """Compile every way, and of those that fit keep the fastest; parts met before keep what was found for them.

        Args:
            seconds: How long a way takes.
            shared_memory: Bytes that a kernel may have.
            pool: Compiles.

        Raises:
            TooLarge: A part has no way that fits.
        """
        new = [part for part in plan.parts if part.key not in self._picked]
        compiled: dict[tuple[Any, ...], Future[Any]] = {}
        for launch in (launch for part in new for way in part.ways for launch in way):
            compiled[launch.key] = compiled.get(launch.key) or pool.submit(launch.compile)
        for part in plan.parts:  # in their order, so that each is timed on what those before it leave behind
            if part.key not in self._picked:
                fits = [
                    all(compiled[launch.key].result().metadata.shared <= shared_memory for launch in way)
                    for way in part.ways
                ]
                if not any(fits):
                    layer = part.ways[0][0].layer
                    raise TooLarge(f"the tiles of {layer} do not fit {shared_memory} bytes of shared memory")
                usable = [number for number, fit in enumerate(fits) if fit]
                times = [seconds(part.ways[number]) for number in usable] if len(usable) > 1 else [0.0]
                self._picked[part.key] = usable[times.index(min(times))]
            for launch in part.ways[self._picked[part.key]]:
                launch()
