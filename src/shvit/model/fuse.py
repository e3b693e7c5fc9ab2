"""Folding for inference: every pair of linear operations that can be one becomes one."""

import copy
from typing import Any, Protocol, TypeVar, cast, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..errors import Failure
from .detector import Detector
from .shvit import SHViT
from .timm_model import TimmModel

Network = TypeVar("Network", SHViT, TimmModel, Detector)
CHECK_SIDE = 64


@runtime_checkable
class Foldable(Protocol):
    """A module that knows its equivalent for inference."""

    def fold(self) -> nn.Module: ...


class FuseError(Failure):
    """The folded network does not compute what the original does."""


@torch.no_grad()
def fuse(model: Network) -> Network:
    """A new network in evaluation mode with everything foldable folded; the argument is untouched.

    Folded are BatchNorm into the convolution before it or the linear layer after it, the identity path of depthwise
    residuals, the scale and shift of attention's norm and its softmax scale into its weights, and two distillation
    heads into one; squeeze-excite's convolutions become linear layers. Folding is done in float64 and compared with the
    original on a random batch before the weights go back to their own type and device.
    timm's models fold by timm's own code, which is made for float32. Of a detector the backbone is folded, and its
    pyramid's maps are compared.

    Args:
        model: A network of `create_model`, any device, any floating type.

    Raises:
        FuseError: The outputs differ by more than 1e-9 of their largest magnitude (timm's: 1e-3), or are not finite.
    """
    parameter = next(model.parameters())
    ours = isinstance(model.backbone if isinstance(model, Detector) else model, SHViT)
    dtype, side, tolerance = (torch.float64, CHECK_SIDE, 1e-9) if ours else (torch.float32, model.image_size, 1e-3)
    if isinstance(model, Detector):
        side = CHECK_SIDE * -(-side // CHECK_SIDE)
    original = copy.deepcopy(model).to("cpu", dtype).eval()
    folded = cast(Network, _fold(copy.deepcopy(original)))
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2, model.in_channels, side, side, dtype=dtype, generator=generator)
    error = max(
        (expected - actual).abs().max() / expected.abs().max().clamp_min(1e-30)
        for expected, actual in zip(_seen(original, images), _seen(folded, images), strict=True)
    )
    if not error <= tolerance:  # also catches NaN
        raise FuseError(f"folding changed the outputs by {error:.1e} of their size, allowed is {tolerance:.0e}")
    return folded.to(parameter.device, parameter.dtype).requires_grad_(False)


def _seen(model: Any, images: Float[Tensor, "b c h w"]) -> list[Tensor]:
    return model.features(images) if isinstance(model, Detector) else [model(images)]


def _fold(module: nn.Module) -> nn.Module:
    """Children first, so that a module's own `fold` finds them folded."""
    if not isinstance(module, TimmModel):  # which folds what is inside it by timm's own code
        for name, child in module.named_children():
            setattr(module, name, _fold(child))
    return module.fold() if isinstance(module, Foldable) else module
