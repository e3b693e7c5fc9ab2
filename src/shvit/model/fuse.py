"""Folding for inference: every pair of linear operations that can be one becomes one."""

import copy
from typing import TypeVar

import torch
from torch import nn

from ..errors import Failure
from .peer import TimmModel
from .shvit import SHViT

Network = TypeVar("Network", SHViT, TimmModel)
TOLERANCE = 1e-9
CHECK_SIDE = 64


class FuseError(Failure):
    """The folded network does not compute what the original does."""


@torch.no_grad()
def fuse(model: Network) -> Network:
    """A new network in evaluation mode with everything foldable folded; the argument is untouched.

    Folded are BatchNorm into the convolution before it or the linear layer after it, the identity path of depthwise
    residuals, the softmax scale of attention into its queries, and two distillation heads into one. Folding is done in
    float64 and compared with the original on a random batch before the weights go back to their own type and device.

    Args:
        model: A network of `create_model`, any device, any floating type.

    Raises:
        FuseError: The outputs differ by more than 1e-9 of their largest magnitude, or are not finite.
    """
    parameter = next(model.parameters())
    original = copy.deepcopy(model).to("cpu", torch.float64).eval()
    folded = _fold(copy.deepcopy(original))
    side = CHECK_SIDE if isinstance(model, SHViT) else model.image_size
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2, model.in_channels, side, side, dtype=torch.float64, generator=generator)
    expected, actual = original(images), folded(images)
    error = (expected - actual).abs().max() / expected.abs().max().clamp_min(1e-30)
    if not error <= TOLERANCE:  # also catches NaN
        raise FuseError(f"folding changed the outputs by {error:.1e} of their size, allowed is {TOLERANCE:.0e}")
    return folded.to(parameter.device, parameter.dtype).requires_grad_(False)


def _fold(module: nn.Module) -> nn.Module:
    """Children first, so that a module's own `fold` finds them folded."""
    for name, child in module.named_children():
        setattr(module, name, _fold(child))
    fold = getattr(module, "fold", None)
    return fold() if callable(fold) else module
