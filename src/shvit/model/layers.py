"""The convolutional parts of SHViT. `fold` returns a module's cheaper equivalent for inference (see fuse.py)."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torchvision.ops import StochasticDepth

from .shapes import Logits, Maps, Pooled


class ConvNorm(nn.Module):
    """Convolution without bias, then BatchNorm, whose weight is initialized with `norm_weight`."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 1,
        stride: int = 1,
        groups: int = 1,
        norm_weight: float = 1.0,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(
            in_channels, out_channels, kernel_size, stride, padding=kernel_size // 2, groups=groups, bias=False
        )
        self.norm = nn.BatchNorm2d(out_channels)
        nn.init.constant_(self.norm.weight, norm_weight)

    def forward(self, x: Maps) -> Maps:
        return self.norm(self.conv(x))

    @classmethod
    def of(cls, conv: nn.Conv2d, norm: nn.Module) -> "ConvNorm":
        """This pair of existing modules."""
        pair = cls.__new__(cls)
        nn.Module.__init__(pair)
        pair.conv, pair.norm = conv, norm  # pyright: ignore[reportAttributeAccessIssue]: a BatchNorm2d
        return pair

    def fold(self) -> nn.Conv2d:
        """Merge BatchNorm, which scales and shifts each output channel, into the kernel and a bias."""
        scale, shift = norm_as_scale_and_shift(self.norm)
        conv = self.conv
        folded = nn.Conv2d(
            conv.in_channels,
            conv.out_channels,
            conv.kernel_size,  # pyright: ignore[reportArgumentType]
            conv.stride,  # pyright: ignore[reportArgumentType]
            conv.padding,  # pyright: ignore[reportArgumentType]
            groups=conv.groups,
            dtype=conv.weight.dtype,
        )
        folded.weight.data = conv.weight * scale[:, None, None, None]
        folded.bias = nn.Parameter(shift)
        return folded


class NormLinear(nn.Module):
    """BatchNorm over pooled features, then a linear classifier: one head of the network."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(in_features)
        self.linear = nn.Linear(in_features, out_features)
        nn.init.trunc_normal_(self.linear.weight, std=0.02)
        nn.init.zeros_(self.linear.bias)

    def forward(self, x: Pooled) -> Logits:
        return self.linear(self.norm(x))

    def fold(self) -> nn.Linear:
        """Merge BatchNorm into the linear layer."""
        scale, shift = norm_as_scale_and_shift(self.norm)
        folded = nn.Linear(self.linear.in_features, self.linear.out_features, dtype=self.linear.weight.dtype)
        folded.weight.data = self.linear.weight * scale
        folded.bias.data = self.linear.bias + self.linear.weight @ shift
        return folded


class Residual(nn.Module):
    """x + branch(x). In training, each image skips the branch with probability `drop_path` (stochastic depth)."""

    def __init__(self, branch: nn.Module, drop_path: float = 0.0) -> None:
        super().__init__()
        self.branch = branch
        self.drop_path = StochasticDepth(drop_path, "row") if drop_path else None

    def forward(self, x: Maps) -> Maps:
        if self.drop_path is None:
            return x + self.branch(x)
        return x + self.drop_path(self.branch(x))

    def fold(self) -> nn.Module:
        """Merge the sum into the branch, if it is a depthwise convolution: add 1 to the center of each kernel."""
        self.drop_path = None
        conv = self.branch
        if not (isinstance(conv, nn.Conv2d) and conv.groups == conv.in_channels == conv.out_channels):
            return self
        row, column = (size // 2 for size in conv.kernel_size)
        conv.weight.data[:, 0, row, column] += 1
        return conv


class FeedForward(nn.Module):
    """1x1 convolution to twice the width, ReLU, and 1x1 convolution back. Initialized to return zeros."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.expand = ConvNorm(width, 2 * width)
        self.act = nn.ReLU()
        self.project = ConvNorm(2 * width, width, norm_weight=0.0)

    def forward(self, x: Maps) -> Maps:
        return self.project(self.act(self.expand(x)))


class SqueezeExcite(nn.Module):
    """Scales each channel by a gate computed from the means of all channels. The hidden width is a multiple of 8."""

    def __init__(self, width: int, ratio: float = 0.25) -> None:
        super().__init__()
        hidden = max(8, int(width * ratio + 4) // 8 * 8)
        self.reduce = nn.Conv2d(width, hidden, 1)
        self.act = nn.ReLU()
        self.expand = nn.Conv2d(hidden, width, 1)

    def forward(self, x: Maps) -> Maps:
        gate = self.expand(self.act(self.reduce(x.mean((2, 3), keepdim=True))))
        return x * gate.sigmoid()

    def fold(self) -> nn.Module:
        """Replace the 1x1 convolutions by linear layers, which compute a whole batch as one matrix product."""
        return LinearSqueezeExcite(self.reduce, self.expand)


class LinearSqueezeExcite(nn.Module):
    """`SqueezeExcite` for inference."""

    def __init__(self, reduce: nn.Conv2d, expand: nn.Conv2d) -> None:
        super().__init__()
        self.reduce = _pointwise_as_linear(reduce)
        self.act = nn.ReLU()
        self.expand = _pointwise_as_linear(expand)

    def forward(self, x: Maps) -> Maps:
        gate = self.expand(self.act(self.reduce(x.mean((2, 3)))))
        return x * gate.sigmoid()[:, :, None, None]


class InvertedResidual(nn.Module):
    """Halves height and width: 1x1 convolution to 4 times the channels, depthwise 3x3, squeeze-excite, another 1x1."""

    def __init__(self, in_width: int, out_width: int) -> None:
        super().__init__()
        hidden = 4 * in_width
        self.expand = ConvNorm(in_width, hidden)
        self.depthwise = ConvNorm(hidden, hidden, 3, stride=2, groups=hidden)
        self.act = nn.ReLU()
        self.squeeze_excite = SqueezeExcite(hidden)
        self.project = ConvNorm(hidden, out_width)

    def forward(self, x: Maps) -> Maps:
        x = self.act(self.expand(x))
        x = self.act(self.depthwise(x))
        return self.project(self.squeeze_excite(x))


def depthwise_residual(width: int, norm_weight: float, drop_path: float = 0.0) -> Residual:
    """x + BatchNorm(depthwise 3x3 of x)."""
    return Residual(ConvNorm(width, width, 3, groups=width, norm_weight=norm_weight), drop_path)


def recomputed(module: nn.Module, x: Maps) -> Maps:
    """Return `module(x)`. The activations are not stored, but recomputed in the backward pass.

    The recomputation does not update the running statistics of BatchNorm again.
    """
    result = checkpoint(module, x, use_reentrant=False, context_fn=lambda: (nullcontext(), _statistics_kept(module)))
    assert isinstance(result, Tensor)
    return result


@contextmanager
def _statistics_kept(module: nn.Module) -> Iterator[None]:
    norms = [part for part in module.modules() if isinstance(part, nn.BatchNorm2d)]
    before = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, (momentum, count) in zip(norms, before, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, count


def norm_as_scale_and_shift(norm: nn.BatchNorm1d | nn.BatchNorm2d) -> tuple[Float[Tensor, " c"], Float[Tensor, " c"]]:
    """BatchNorm in evaluation mode as `x * scale + shift`, per channel."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
    return scale, norm.bias - norm.running_mean * scale


def _pointwise_as_linear(conv: nn.Conv2d) -> nn.Linear:
    assert conv.bias is not None
    linear = nn.Linear(conv.in_channels, conv.out_channels, dtype=conv.weight.dtype)
    linear.weight.data = conv.weight.data.flatten(1)
    linear.bias.data = conv.bias.data
    return linear
