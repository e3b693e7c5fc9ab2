"""Single-head self-attention over some of the channels: the paper's token mixer (section 3.2)."""

from typing import Final

import torch
from torch import nn

from .layers import ConvNorm
from .shapes import Maps


class SingleHeadAttention(nn.Module):
    """One attention head over the first `attended` channels. The projection mixes in the other channels.

    Takes and returns maps (b, width, h, w). Initialized to return zeros, so a residual block starts as the identity.
    """

    QUERY_CHANNELS: Final = 16

    def __init__(self, width: int, attended: int) -> None:
        super().__init__()
        self.attended, self.passed = attended, width - attended
        self.scale = self.QUERY_CHANNELS**-0.5
        self.norm = nn.GroupNorm(1, attended)
        self.qkv = ConvNorm(attended, 2 * self.QUERY_CHANNELS + attended)
        self.act = nn.ReLU()
        self.project = ConvNorm(width, width, norm_weight=0.0)

    def forward(self, x: Maps) -> Maps:
        attended, passed = x.split([self.attended, self.passed], dim=1)
        qkv = self.qkv(self.norm(attended)).flatten(2)  # b, channels, tokens
        q, k, v = qkv.split([self.QUERY_CHANNELS, self.QUERY_CHANNELS, self.attended], dim=1)
        scores = q.transpose(1, 2) @ k  # b, query tokens, key tokens
        if self.scale != 1.0:
            scores = scores * self.scale
        mixed = v @ scores.softmax(dim=-1).transpose(1, 2)
        return self.project(self.act(torch.cat([mixed.view_as(attended), passed], dim=1)))

    def fold(self) -> nn.Module:
        """Move the scale and shift of the norm, and the softmax scale, into the weights of queries, keys and values.

        The bias of the keys is dropped: it shifts all scores of a query equally, so softmax gives the same result.
        """
        if isinstance(self.qkv, nn.Conv2d) and self.norm.affine:
            self.norm = fold_norm(self.norm, self.qkv)
            fold_scale(self.qkv, self.QUERY_CHANNELS, self.scale)
            self.scale = 1.0
        return self


def fold_norm(norm: nn.GroupNorm, qkv: nn.Conv2d) -> nn.GroupNorm:
    """Move the scale and shift of a norm into the 1x1 convolution after it. Returns a norm without scale and shift."""
    assert qkv.bias is not None
    qkv.bias.data += qkv.weight.data[:, :, 0, 0] @ norm.bias
    qkv.weight.data *= norm.weight[:, None, None]
    return nn.GroupNorm(norm.num_groups, norm.num_channels, norm.eps, affine=False)


def fold_scale(qkv: nn.Conv2d, queries: int, scale: float) -> None:
    """Multiply the queries (the first channels of `qkv`) by the softmax scale, and set the bias of the keys to 0."""
    assert qkv.bias is not None
    qkv.weight.data[:queries] *= scale
    qkv.bias.data[:queries] *= scale
    qkv.bias.data[queries : 2 * queries] = 0
