"""SHViT: a 16x16 stem of four convolutions, stages of depthwise convolution, single-head attention and feed-forward.

Source: S. Yun, Y. Ro, "SHViT: Single-Head Vision Transformer with Memory Efficient Macro Design", CVPR 2024.
"""

from collections import OrderedDict
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from .attention import SingleHeadAttention
from .config import Config
from .layers import (
    ConvNorm,
    FeedForward,
    InvertedResidual,
    NormLinear,
    Residual,
    depthwise_residual,
)

MIN_SIDE = 32
Mixer = Callable[[int, int], nn.Module]
"""(width, attended channels) -> a module from (b, width, h, w) to the same shape."""


class Block(nn.Module):
    """Depthwise convolution, token mixer (where the stage attends), feed-forward: each a residual."""

    def __init__(self, width: int, attended: int | None, mixer: Mixer) -> None:
        super().__init__()
        self.local = depthwise_residual(width, norm_weight=0.0)
        self.mixer = Residual(mixer(width, attended)) if attended is not None else nn.Identity()
        self.feed_forward = Residual(FeedForward(width))

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        return self.feed_forward(self.mixer(self.local(x)))


class Downsample(nn.Module):
    """Between stages: half the height and width, and a new number of channels."""

    def __init__(self, in_width: int, out_width: int) -> None:
        super().__init__()
        self.local_before = depthwise_residual(in_width, norm_weight=1.0)
        self.feed_forward_before = Residual(FeedForward(in_width))
        self.reduce = InvertedResidual(in_width, out_width)
        self.local_after = depthwise_residual(out_width, norm_weight=1.0)
        self.feed_forward_after = Residual(FeedForward(out_width))

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c2 h2 w2"]:
        x = self.feed_forward_before(self.local_before(x))
        return self.feed_forward_after(self.local_after(self.reduce(x)))


class SHViT(nn.Module):
    """The network, from images to logits.

    Args:
        config: Widths, depths and attended channels.
        num_classes: Logits an image gets; 0 for a backbone without head, whose outputs are the last map's means.
        in_channels: Channels of an image.
        distilled: Add a second head, to be taught by a teacher. In training the network then returns both heads'
            logits; in evaluation, their mean.
        mixer: What mixes tokens in the stages that attend; experiments pass their own.
    """

    architecture: Any = None
    """The `Architecture` that built this network; None where it was put together by hand."""

    def __init__(
        self,
        config: Config,
        num_classes: int = 1000,
        in_channels: int = 3,
        distilled: bool = False,
        mixer: Mixer = SingleHeadAttention,
    ) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.maps = [(stage.width, 2**config.stem << index) for index, stage in enumerate(config.stages)]
        """Channels and stride of each map that `features` gives."""
        self.image_size = config.image_size
        self.stem = _stem(in_channels, config.stages[0].width, config.stem)
        self.stages = nn.ModuleList()
        width = config.stages[0].width
        for index, stage in enumerate(config.stages):
            parts = OrderedDict[str, nn.Module]()
            if index > 0:
                parts["downsample"] = Downsample(width, stage.width)
            parts["blocks"] = nn.Sequential(*(Block(stage.width, stage.attended, mixer) for _ in range(stage.depth)))
            self.stages.append(nn.Sequential(parts))
            width = stage.width
        self.head = NormLinear(width, num_classes) if num_classes else nn.Identity()
        self.distillation_head = NormLinear(width, num_classes) if distilled else None

    def features(self, x: Float[Tensor, "b in h w"]) -> list[Float[Tensor, "b c h2 w2"]]:
        """Maps after each stage, of the variants at strides 16, 32 and 64 (heights and widths round up).

        Raises:
            ValueError: The images have other channels than the network, or a side under 32 pixels.
        """
        if x.ndim != 4 or x.shape[1] != self.in_channels:
            raise ValueError(f"images must be (batch, {self.in_channels}, height, width), got {tuple(x.shape)}")
        if x.shape[2] < MIN_SIDE or x.shape[3] < MIN_SIDE:
            raise ValueError(f"images must be at least {MIN_SIDE} pixels high and wide, got {x.shape[2]}x{x.shape[3]}")
        x = self.stem(x)
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps

    def forward(
        self, x: Float[Tensor, "b in h w"]
    ) -> Float[Tensor, "b classes"] | tuple[Float[Tensor, "b classes"], Float[Tensor, "b classes"]]:
        """Logits; with a distillation head in training, (logits, distillation logits)."""
        pooled = self.features(x)[-1].mean((2, 3))
        logits = self.head(pooled)
        if self.distillation_head is None:
            return logits
        distilled = self.distillation_head(pooled)
        return (logits, distilled) if self.training else (logits + distilled) / 2

    def fold(self) -> "SHViT":
        """The mean of two linear heads is one linear head."""
        if isinstance(self.head, nn.Linear) and isinstance(self.distillation_head, nn.Linear):
            with torch.no_grad():
                self.head.weight.data = (self.head.weight + self.distillation_head.weight) / 2
                self.head.bias.data = (self.head.bias + self.distillation_head.bias) / 2
            self.distillation_head = None
        return self


def _stem(in_channels: int, width: int, depth: int) -> nn.Sequential:
    """3x3 convolutions of stride 2, each twice as wide as the one before, ReLU between them; four in the variants."""
    widths = [in_channels, *(width >> halvings for halvings in reversed(range(depth)))]
    modules: list[nn.Module] = []
    for before, after in pairwise(widths):
        modules += [ConvNorm(before, after, 3, stride=2), nn.ReLU()]
    return nn.Sequential(*modules[:-1])
