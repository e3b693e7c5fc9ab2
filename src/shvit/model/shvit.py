"""SHViT: a stem of stride 16, then stages of depthwise convolution, single-head attention and feed-forward.

Source: S. Yun, Y. Ro, "SHViT: Single-Head Vision Transformer with Memory Efficient Macro Design", CVPR 2024.
"""

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import nn

from .attention import SingleHeadAttention
from .config import Config
from .layers import ConvNorm, FeedForward, InvertedResidual, NormLinear, Residual, depthwise_residual, recomputed
from .shapes import Images, Logits, Maps, check_images
from .timm_interface import TimmInterface

torch.fx.wrap("check_images")  # recorded as one call, since torch.fx cannot trace the size checks

Mixer = Callable[[int, int], nn.Module]
"""Function of (width, attended channels). The module that it returns maps (b, width, h, w) to the same shape."""


class Block(nn.Module):
    """Depthwise convolution, token mixer (in stages with attention) and feed-forward, each with a residual."""

    def __init__(self, width: int, attended: int | None, mixer: Mixer, drop_path: float = 0.0) -> None:
        super().__init__()
        self.local = depthwise_residual(width, norm_weight=0.0, drop_path=drop_path)
        self.mixer = Residual(mixer(width, attended), drop_path) if attended is not None else nn.Identity()
        self.feed_forward = Residual(FeedForward(width), drop_path)

    def forward(self, x: Maps) -> Maps:
        return self.feed_forward(self.mixer(self.local(x)))


class Downsample(nn.Module):
    """Halves height and width between stages, and changes the number of channels."""

    def __init__(self, in_width: int, out_width: int, drop_path: float = 0.0) -> None:
        super().__init__()
        self.local_before = depthwise_residual(in_width, norm_weight=1.0, drop_path=drop_path)
        self.feed_forward_before = Residual(FeedForward(in_width), drop_path)
        self.reduce = InvertedResidual(in_width, out_width)
        self.local_after = depthwise_residual(out_width, norm_weight=1.0, drop_path=drop_path)
        self.feed_forward_after = Residual(FeedForward(out_width), drop_path)

    def forward(self, x: Maps) -> Maps:
        x = self.feed_forward_before(self.local_before(x))
        return self.feed_forward_after(self.local_after(self.reduce(x)))


class StageLayers(nn.Module):
    """One stage: downsampling (except in the first stage), then blocks."""

    def __init__(self, downsample: nn.Module, blocks: list[Block]) -> None:
        super().__init__()
        self.downsample = downsample
        self.blocks = nn.Sequential(*blocks)
        self.grad_checkpointing = False
        """Recompute each block in the backward pass: less memory, more time."""

    def forward(self, x: Maps) -> Maps:
        x = self.downsample(x)
        for block in self.blocks:
            if self.grad_checkpointing and not torch.jit.is_scripting():  # noqa: SIM108 (TorchScript drops one side)
                x = recomputed(block, x)
            else:
                x = block(x)
        return x


class SHViT(TimmInterface):
    """The network, from images to logits.

    Args:
        config: Widths, depths and attended channels.
        num_classes: Number of logits. With 0, the network has no head and returns the pooled last map.
        in_channels: Channels of an image.
        distilled: Add a second head for distillation. In training, the network returns the logits of both heads; in
            evaluation, their mean.
        mixer: Token mixer of the stages with attention; experiments pass other mixers.
        drop_path_rate: Probability, in training, that an image skips a residual branch of the last block. For earlier
            blocks, the probability falls linearly to 0 in the first block.
    """

    any_batch = True  # see `Detector`
    fold_check = (torch.float64, 64, 1e-9)
    """For `fuse`: type and side of the random images, and allowed difference relative to the largest output."""

    def __init__(
        self,
        config: Config,
        num_classes: int = 1000,
        in_channels: int = 3,
        distilled: bool = False,
        mixer: Mixer = SingleHeadAttention,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.num_classes = num_classes
        self.maps = [(stage.width, 2**config.stem << index) for index, stage in enumerate(config.stages)]
        """Channels and stride of each map that `features` returns."""
        self.image_size = config.image_size
        self.stem = _stem(in_channels, config.stages[0].width, config.stem)
        self.stages = nn.Sequential()
        depth = sum(stage.depth for stage in config.stages)
        rates = iter([drop_path_rate * block / max(1, depth - 1) for block in range(depth)])
        width = config.stages[0].width
        for index, stage in enumerate(config.stages):
            drop_paths = [next(rates) for _ in range(stage.depth)]
            first = drop_paths[0] if drop_paths else 0.0
            downsample = Downsample(width, stage.width, first) if index > 0 else nn.Identity()
            blocks = [Block(stage.width, stage.attended, mixer, drop_path) for drop_path in drop_paths]
            self.stages.append(StageLayers(downsample, blocks))
            width = stage.width
        self.num_features = self.head_hidden_size = width
        self.global_pool = "avg"
        """Pooling of the last map: `avg` for the mean over all positions, or an empty string for none."""
        self.head = NormLinear(width, num_classes) if num_classes else nn.Identity()
        self.distillation_head = NormLinear(width, num_classes) if distilled else None
        self.distilled_training = distilled
        self.pretrained_cfg = self.default_cfg = self.described_for_timm()

    def features(self, x: Images) -> list[Maps]:
        """The map after each stage, with its height and width rounded up. The variants have strides 16, 32 and 64.

        Raises:
            ValueError: The images do not have the network's number of channels, or have a side below 32 pixels.
        """
        check_images(x, self.in_channels)
        x = self.stem(x)
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps

    def forward_features(self, x: Images) -> Maps:
        """The last map, unpooled."""
        return self.features(x)[-1]

    def forward_head(self, x: Maps, pre_logits: bool = False) -> Logits | tuple[Logits, Logits]:
        """Compute the logits from the last map. With `pre_logits`, return the classifier's input instead."""
        pooled = x.mean((2, 3)) if self.global_pool == "avg" else x
        if pre_logits:
            return pooled
        logits = self.head(pooled)
        if self.distillation_head is None:
            return logits
        distilled = self.distillation_head(pooled)
        if self.training and self.distilled_training:
            return logits, distilled
        return (logits + distilled) / 2

    def forward(self, x: Images) -> Logits | tuple[Logits, Logits]:
        """Logits. In training with a distillation head: (logits, distillation logits)."""
        return self.forward_head(self.forward_features(x))

    def first_convolution(self) -> nn.Conv2d | None:
        """The convolution that reads the images; None until the network is folded."""
        first = self.stem[0]
        return first if isinstance(first, nn.Conv2d) else None

    def fold_outputs(self, x: Images) -> list[Logits]:
        """The outputs that are compared after folding."""
        return [self(x)]

    def fold(self) -> "SHViT":
        """Merge the two linear heads into one that returns the mean of their logits."""
        if isinstance(self.head, nn.Linear) and isinstance(self.distillation_head, nn.Linear):
            with torch.no_grad():
                self.head.weight.data = (self.head.weight + self.distillation_head.weight) / 2
                self.head.bias.data = (self.head.bias + self.distillation_head.bias) / 2
            self.distillation_head = None
        return self


def _stem(in_channels: int, width: int, depth: int) -> nn.Sequential:
    """3x3 convolutions of stride 2 with ReLU in between, each twice as wide as the previous. The variants have four."""
    widths = [in_channels, *(width >> halvings for halvings in reversed(range(depth)))]
    modules: list[nn.Module] = []
    for before, after in pairwise(widths):
        modules += [ConvNorm(before, after, 3, stride=2), nn.ReLU()]
    return nn.Sequential(*modules[:-1])
