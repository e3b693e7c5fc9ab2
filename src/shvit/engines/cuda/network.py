"""SHViT on the kernels: the launches for each layer, and the tile sizes to try for each launch."""

from itertools import zip_longest
from typing import Any

import torch
from jaxtyping import UInt8
from torch import Tensor, nn

from ...model.attention import SingleHeadAttention
from ...model.layers import FeedForward, InvertedResidual, LinearSqueezeExcite, Residual
from ...model.shvit import Block, Downsample, SHViT
from ..portable import Portable
from . import launches
from .layout import Put, halved, power, two_tiles
from .plan import Map, Plan

STEM_PIXELS = 64 * 224 * 224
"""Maximum number of pixels per launch of the stem. With this limit, the stem's maps (26 MB of pixels, and 13 MB after
two convolutions) stay in the cache of a large GPU. They are the largest maps of the network."""
WIDEST = {"depthwise": 256, "attention": 384, "nothing": 512}
"""For each operation that the kernel can compute before the feed-forward, the maximum number of channels for which a
tile of rows fits in registers and shared memory. Measured by benchmarks/compile_kernels.py."""
MAX_ELEMENTS = 2**31 - 1
"""Maximum number of elements of a map, since the kernels use 32-bit indices."""


class UnsupportedNetwork(Exception):
    """The kernels cannot run this network; the message gives the reason."""


class KernelNetwork:
    """A network's weights on a device, in fp16 or bf16. `plan` plans the launches for any number and size of images.

    Raises:
        UnsupportedNetwork: The network is not an SHViT for three channels, or its mixers are not those of the paper.
    """

    def __init__(self, portable: Portable, dtype: torch.dtype, device: str) -> None:
        network = _supported(portable.network)
        self._dtype = dtype
        self._device = device
        put = Put(dtype, device)
        first, second, third, fourth = [module for module in network.stem if isinstance(module, nn.Conv2d)]
        self._center = launches.Center(put, portable.mean)
        self._stem = launches.Stem(put, portable.mean, first, second)
        self._third = launches.Convolve(put, "stem 3", third, relu=True)
        self._fourth = launches.Convolve(put, "stem 4", fourth, relu=False)
        self._layers: list[BlockLayers | DownsampleLayers] = []
        for number, stage in enumerate(network.stages, 1):
            for module in stage.modules():
                if isinstance(module, Downsample):
                    self._layers.append(DownsampleLayers(put, f"downsample {number - 1}", module))
                elif isinstance(module, Block):
                    self._layers.append(BlockLayers(put, f"stage {number}", module))
        assert isinstance(network.head, nn.Linear)
        self._head = launches.ClassifierLaunch(put, network.head)

    def plan(self, images: UInt8[Tensor, "b 3 h w"], processors: int) -> tuple[Plan, Tensor]:
        """The launches for these images, and the logits (fp32) that they compute. The images may have any strides."""
        plan = Plan(self._dtype, self._device, processors)
        x = self._plan_stem(plan, images)
        for layer in self._layers:
            x = layer(plan, x)
        logits = plan.take(x.images, 1, 1, self._head.classes, torch.float32)
        small = x.images < 16 * processors
        ways = [_tiles(BM=16, BN=width, BK=64, num_warps=4) for width in ((32, 64) if small else (64, 128))]
        plan.add([[self._head(x, logits, tiles)] for tiles in ways])
        return plan, logits.rows

    def most_images(self, height: int, width: int) -> int:
        """How many images of this size fit into one plan."""
        one = torch.empty(1, 3, height, width, dtype=torch.uint8, device=self._device)
        plan, _ = self.plan(one, processors=1)
        return max(1, MAX_ELEMENTS // plan.largest)

    def _plan_stem(self, plan: Plan, images: Tensor) -> Map:
        """Plan the stem. Three convolutions run on some images at a time, then the fourth on all images at once."""
        count, _, height, width = images.shape
        sides = [(height, width)]
        for _ in range(4):
            sides.append((halved(sides[-1][0]), halved(sides[-1][1])))
        y = plan.take(count, *sides[3], self._third.width)
        together = max(1, STEM_PIXELS // (height * width))
        for start in range(0, count, together):
            some = images[start : start + together]
            pixels = plan.take(len(some), 2 * sides[1][0] + 2, 2 * sides[1][1] + 2, 4)
            x = plan.take(len(some), *sides[2], self._stem.width)
            plan.add([[self._center(some, pixels, _tiles(BLOCK=256, num_warps=4))]])
            tiles = [_tiles(BLOCK=rows, num_warps=warps) for rows, warps in ((128, 4), (64, 4), (128, 8))]
            plan.add([[self._stem(pixels, sides[0], x, way)] for way in tiles])
            _add_product(plan, self._third, x, y.part(start, start + len(some)))
            plan.give(pixels, x)
        out = plan.take(count, *sides[4], self._fourth.width)
        _add_product(plan, self._fourth, y, out)
        plan.give(y)
        return out


class BlockLayers:
    """Depthwise convolution, attention (in stages that have it), then feed-forward."""

    def __init__(self, put: Put, name: str, block: Block) -> None:
        self._local = launches.Depthwise(put, f"{name} depthwise", block.local)
        attention: Any = block.mixer.branch if isinstance(block.mixer, Residual) else None
        self._attend = launches.Attend(put, f"{name} attention", self._local, attention) if attention else None
        self._feed_forward = FeedForwardLayers(put, name, block.feed_forward, attention)

    def __call__(self, plan: Plan, x: Map) -> Map:
        if self._attend is None:
            return self._feed_forward.after_local(plan, x, self._local)
        y, mixed = plan.take_like(x), plan.take_like(x, self._attend.width)
        plan.add([[self._attend(x, y, mixed, tiles)] for tiles in _attention_tiles(plan, x, mixed.channels)])
        plan.give(x)
        return self._feed_forward.after_attention(plan, y, mixed)


class DownsampleLayers:
    """An inverted residual that halves the map, with a depthwise convolution and a feed-forward before and after it."""

    def __init__(self, put: Put, name: str, module: Downsample) -> None:
        reduce: InvertedResidual = module.reduce
        assert isinstance(reduce.squeeze_excite, LinearSqueezeExcite)
        self._local_before = launches.Depthwise(put, f"{name} depthwise before", module.local_before)
        self._before = FeedForwardLayers(put, f"{name} before", module.feed_forward_before)
        self._expand = launches.Project(put, f"{name} expand", reduce.expand, relu=True)
        self._depthwise = launches.Depthwise(put, f"{name} depthwise", reduce.depthwise, relu=True)
        self._squeeze = launches.Project(put, f"{name} squeeze", reduce.squeeze_excite.reduce, relu=True)
        self._excite = launches.Project(put, f"{name} excite", reduce.squeeze_excite.expand, sigmoid=True)
        self._project = launches.Project(put, f"{name} project", reduce.project)
        self._local_after = launches.Depthwise(put, f"{name} depthwise after", module.local_after)
        self._after = FeedForwardLayers(put, f"{name} after", module.feed_forward_after)

    def __call__(self, plan: Plan, x: Map) -> Map:
        x = self._before.after_local(plan, x, self._local_before)
        wide = plan.take_like(x, self._expand.width)
        _add_product(plan, self._expand, x, wide)
        plan.give(x)
        narrow = plan.take(x.images, halved(x.height), halved(x.width), wide.channels)
        mean, gate = (plan.take(x.images, 1, 1, wide.channels) for _ in range(2))
        plan.add([[self._depthwise(wide, narrow, tiles, mean)] for tiles in _depthwise_tiles(plan, narrow)])
        squeezed = plan.take(x.images, 1, 1, self._squeeze.width)
        _add_product(plan, self._squeeze, mean, squeezed)
        _add_product(plan, self._excite, squeezed, gate)
        plan.give(wide, mean, squeezed)
        out = plan.take_like(narrow, self._project.width)
        _add_product(plan, self._project, narrow, out, gate=gate)
        plan.give(narrow, gate)
        return self._after.after_local(plan, out, self._local_after)


class FeedForwardLayers:
    """A residual feed-forward and the layer before it, in one to three launches."""

    def __init__(self, put: Put, name: str, module: nn.Module, attention: SingleHeadAttention | None = None) -> None:
        assert isinstance(module, Residual)
        branch = module.branch
        assert isinstance(branch, FeedForward)
        blend, attended = (attention.project, attention.attended) if attention else (None, 0)
        layer = f"{name} feed-forward"
        self._fused = launches.FusedFeedForward(put, layer, branch, blend, attended)
        self._blend = launches.Project(put, f"{name} projection", blend, attended=attended) if blend else None
        self._expand = launches.Project(put, f"{layer}, expand", branch.expand, relu=True)
        self._shrink = launches.Project(put, f"{layer}, shrink", branch.project)

    def after_local(self, plan: Plan, x: Map, local: launches.Depthwise) -> Map:
        """Plan the depthwise convolution of `x`, and the feed-forward on its output."""
        out, y = plan.take_like(x), plan.take_like(x)
        before = [local(x, y, tiles) for tiles in _depthwise_tiles(plan, x)]
        at_once = [[self._fused(plan, x, out, tiles, local=local)] for tiles in self._tiles(plan, x, "depthwise")]
        self._add(plan, at_once, before, y, out)
        plan.give(x, y)
        return out

    def after_attention(self, plan: Plan, x: Map, mixed: Map) -> Map:
        """Plan attention's projection `y = x + projection(mixed, rest of x)`, and the feed-forward on `y`."""
        assert self._blend is not None
        out, y = plan.take_like(x), plan.take_like(x)
        matrix = _matrix_tiles(plan, len(x.rows), x.channels, x.channels)
        before = [self._blend(x, y, tiles, mixed=mixed, residual=x) for tiles in matrix]
        at_once = [[self._fused(plan, x, out, tiles, mixed=mixed)] for tiles in self._tiles(plan, x, "attention")]
        self._add(plan, at_once, before, y, out)
        plan.give(x, mixed, y)
        return out

    def _add(self, plan: Plan, at_once: list[Any], before: list[Any], y: Map, out: Map) -> None:
        """Add the ways to run the feed-forward and the layer before it in one, two and three launches."""
        in_two = [[before[0], self._fused(plan, y, out, tiles)] for tiles in self._tiles(plan, y, "nothing")]
        hidden = plan.take_like(y, self._expand.width)
        rows = len(y.rows)
        wide = _matrix_tiles(plan, rows, hidden.channels, y.channels)
        narrow = _matrix_tiles(plan, rows, y.channels, hidden.channels)
        in_three = [
            [
                before[min(number, len(before) - 1)],
                self._expand(y, hidden, first),
                self._shrink(hidden, out, second, residual=y),
            ]
            for number, (first, second) in enumerate(zip_longest(wide, narrow, fillvalue=narrow[-1]))
        ]
        plan.give(hidden)
        plan.add([*at_once, *in_two, *in_three])

    def _tiles(self, plan: Plan, x: Map, before: str) -> list[launches.Tiles]:
        """Tiles for the kernel that keeps the hidden map on chip; empty if `x` has too many channels for it."""
        across = sum(two_tiles(x.channels))
        if across > WIDEST[before]:
            return []
        rows = plan.tile(len(x.rows))
        ways = [(64, 64 if across <= 320 else 32, 8)]
        if rows < 64:
            ways.insert(0, (rows, 64 if across <= 256 else 32, 4 if across <= 256 else 8))
        elif across <= 256 and before == "nothing":
            ways.append((128, 64 if across <= 128 else 32, 8))
        return [_tiles(BM=rows, BH=hidden, BK=32, num_warps=warps, num_stages=2) for rows, hidden, warps in ways]


def _add_product(plan: Plan, layer: launches.Convolve | launches.Project, x: Map, out: Map, **more: Map) -> None:
    tiles = _matrix_tiles(plan, len(out.rows), out.channels, x.channels)
    plan.add([[layer(x, out, way, **more)] for way in tiles])


def _matrix_tiles(plan: Plan, rows: int, columns: int, inner: int) -> list[launches.Tiles]:
    """Tiles for products of matrices (rows, inner) and (inner, columns)."""
    deep = 64 if inner > 32 else 32
    if rows * columns >= 128 * 128 * plan.processors:
        return [
            _tiles(BM=128, BN=128 if columns > 64 else 64, BK=deep, num_warps=8, num_stages=3),
            _tiles(BM=128, BN=64, BK=deep, num_warps=4, num_stages=4),
            _tiles(BM=64, BN=64, BK=deep, num_warps=4, num_stages=2),  # fits in 99 KB of shared memory
        ]
    side = 64
    while side > 16 and (rows / side) * (columns / side) < plan.processors:
        side //= 2
    return [
        _tiles(BM=side, BN=side, BK=max(deep, 64), num_warps=4, num_stages=4),
        _tiles(BM=side, BN=max(16, side // 2), BK=128, num_warps=4, num_stages=3),
    ]


def _depthwise_tiles(plan: Plan, out: Map) -> list[launches.Tiles]:
    rows = min(64, power(out.positions))
    if out.images * out.channels < 64 * plan.processors:
        return [_tiles(BM=rows, BC=16, num_warps=4)]
    return [_tiles(BM=rows, BC=64, num_warps=8), _tiles(BM=rows, BC=32, num_warps=4)]


def _attention_tiles(plan: Plan, x: Map, attended: int) -> list[launches.Tiles]:
    """A tile has as many images as fit in 64 rows, but not so many that multiprocessors stay idle. An image with 65 to
    128 rows has a tile for itself. A larger image is split into tiles of 64 rows.
    """
    together = max(1, min(64 // x.positions, x.images // plan.processors))
    rows = together * x.positions
    tile = power(rows) if rows <= 128 else 64
    return [
        _tiles(TOGETHER=together, TILE=tile, BC=channels, num_warps=warps)
        for channels, warps in ((64, 4 if tile * power(attended) <= 64 * 64 else 8), (128, 8))
    ]


def _tiles(**sides: int) -> launches.Tiles:
    return sides


def _supported(network: nn.Module) -> SHViT:
    """Return the network. Raises UnsupportedNetwork if the kernels cannot run it."""
    if not isinstance(network, SHViT):
        raise UnsupportedNetwork(f"they run SHViT, not {type(network).__name__}")
    if len(network.maps) != 3 or network.maps[0][1] != 16:
        raise UnsupportedNetwork("they need three stages after a stem of stride 16")
    if network.in_channels != 3:
        raise UnsupportedNetwork(f"they take images of 3 channels, not of {network.in_channels}")
    for block in network.modules():
        if isinstance(block, Block) and isinstance(block.mixer, Residual):
            mixer = block.mixer.branch
            if not isinstance(mixer, SingleHeadAttention) or mixer.norm.affine:
                raise UnsupportedNetwork(f"they need SingleHeadAttention as token mixer, not {type(mixer).__name__}")
    return network
