"""The plan of a run: kernel launches and their memory. Each part of the network runs in the fastest of several ways."""

from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from math import ceil
from typing import Any

import torch
from torch import Tensor

OPTIONS = {"enable_fp_fusion": True}
"""Triton's options for all kernels: fuse multiplications and additions. Set here, since Triton's default may change."""


class TooLarge(Exception):
    """A part of the network has no kernel that fits the device; the message names the part."""


@dataclass(frozen=True)
class Launch:
    """One launch of a kernel, with fixed arguments."""

    layer: str
    kernel: Any
    grid: tuple[int, ...]
    arguments: dict[str, Any]
    """Arguments by name, as in kernels.py, with Triton's `num_warps` and `num_stages`."""
    operations: int
    """Operations by the layer's definition, two per multiply-accumulate. The kernel may need more."""
    bytes: int
    """Minimum memory traffic: each map and weight is moved once."""

    @classmethod
    def of(
        cls, layer: str, kernel: Any, grid: tuple[int, ...], operations: int, moved: int, /, **arguments: Any
    ) -> "Launch":
        """Create a launch with the kernel's arguments by name. The launch moves its maps and `moved` further bytes."""
        maps = {one.rows.data_ptr(): one.rows.nbytes for one in arguments.values() if isinstance(one, Map)}
        tensors = {name: one.rows if isinstance(one, Map) else one for name, one in arguments.items()}
        return cls(layer, kernel, grid, tensors, operations, moved + sum(maps.values()))

    def __call__(self) -> None:
        self.kernel[self.grid](**self.arguments, **OPTIONS)

    @property
    def key(self) -> tuple[Any, ...]:
        """Equal for launches that differ only in layer, weights and memory."""
        fixed = (v.dtype if isinstance(v, Tensor) else v for v in self.arguments.values())
        return (self.kernel.__name__, self.grid, *fixed)

    def compile(self) -> Any:
        """Compile the kernel without running it. Several threads may do this at once."""
        return self.kernel.warmup(grid=self.grid, **self.arguments, **OPTIONS)


Way = Sequence[Launch]
"""The launches of one way to compute a part of the network."""


@dataclass(frozen=True)
class Part:
    """A part of the network, and the ways to run it. All ways read and write the same maps."""

    ways: tuple[Way, ...]

    @property
    def key(self) -> tuple[Any, ...]:
        """Equal for parts that differ only in layer, weights and memory."""
        return tuple(launch.key for way in self.ways for launch in way)


@dataclass(frozen=True)
class Map:
    """A feature map: its rows are (images * height * width, channels)."""

    rows: Tensor
    images: int
    height: int
    width: int

    @property
    def positions(self) -> int:
        """Positions of one image."""
        return self.height * self.width

    @property
    def channels(self) -> int:
        """Channels in memory."""
        return self.rows.shape[1]

    def part(self, start: int, stop: int) -> "Map":
        """The images from `start` to `stop`, in the same memory."""
        return Map(self.rows[start * self.positions : stop * self.positions], stop - start, self.height, self.width)


class Plan:
    """The parts in order, and the memory they share.

    Later maps reuse the memory of maps that are no longer read, so that more data stays in the GPU's cache.

    Args:
        processors: Number of multiprocessors to keep busy.
    """

    def __init__(self, dtype: torch.dtype, device: str, processors: int) -> None:
        self.parts: list[Part] = []
        self.processors = processors
        self.largest = 0
        """Number of elements of the largest map."""
        self._dtype = dtype
        self._device = device
        self._free: list[Tensor] = []
        self._taken: dict[int, Tensor] = {}

    def take(self, images: int, height: int, width: int, channels: int, dtype: torch.dtype | None = None) -> Map:
        """Allocate a map without initializing it."""
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
        """Allocate a map with the height and width of `x`."""
        return self.take(x.images, x.height, x.width, channels or x.channels)

    def give(self, *maps: Map) -> None:
        """Free maps that no later launch reads."""
        self._free += [self._taken.pop(one.rows.data_ptr()) for one in maps]

    def add(self, ways: Sequence[Way]) -> None:
        """Append a part with these ways to run it."""
        self.parts.append(Part(tuple(ways)))

    def tile(self, rows: int, most: int = 64) -> int:
        """The largest power of two up to `most` that gives each multiprocessor a tile of rows; 16 if none does."""
        tile = most
        while tile > 16 and ceil(rows / tile) < self.processors:
            tile //= 2
        return tile


class Choices:
    """The way in which each part runs: the first one, until `tune` finds a faster one."""

    def __init__(self) -> None:
        self._picked: dict[tuple[Any, ...], int] = {}

    def launches(self, plan: Plan) -> list[Launch]:
        """The launches of the chosen ways, in order."""
        return [launch for part in plan.parts for launch in part.ways[self._picked.get(part.key, 0)]]

    def tune(self, plan: Plan, seconds: Callable[[Way], float], shared_memory: int, pool: Executor) -> None:
        """Compile every way of each new part in the pool, and choose the fastest way, as timed by `seconds`.

        Raises:
            TooLarge: Every way of a part needs more than `shared_memory` bytes of shared memory.
        """
        new = [part for part in plan.parts if part.key not in self._picked]
        compiled: dict[tuple[Any, ...], Future[Any]] = {}
        for launch in (launch for part in new for way in part.ways for launch in way):
            compiled[launch.key] = compiled.get(launch.key) or pool.submit(launch.compile)
        for part in plan.parts:  # in order, so that each is timed on the outputs of the previous parts
            if part.key not in self._picked:
                usable = [
                    number
                    for number, way in enumerate(part.ways)
                    if all(compiled[launch.key].result().metadata.shared <= shared_memory for launch in way)
                ]
                if not usable:
                    layer = part.ways[0][0].layer
                    raise TooLarge(f"the tiles of {layer} do not fit in {shared_memory} bytes of shared memory")
                times = [seconds(part.ways[number]) for number in usable] if len(usable) > 1 else [0.0]
                self._picked[part.key] = usable[times.index(min(times))]
            for launch in part.ways[self._picked[part.key]]:
                launch()
