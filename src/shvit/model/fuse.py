"""Folding for inference: consecutive linear operations become one."""

import copy
from typing import Any, TypeVar, cast

import torch
from torch import nn

from ..errors import Failure
from .detector import Detector
from .shvit import SHViT
from .timm_model import TimmModel

Fusable = TypeVar("Fusable", SHViT, TimmModel, Detector)


class FuseError(Failure):
    """The outputs of the folded network differ from those of the original."""


@torch.no_grad()
def fuse(model: Fusable) -> Fusable:
    """Return a new network in evaluation mode in which linear operations are folded. `model` is not changed.

    BatchNorm is folded into the convolution before it or the linear layer after it. The identity path of a depthwise
    residual is folded into the convolution, and the distillation head into the head. Attention's norm and softmax scale
    are folded into the weights of attention. The convolutions of squeeze-excite become linear layers.

    Folding uses float64; timm's code folds timm's models, in float32. The outputs of both networks are compared on a
    random batch. In RetinaNet and Mask R-CNN, only the backbone is folded, and the maps of the pyramid are compared.
    The network may be on any device and have any floating-point type; the new network has the same device and type.

    Raises:
        FuseError: The outputs differ by more than 1e-9 of their largest absolute value (timm: 1e-3), or are not finite.
    """
    parameter = next(model.parameters())
    dtype, side, tolerance = model.fold_check
    original = copy.deepcopy(model).to("cpu", dtype).eval()
    folded = cast(Fusable, fold(copy.deepcopy(original)))
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2, model.in_channels, side, side, dtype=dtype, generator=generator)
    error = max(
        (expected - actual).abs().max() / expected.abs().max().clamp_min(1e-30)
        for expected, actual in zip(original.fold_outputs(images), folded.fold_outputs(images), strict=True)
    )
    if not error <= tolerance:  # also catches NaN
        raise FuseError(f"folding changed the outputs by {error:.1e} of the largest one, more than {tolerance:.0e}")
    return folded.to(parameter.device, parameter.dtype).requires_grad_(False)


def fold(module: nn.Module) -> nn.Module:
    """Fold a network in place, without comparing its outputs. Returns the folded network.

    Children are folded first, since the method `fold` of a module expects folded children.
    """
    if not isinstance(module, TimmModel):  # timm's own code folds its children
        for name, child in module.named_children():
            setattr(module, name, fold(child))
    method: Any = getattr(module, "fold", None)
    return method() if method else module
