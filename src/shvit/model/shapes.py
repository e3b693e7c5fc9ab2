"""Tensor types with shapes, for type checkers only: torch.jit.script does not understand jaxtyping's annotations."""

from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

if TYPE_CHECKING:
    Images = Float[Tensor, "b in h w"]
    Maps = Float[Tensor, "b c h w"]
    Pooled = Float[Tensor, "b features"]
    Logits = Float[Tensor, "b classes"]
else:
    Images = Maps = Pooled = Logits = Tensor

MIN_SIDE = 32


def check_images(x: Images, channels: int, min_side: int = MIN_SIDE) -> None:  # torch.jit.script cannot read MIN_SIDE
    """Raises ValueError for images with a wrong number of channels, or with a side shorter than the minimum."""
    if torch.jit.is_tracing():  # sizes are tensors in a trace
        return
    if x.ndim != 4 or x.shape[1] != channels:
        raise ValueError(f"images must be (batch, {channels}, height, width), got {list(x.shape)}")
    if x.shape[2] < min_side or x.shape[3] < min_side:
        raise ValueError(f"images must be at least {min_side} pixels high and wide, got {x.shape[2]}x{x.shape[3]}")
