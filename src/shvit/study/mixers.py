"""Token mixers that the paper compares with single-head attention. Each maps (b, width, h, w) to the same shape."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..model.attention import SingleHeadAttention, fold_norm, fold_scale
from ..model.layers import ConvNorm

QUERY_CHANNELS = SingleHeadAttention.QUERY_CHANNELS


class MultiHeadAttention(nn.Module):
    """Attention over all channels. Each head has 16 query and 16 key channels, like the head of `SingleHeadAttention`.

    With one head, this is the paper's design (b). The output is 0 before training, so residual blocks are the identity.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"{width} channels are not divisible by {heads} heads")
        self.heads, self.values = heads, width
        self.scale = QUERY_CHANNELS**-0.5
        self.norm = nn.GroupNorm(1, width)
        self.qkv = ConvNorm(width, 2 * heads * QUERY_CHANNELS + width)
        self.act = nn.ReLU()
        self.project = ConvNorm(width, width, norm_weight=0.0)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        queries = self.heads * QUERY_CHANNELS
        qkv = self.qkv(self.norm(x)).flatten(2)  # b, channels, tokens
        q, k, v = (part.unflatten(1, (self.heads, -1)) for part in qkv.split([queries, queries, self.values], dim=1))
        mixed = attention(q, k, v, self.scale).flatten(1, 2).unflatten(2, x.shape[2:])
        return self.project(self.act(mixed))

    def fold(self) -> nn.Module:
        """Fold the norm's scale and shift, and the softmax scale, into the weights, like `SingleHeadAttention.fold`."""
        if isinstance(self.qkv, nn.Conv2d) and self.norm.affine:
            self.norm = fold_norm(self.norm, self.qkv)
            fold_scale(self.qkv, self.heads * QUERY_CHANNELS, self.scale)
            self.scale = 1.0
        return self


class BottleneckAttention(nn.Module):
    """The paper's design (a): a ResNet bottleneck with attention instead of the 3x3 convolution."""

    def __init__(self, width: int, attended: int) -> None:
        super().__init__()
        self.attended = attended
        self.scale = QUERY_CHANNELS**-0.5
        self.reduce = ConvNorm(width, attended)
        self.qkv = ConvNorm(attended, 2 * QUERY_CHANNELS + attended)
        self.act = nn.ReLU()
        self.project = ConvNorm(attended, width, norm_weight=0.0)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        reduced = self.act(self.reduce(x))
        q, k, v = self.qkv(reduced).flatten(2).split([QUERY_CHANNELS, QUERY_CHANNELS, self.attended], dim=1)
        return self.project(self.act(attention(q, k, v, self.scale).view_as(reduced)))

    def fold(self) -> nn.Module:
        """Fold the softmax scale into the weights."""
        if isinstance(self.qkv, nn.Conv2d) and self.scale != 1.0:
            fold_scale(self.qkv, QUERY_CHANNELS, self.scale)
            self.scale = 1.0
        return self


def attention(
    q: Float[Tensor, "*b c n"], k: Float[Tensor, "*b c n"], v: Float[Tensor, "*b c2 n"], scale: float
) -> Float[Tensor, "*b c2 n"]:
    """Compute attention, with the tokens on the last axis."""
    scores = q.transpose(-2, -1) @ k
    if scale != 1.0:
        scores = scores * scale
    return v @ torch.softmax(scores, -1).transpose(-2, -1)


def multi_head(width: int, attended: int) -> nn.Module:
    """Multi-head attention with about 32 channels per head. `attended` has no effect."""
    divisors = [heads for heads in range(1, width + 1) if width % heads == 0]
    return MultiHeadAttention(width, min(divisors, key=lambda heads: abs(heads - width / 32)))


def all_channels(width: int, attended: int) -> nn.Module:
    """The paper's design (b): one head over all channels. `attended` has no effect."""
    return MultiHeadAttention(width, 1)
