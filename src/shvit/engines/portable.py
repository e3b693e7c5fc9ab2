"""The network as every exported file holds it: uint8 images in, raw outputs out, everything foldable folded."""

from typing import Any

from jaxtyping import Float, UInt8
from torch import Tensor, nn

from ..data.transforms import Preprocess, per_channel
from ..model.detector import Detector
from ..model.fuse import fuse
from ..model.shvit import SHViT
from ..modelfile import ModelFile


class Portable(nn.Module):
    """A fused network that takes pixels as they were decoded.

    The mean is subtracted, so that the zeros with which the first convolution pads are the mean, as in training; the
    deviation is part of that convolution's weights.
    """

    mean: Tensor

    def __init__(self, network: nn.Module, preprocess: Preprocess) -> None:
        super().__init__()
        self.register_buffer("mean", per_channel(preprocess.mean), persistent=False)
        deviation = per_channel(preprocess.std)
        backbone = network.backbone if isinstance(network, Detector) else network
        first = backbone.stem[0] if isinstance(backbone, SHViT) else None
        if isinstance(first, nn.Conv2d):
            first.weight.data = (first.weight.double() / deviation).to(first.weight.dtype)
            self.divide = nn.Identity()
        else:
            self.divide = Divide(deviation)
        self.network = network

    def forward(self, images: UInt8[Tensor, "b 3 h w"]) -> Float[Tensor, "b classes"]:
        return self.network(self.divide(images.to(self.mean.dtype) - self.mean))


class Divide(nn.Module):
    """Divides each channel by its own number: the deviation, in networks whose first operation is not known."""

    by: Tensor

    def __init__(self, by: Float[Tensor, "1 c 1 1"]) -> None:
        super().__init__()
        self.register_buffer("by", by, persistent=False)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        return x / self.by


def portable(model_file: ModelFile) -> Portable:
    """The model in fp32, on the CPU, in evaluation mode; the argument is untouched."""
    network: Any = model_file.model
    return Portable(fuse(network).cpu().float(), model_file.preprocess).eval()
