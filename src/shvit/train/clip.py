"""Adaptive gradient clipping: timm's, in a third of the passes over the gradients.

Source: A. Brock et al., "High-performance large-scale image recognition without normalization", 2021, section 4.1.
"""

from collections.abc import Iterable

import torch
from torch import Tensor

LEAST_NORM = 1e-3
"""Weights of a smaller norm count as having this one."""


@torch.no_grad()
def clip_adaptively(parameters: Iterable[Tensor], share: float) -> None:
    """Scale, in place, the gradient of each unit (row, filter, or whole vector) to this share of its weights' norm."""
    for parameter in parameters:
        if parameter.grad is not None:
            allowed = _norms(parameter).clamp_(min=LEAST_NORM).mul_(share)
            parameter.grad.mul_(allowed.div_(_norms(parameter.grad).clamp_(min=1e-6)).clamp_(max=1))


def _norms(tensor: Tensor) -> Tensor:
    """Of each unit, in a shape that multiplies with the tensor."""
    return torch.linalg.vector_norm(tensor, dim=tuple(range(1, tensor.ndim)) or None, keepdim=True)
