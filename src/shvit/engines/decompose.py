"""Replace operations that small runtimes lack by simpler ones. The tables are for torch's `run_decompositions`."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

Decompositions = dict[Any, Callable[..., Any]]


def _group_norm(
    x: Float[Tensor, "b c h w"], groups: int, weight: Tensor | None, bias: Tensor | None, eps: float = 1e-5, *_: bool
) -> Any:
    if x.ndim != 4:
        return NotImplemented
    each = x.view(groups * x.shape[0], x.shape[1] // groups, *x.shape[2:]) if groups > 1 else x
    centered = each - each.mean((1, 2, 3), keepdim=True)
    variance = (centered * centered).mean((1, 2, 3), keepdim=True)
    normed = (centered * torch.rsqrt(variance + eps)).view(x.shape)
    if weight is not None:
        normed = normed * weight.view(1, -1, 1, 1)
    return normed if bias is None else normed + bias.view(1, -1, 1, 1)


def _mean(x: Tensor, dims: Sequence[int] | None, keepdim: bool = False, *, dtype: torch.dtype | None = None) -> Any:
    """The mean of maps (b, c, h, w) over height and width, then over channels. Other means are not decomposed."""
    over = sorted(dim % x.ndim for dim in dims or ())
    if x.ndim != 4 or dtype is not None or over not in ([2, 3], [1, 2, 3]) or (over == [2, 3] and keepdim):
        return NotImplemented
    mean = x.mean((2, 3), keepdim=True)
    if 1 in over:
        mean = mean.view(len(x), 1, -1, 1).mean((2, 3), keepdim=True)
    return mean if keepdim else mean.view([size for dim, size in enumerate(mean.shape) if dim not in over])


def _split(x: Tensor, sizes: Sequence[int], dim: int = 0) -> list[Tensor]:
    starts = [sum(sizes[:index]) for index in range(len(sizes))]
    return [x.narrow(dim, start, size) for start, size in zip(starts, sizes, strict=True)]


def _softmax(x: Tensor, dim: int, dtype: torch.dtype | None = None) -> Any:
    """Flatten 4D tensors to two dimensions for the softmax, since XNNPACK could store 4D tensors in channels_last."""
    if x.ndim != 4 or dim not in (-1, 3) or dtype is not None:
        return NotImplemented
    return x.flatten(0, 2).softmax(-1).view_as(x)


aten = torch.ops.aten
MEANS: Decompositions = {aten.group_norm.default: _group_norm, aten.mean.dim: _mean}
"""Means are taken within each channel first, then over the channels, so that no sum overflows fp16."""
XNNPACK: Decompositions = {**MEANS, aten.split_with_sizes.default: _split, aten.softmax.int: _softmax}
