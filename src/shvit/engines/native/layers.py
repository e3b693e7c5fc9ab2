"""SHViT as a list of layers in fp32, from which the int8 network is made."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from ...model.attention import SingleHeadAttention
from ...model.layers import FeedForward, InvertedResidual, LinearSqueezeExcite, Residual
from ...model.shvit import Block, Downsample, SHViT


@dataclass(frozen=True)
class FloatLayer:
    """One operation on maps, which are numbered in the order of the network."""

    source: int
    target: int
    relu: bool
    """Whether the target has no negative values."""

    def __call__(self, maps: dict[int, Tensor]) -> Tensor:
        """The target, given the maps before it, (b, channels, h, w)."""
        raise NotImplementedError


@dataclass(frozen=True)
class ConvolutionLayer(FloatLayer):
    """A 3x3 convolution of stride 2 in the stem, a depthwise 3x3 convolution, or a 1x1 convolution."""

    weight: Float[Tensor, "outputs inputs k k"]
    bias: Float[Tensor, " outputs"]
    stride: int = 1
    groups: int = 1
    residual: int | None = None
    """A map that is added to the result."""

    def __call__(self, maps: dict[int, Tensor]) -> Tensor:
        padding = self.weight.shape[-1] // 2
        y = F.conv2d(maps[self.source], self.weight, self.bias, self.stride, padding, groups=self.groups)
        y = y if self.residual is None else y + maps[self.residual]
        return y.relu() if self.relu else y


@dataclass(frozen=True)
class AttendLayer(FloatLayer):
    """GroupNorm, queries, keys, values and attention over the first channels. The others pass, and all get a ReLU."""

    weight: Float[Tensor, "outputs attended"]
    bias: Float[Tensor, " outputs"]
    width: int
    """All channels."""
    epsilon: float

    @property
    def attended(self) -> int:
        """Channels that attention mixes."""
        return self.weight.shape[1]

    def __call__(self, maps: dict[int, Tensor]) -> Tensor:
        attended, passed = maps[self.source].tensor_split([self.attended], dim=1)
        normal = F.group_norm(attended, 1, eps=self.epsilon)
        qkv = F.conv2d(normal, self.weight[:, :, None, None], self.bias).flatten(2)
        queries = SingleHeadAttention.QUERY_CHANNELS
        q, k, v = qkv.split([queries, queries, self.attended], dim=1)
        mixed = v @ (q.transpose(1, 2) @ k).softmax(-1).transpose(1, 2)
        return torch.cat([mixed.view_as(attended), passed], dim=1).relu()


@dataclass(frozen=True)
class ExciteLayer(FloatLayer):
    """Squeeze-excite."""

    reduce: nn.Linear
    expand: nn.Linear

    def hidden(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b hidden"]:
        """The activations between the two linear layers."""
        return self.reduce(x.mean((2, 3))).relu()

    def __call__(self, maps: dict[int, Tensor]) -> Tensor:
        x = maps[self.source]
        return x * self.expand(self.hidden(x)).sigmoid()[:, :, None, None]


@dataclass(frozen=True)
class HeadLayer(FloatLayer):
    """Mean over all positions, then the classifier. The target is (b, classes)."""

    linear: nn.Linear

    def __call__(self, maps: dict[int, Tensor]) -> Tensor:
        return self.linear(maps[self.source].mean((2, 3)))


class FloatLayers:
    """The layers of a folded SHViT, in order. Map 0 has the pixels minus `mean`."""

    def __init__(self, network: Any, mean: Float[Tensor, "3"]) -> None:
        self.mean = mean
        self.all: list[FloatLayer] = []
        self._last = 0
        stem = list(network.stem)
        for index, module in enumerate(stem):
            if isinstance(module, nn.Conv2d):
                self._convolve(module, relu=index + 1 < len(stem))
        for module in network.stages.modules():
            if isinstance(module, Downsample):
                self._downsample(module)
            elif isinstance(module, Block):
                self._block(module)
        self._add(HeadLayer, False, linear=network.head)

    def __call__(self, images: Float[Tensor, "b 3 h w"]) -> dict[int, Tensor]:
        """All maps, given pixels minus the mean. The last one has the logits."""
        maps = {0: images}
        for layer in self.all:
            maps[layer.target] = layer(maps)
        return maps

    def _add(self, kind: type[FloatLayer], relu: bool, **parts: Any) -> None:
        self.all.append(kind(self._last, self._last + 1, relu, **parts))
        self._last += 1

    def _convolve(self, conv: nn.Module, relu: bool = False, residual: int | None = None) -> None:
        assert isinstance(conv, nn.Conv2d)
        assert conv.bias is not None
        self._add(
            ConvolutionLayer,
            relu,
            weight=conv.weight,
            bias=conv.bias,
            stride=conv.stride[0],
            groups=conv.groups,
            residual=residual,
        )

    def _feed_forward(self, module: nn.Module) -> None:
        assert isinstance(module, Residual)
        assert isinstance(module.branch, FeedForward)
        before = self._last
        self._convolve(module.branch.expand, relu=True)
        self._convolve(module.branch.project, residual=before)

    def _block(self, block: Block) -> None:
        self._convolve(block.local)
        if isinstance(block.mixer, Residual):
            attention: Any = block.mixer.branch
            before, qkv = self._last, attention.qkv
            parts = {"weight": qkv.weight[:, :, 0, 0], "bias": qkv.bias, "epsilon": attention.norm.eps}
            self._add(AttendLayer, True, width=attention.project.in_channels, **parts)
            self._convolve(attention.project, residual=before)
        self._feed_forward(block.feed_forward)

    def _downsample(self, module: Downsample) -> None:
        self._convolve(module.local_before)
        self._feed_forward(module.feed_forward_before)
        reduce: InvertedResidual = module.reduce
        self._convolve(reduce.expand, relu=True)
        self._convolve(reduce.depthwise, relu=True)
        gates: Any = reduce.squeeze_excite
        assert isinstance(gates, LinearSqueezeExcite)
        self._add(ExciteLayer, True, reduce=gates.reduce, expand=gates.expand)
        self._convolve(reduce.project)
        self._convolve(module.local_after)
        self._feed_forward(module.feed_forward_after)


def kernels_refuse(network: nn.Module) -> str | None:
    """Why the kernels cannot run this network; None if they can."""
    if not isinstance(network, SHViT):
        return f"its kernels run SHViT, not {type(network).__name__}"
    if network.in_channels != 3:
        return f"its kernels take images of 3 channels, not of {network.in_channels}"
    blocks = [module for module in network.modules() if isinstance(module, Block)]
    mixers = [block.mixer.branch for block in blocks if isinstance(block.mixer, Residual)]
    others = [type(mixer).__name__ for mixer in mixers if not isinstance(mixer, SingleHeadAttention)]
    return f"its kernels need SingleHeadAttention as token mixer, not {others[0]}" if others else None
