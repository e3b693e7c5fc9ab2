"""One class per kernel. Each class holds the weights in the layout of its kernel, and creates the kernel's launches."""

from math import ceil, sqrt
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import pad

from ...model.attention import SingleHeadAttention
from ...model.layers import FeedForward
from . import kernels
from .layout import Put, blocks, halved, memory_width, power, two_tiles
from .plan import Launch, Map, Plan

Tiles = dict[str, int]
"""Sides of a kernel's tiles, named as in kernels.py, with Triton's `num_warps` and `num_stages`."""


class Center:
    """Prepares pixels for the stem: subtracts the rounded mean, and adds a fourth channel and a border."""

    def __init__(self, put: Put, mean: Float[Tensor, "1 3 1 1"]) -> None:
        whole = mean.flatten().round()
        self._weights = {"offset": put.vector(whole, 4), "padding": put.vector(mean.flatten() - whole, 4)}

    def __call__(self, images: Tensor, out: Map, tiles: Tiles) -> Launch:
        strides = ("image_stride", "channel_stride", "line_stride", "column_stride")
        return Launch.of(
            "stem, pixels",
            kernels.center,
            (ceil(len(out.rows) / tiles["BLOCK"]),),
            0,
            images.numel(),
            images=images,
            **dict(zip(strides, images.stride(), strict=True)),
            **self._weights,
            out=out,
            positions=len(out.rows),
            H=images.shape[2],
            W=images.shape[3],
            **tiles,
        )


class Stem:
    """The first two convolutions, on the output of `Center`."""

    def __init__(self, put: Put, mean: Float[Tensor, "1 3 1 1"], first: nn.Conv2d, second: nn.Conv2d) -> None:
        self.width = memory_width(second.out_channels)
        self._sides = {"C1": power(first.out_channels), "C2": self.width, "N": power(self.width)}
        c1, n = self._sides["C1"], self._sides["N"]
        over = mean.flatten() - mean.flatten().round()
        by_tap = first.weight.permute(2, 3, 1, 0)  # line, column, channel, out
        shift = _bias(first) - (by_tap * over[:, None]).sum((0, 1, 2))
        patch = pad(by_tap, (0, 0, 0, 1, 0, 1, 0, 1)).flatten(0, 2)
        self._weights = {
            "first": put.matrix(patch, kernels.PATCH, c1),
            "first_bias": put.vector(shift, c1),
            "second": put.matrix(_by_tap(second), c1, n),
            "second_bias": put.vector(_bias(second), n),
        }
        self._macs = first.weight.numel(), second.weight.numel()

    def __call__(self, x: Map, size: tuple[int, int], out: Map, tiles: Tiles) -> Launch:
        """`size` is the images' height and width."""
        height, width = size
        macs = x.images * halved(height) * halved(width) * self._macs[0] + len(out.rows) * self._macs[1]
        return Launch.of(
            "stem 1+2",
            kernels.stem,
            (ceil(len(out.rows) / tiles["BLOCK"]),),
            2 * macs,
            2 * sum(self._macs),
            x=x,
            **self._weights,
            out=out,
            positions=len(out.rows),
            H=height,
            W=width,
            **self._sides,
            **tiles,
        )


class Convolve:
    """A 3x3 convolution of stride 2."""

    def __init__(self, put: Put, layer: str, conv: nn.Conv2d, relu: bool) -> None:
        self.layer = layer
        self.width = memory_width(conv.out_channels)
        self._weights = put.product(_by_tap(conv), _bias(conv), self.width)
        self._relu = relu
        self._macs = conv.weight.numel()

    def __call__(self, x: Map, out: Map, tiles: Tiles) -> Launch:
        _, rows, columns = self._weights["weight"].shape
        return Launch.of(
            self.layer,
            kernels.convolve,
            (ceil(self.width / tiles["BN"]), ceil(len(out.rows) / tiles["BM"])),
            2 * self._macs * len(out.rows),
            2 * self._macs,
            x=x,
            **self._weights,
            out=out,
            positions=len(out.rows),
            H=x.height,
            W=x.width,
            K=x.channels,
            N=self.width,
            KP=rows,
            NP=columns,
            RELU=self._relu,
            **tiles,
        )


class Project:
    """A 1x1 convolution or linear layer, whose first `attended` input channels (default 0) come from attention."""

    def __init__(
        self, put: Put, layer: str, module: nn.Module, relu: bool = False, sigmoid: bool = False, attended: int = 0
    ) -> None:
        assert isinstance(module, nn.Conv2d | nn.Linear), "the network is not folded"
        matrix = module.weight.flatten(1).T
        self.layer = layer
        self.width = memory_width(matrix.shape[1])
        self._weights = put.product(matrix, _bias(module), self.width)
        self._acts = {"RELU": relu, "SIGMOID": sigmoid}
        self._attended = attended
        self._macs = matrix.numel()

    def __call__(
        self,
        x: Map,
        out: Map,
        tiles: Tiles,
        mixed: Map | None = None,
        gate: Map | None = None,
        residual: Map | None = None,
    ) -> Launch:
        return Launch.of(
            self.layer,
            kernels.project,
            (ceil(self.width / tiles["BN"]), ceil(len(x.rows) / tiles["BM"])),
            2 * self._macs * len(x.rows),
            2 * self._macs,
            x=x,
            mixed=mixed,
            gate=gate,
            residual=residual,
            out=out,
            **self._weights,
            rows=len(x.rows),
            K=x.channels,
            N=self.width,
            NP=self._weights["weight"].shape[1],
            ATTENDED=self._attended,
            MIXED=mixed.channels if mixed else 0,
            POSITIONS=x.positions,
            **self._acts,
            **tiles,
        )


class FusedFeedForward:
    """A residual feed-forward in one kernel, optionally with the attention projection or depthwise layer before it."""

    def __init__(self, put: Put, layer: str, branch: FeedForward, blend: nn.Module | None, attended: int = 0) -> None:
        expand, shrink = _folded(branch.expand), _folded(branch.project)
        self.layer = layer
        self.width = memory_width(expand.in_channels)
        self._sides = two_tiles(self.width)
        self._attended = attended
        across, hidden = sum(self._sides), ceil(expand.out_channels / 64) * 64
        self._hidden = hidden
        self._weights = {
            "expand": put.matrix(expand.weight[:, :, 0, 0].T, across, hidden),
            "expand_bias": put.vector(_bias(expand), hidden),
            "shrink": put.matrix(shrink.weight[:, :, 0, 0].T, hidden, across),
            "shrink_bias": put.vector(_bias(shrink), across),
        }
        self._blend: dict[str, Any] = {"blend": None, "blend_bias": None}
        self._macs = [expand.weight.numel() + shrink.weight.numel(), 0]
        if blend:
            conv = _folded(blend)
            self._blend["blend"] = put.matrix(conv.weight[:, :, 0, 0].T, blocks(conv.in_channels), across)
            self._blend["blend_bias"] = put.vector(_bias(conv), across)
            self._macs[1] = conv.weight.numel()

    def splits(self, plan: Plan, rows: int, tiles: Tiles) -> int:
        """Number of programs that share a tile of rows. It balances the time for reading weights with the time for the
        final sum, and is at most the number of multiprocessors per tile.
        """
        programs = ceil(rows / tiles["BM"])
        balanced = sqrt(2 * self._macs[0] / (4 * tiles["BM"] * sum(self._sides)))
        return max(1, min(round(balanced), plan.processors // programs, self._hidden // tiles["BH"]))

    def __call__(
        self, plan: Plan, x: Map, out: Map, tiles: Tiles, mixed: Map | None = None, local: "Depthwise | None" = None
    ) -> Launch:
        programs, splits = ceil(len(x.rows) / tiles["BM"]), self.splits(plan, len(x.rows), tiles)
        partial = arrived = None
        if splits > 1:
            partial = plan.take(splits, programs, tiles["BM"], sum(self._sides), torch.float32)
            plan.give(partial)  # later launches may reuse the memory
            arrived = torch.zeros(programs, dtype=torch.int32, device=x.rows.device)
        macs, layer = self._macs[0], self.layer
        if mixed:
            macs, layer = macs + self._macs[1], f"{layer}, projection before"
        if local:
            macs, layer = macs + local.weight.numel(), f"{layer}, depthwise before"
        return Launch.of(
            layer,
            kernels.feed_forward,
            (programs, splits),
            2 * macs * len(x.rows),
            2 * macs,
            x=x,
            local=local.weight if local else None,
            local_bias=local.bias if local else None,
            mixed=mixed,
            **(self._blend if mixed else dict.fromkeys(self._blend)),
            **self._weights,
            out=out,
            partial=partial.rows if partial else None,
            arrived=arrived,
            rows=len(x.rows),
            H=x.height,
            W=x.width,
            C=self.width,
            C0=self._sides[0],
            C1=self._sides[1],
            ATTENDED=self._attended,
            MIXED=mixed.channels if mixed else 0,
            HIDDEN=self._hidden,
            SPLITS=splits,
            **tiles,
        )


class Depthwise:
    """A depthwise 3x3 convolution."""

    def __init__(self, put: Put, layer: str, module: nn.Module, relu: bool = False) -> None:
        conv = _folded(module)
        self.layer = layer
        self.width = memory_width(conv.out_channels)
        self.weight = put.vector(conv.weight.flatten(1).T, self.width)
        self.bias = put.vector(_bias(conv), self.width)
        self.stride = conv.stride[0]
        self._relu = relu

    def __call__(self, x: Map, out: Map, tiles: Tiles, mean: Map | None = None) -> Launch:
        return Launch.of(
            self.layer,
            kernels.depthwise,
            (x.images, ceil(self.width / tiles["BC"])),
            18 * out.rows.numel(),
            self.weight.nbytes,
            x=x,
            weight=self.weight,
            bias=self.bias,
            out=out,
            mean=mean,
            H=x.height,
            W=x.width,
            C=self.width,
            STRIDE=self.stride,
            RELU=self._relu,
            **tiles,
        )


class Attend:
    """A depthwise convolution, then single-head attention."""

    def __init__(self, put: Put, layer: str, local: Depthwise, attention: SingleHeadAttention) -> None:
        self.layer = layer
        self.width = memory_width(attention.attended)
        self._local = local
        self._attended = attention.attended
        across, narrow = power(attention.attended), attention.QUERY_CHANNELS
        qkv = _folded(attention.qkv)
        query, key, value = qkv.weight[:, :, 0, 0].T.split([narrow, narrow, attention.attended], 1)
        query_bias, _, value_bias = _bias(qkv).split([narrow, narrow, attention.attended])
        self._weights = {
            "local": local.weight,
            "local_bias": local.bias,
            "query": put.matrix(query, across, narrow),
            "query_bias": put.vector(query_bias, narrow),
            "key": put.matrix(key, across, narrow),  # without a bias: see SingleHeadAttention.fold
            "value": put.matrix(value, across, across),
            "value_bias": put.vector(value_bias, across),
        }
        self._sides = {"ATTENDED": self._attended, "P": across, "MIXED": self.width, "EPS": attention.norm.eps}
        self._macs = qkv.weight.numel()

    def __call__(self, x: Map, out: Map, mixed: Map, tiles: Tiles) -> Launch:
        """`tiles` also contains `TOGETHER`, the number of images in a group."""
        groups = ceil(x.images / tiles["TOGETHER"])
        parts = ceil(tiles["TOGETHER"] * x.positions / tiles["TILE"])
        each = self._macs + x.positions * (16 + self._attended) + self._local.weight.numel()
        return Launch.of(
            self.layer,
            kernels.attend,
            (groups * parts, 1 + ceil(out.channels / tiles["BC"])),
            2 * each * len(x.rows),
            2 * self._macs,
            x=x,
            **self._weights,
            out=out,
            mixed=mixed,
            images=x.images,
            H=x.height,
            W=x.width,
            C=out.channels,
            **self._sides,
            **tiles,
        )


class ClassifierLaunch:
    """Mean over positions, then the classifier."""

    def __init__(self, put: Put, linear: nn.Linear) -> None:
        self.classes = linear.out_features
        self._weights = put.product(linear.weight.T, linear.bias, self.classes)
        self._macs = linear.weight.numel()

    def __call__(self, x: Map, out: Map, tiles: Tiles) -> Launch:
        return Launch.of(
            "classifier",
            kernels.classify,
            (ceil(self.classes / tiles["BN"]), ceil(x.images / tiles["BM"])),
            2 * self._macs * x.images,
            2 * self._macs,
            x=x,
            **self._weights,
            out=out,
            images=x.images,
            POSITIONS=x.positions,
            K=x.channels,
            N=self.classes,
            NP=blocks(self.classes),
            **tiles,
        )


def _by_tap(conv: nn.Conv2d) -> Float[Tensor, "9 k n"]:
    return conv.weight.permute(2, 3, 1, 0).flatten(0, 1)


def _bias(module: nn.Conv2d | nn.Linear) -> Float[Tensor, " n"]:
    assert module.bias is not None
    return module.bias


def _folded(module: nn.Module) -> nn.Conv2d:
    assert isinstance(module, nn.Conv2d), "the network is not folded"
    return module
