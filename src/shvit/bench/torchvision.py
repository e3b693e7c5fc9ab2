"""Detectors of torchvision, which run in eager mode from pixels to boxes."""

from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torchvision.models import detection, get_model, list_models

from ..errors import InputError

TORCHVISION_PREFIX = "torchvision/"
BUILDERS = ("retinanet_", "fasterrcnn_", "maskrcnn_")
"""Name prefixes of the detectors that support any image size."""


def is_torchvision(name: str) -> bool:
    """Whether this is the name of a torchvision detector."""
    return name.startswith(TORCHVISION_PREFIX)


class TorchvisionDetector(nn.Module):
    """A detector with random weights. It takes square images of `image_size` pixels, and does not resize them.

    Raises:
        InputError: torchvision has no such detector.
    """

    in_channels = 3

    def __init__(self, name: str, image_size: int) -> None:
        super().__init__()
        allowed = [known for known in list_models(module=detection) if known.startswith(BUILDERS)]
        if name not in allowed:
            raise InputError(f"{TORCHVISION_PREFIX}NAME must be one of {', '.join(allowed)}, got {name!r}")
        sizes = {"min_size": image_size, "max_size": image_size}
        self.network: Any = get_model(name, weights=None, weights_backbone=None, **sizes).eval()

    @torch.inference_mode()
    def forward(self, images: UInt8[Tensor, "b 3 h w"] | Float[Tensor, "b 3 h w"]) -> list[dict[str, Tensor]]:
        """Detect the objects in each image."""
        return self.network(list(images.to(next(self.parameters()).device).float() / 255))
