"""Muon: orthogonalized momentum for matrices, AdamW for all other parameters.

timm's and torch's versions orthogonalize in bf16 on every device. On processors without bf16 instructions, the
orthogonalization takes longer than the rest of the training step. Here, the data type is a parameter.
"""

import math
from collections.abc import Iterable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

COEFFICIENTS = (
    (4.0848, -6.8946, 2.9270),
    (3.9505, -6.3029, 2.6377),
    (2.8366, -3.0525, 1.2012),
)
"""Coefficients of three Newton-Schulz iterations. They are the first two and the last of timm's five iterations.

The other two are left out because each iteration costs a tenth of a training step.
"""


class Muon(torch.optim.Optimizer):
    """Muon for matrices (and convolutions, as matrices with a row per output channel), AdamW for vectors.

    Args:
        groups: Parameter groups, as for torch's optimizers. A group can set its own `weight_decay`.
        lr: Learning rate of Muon and AdamW. Muon steps are scaled to the size of AdamW steps.
        weight_decay: Weight decay of groups that do not set `weight_decay`.
        momentum: Nesterov momentum of Muon.
        betas: Coefficients of AdamW.
        dtype: Data type for the orthogonalization. Default: the data type of the gradients.

    Source: K. Jordan et al., "Muon", 2024; the scale: J. Liu et al., "Muon is scalable for LLM training", 2025.
    """

    def __init__(
        self,
        groups: Iterable[Any],
        lr: float,
        weight_decay: float = 0.0,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.95),
        dtype: torch.dtype | None = None,
    ) -> None:
        self._dtype = dtype
        super().__init__(groups, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum, "betas": betas})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Updates all parameters that have a gradient."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                step = self._matrix_step if parameter.ndim >= 2 else self._vector_step
                parameter.add_(step(self.state[parameter], parameter.grad, group), alpha=-group["lr"])

    def _matrix_step(self, state: dict[str, Any], gradient: Tensor, group: dict[str, Any]) -> Tensor:
        if not state:
            state["momentum"] = torch.zeros_like(gradient)
        state["momentum"].lerp_(gradient, 1 - group["momentum"])
        ahead = gradient.lerp(state["momentum"], group["momentum"])
        matrix = orthogonalized(ahead.flatten(1), self._dtype)
        return matrix.reshape(gradient.shape) * (0.2 * math.sqrt(max(matrix.shape)))

    def _vector_step(self, state: dict[str, Any], gradient: Tensor, group: dict[str, Any]) -> Tensor:
        if not state:
            state |= {"step": 0, "mean": torch.zeros_like(gradient), "square": torch.zeros_like(gradient)}
        state["step"] += 1
        (beta1, beta2), steps = group["betas"], state["step"]
        state["mean"].lerp_(gradient, 1 - beta1)
        state["square"].lerp_(gradient.square(), 1 - beta2)
        return state["mean"] / (1 - beta1**steps) / ((state["square"] / (1 - beta2**steps)).sqrt() + 1e-8)


def orthogonalized(matrix: Float[Tensor, "m n"], dtype: torch.dtype | None = None) -> Float[Tensor, "m n"]:
    """Approximate U V^T, where `matrix` is U S V^T (SVD). All singular values except tiny ones become about 1.

    Computes in `dtype` (default: the data type of `matrix`). The result has the data type of `matrix`.
    """
    x = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
    x = (x / x.norm().clamp_min(1e-7)).to(dtype)
    for a, b, c in COEFFICIENTS:
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.T if matrix.shape[0] > matrix.shape[1] else x).to(matrix.dtype)
