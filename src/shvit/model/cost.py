"""The cost of a network, counted while it runs: parameters, multiply-accumulates, activations."""

from dataclasses import dataclass

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from ..errors import InputError, one_line
from .detector import Detector
from .shvit import SHViT
from .timm_model import TimmModel


@dataclass(frozen=True)
class Cost:
    """The cost of processing one image, and the number of parameters."""

    name: str
    params: int
    macs: int
    """Multiply-accumulates of convolutions, linear layers and attention's matrix products."""
    activations: int
    """Number of elements in the outputs of the operations that `macs` counts."""


@torch.no_grad()
def cost(model: SHViT | TimmModel | Detector, image_size: tuple[int, int], name: str = "total") -> Cost:
    """Count the cost of one image of this size (height, width) in evaluation mode.

    Raises:
        InputError: A timm model or a detector does not accept images of this size.
    """
    try:
        return _count(model, _black(model, image_size), name)[0]
    except (AssertionError, RuntimeError) as error:
        if not isinstance(model, TimmModel):
            raise
        size, reason = f"{image_size[0]}x{image_size[1]}", one_line(error, first=True)
        built = f"{model.architecture.name} is built for {model.image_size} pixels"
        raise InputError(f"{built} and does not accept {size} images: {reason}") from None


@torch.no_grad()
def stage_costs(model: SHViT, image_size: tuple[int, int]) -> list[Cost]:
    """Return one row for the stem, one for each stage and one for the head. The rows add up to `cost`."""
    x, rows = _black(model, image_size), []
    parts = [("stem", model.stem)] + [(f"stage {index}", stage) for index, stage in enumerate(model.stages, 1)]
    for name, part in parts:
        row, x = _count(part, x, name)
        rows.append(row)
    rows.append(_count(model.head, x.mean((2, 3)), "head")[0])
    return rows


def _black(model: SHViT | TimmModel | Detector, image_size: tuple[int, int]) -> torch.Tensor:
    return next(model.parameters()).new_zeros(1, model.in_channels, *image_size)


class _OutputCounter(TorchDispatchMode):
    """Counts the output elements of convolutions and matrix products."""

    COUNTED = ("convolution", "mm", "addmm", "bmm", "baddbmm")

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if func.overloadpacket.__name__ in self.COUNTED:
            self.elements += result.numel()
        return result


def _count(module: nn.Module, x: torch.Tensor, name: str) -> tuple[Cost, torch.Tensor]:
    was_training = module.training
    module.eval()
    outputs = _OutputCounter()
    with FlopCounterMode(display=False) as flops, outputs:
        result = module(x)
    module.train(was_training)
    params = sum(parameter.numel() for parameter in module.parameters())
    return Cost(name, params, flops.get_total_flops() // 2, outputs.elements), result
