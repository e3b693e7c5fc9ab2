"""The network in the form that is exported: fused, with uint8 images as input and raw outputs."""

from typing import Any

from jaxtyping import Float, UInt8
from torch import Tensor, nn

from ..data.transforms import Preprocess, per_channel
from ..model.fuse import fuse
from ..modelfile import ModelFile


class Portable(nn.Module):
    """A fused network that takes decoded pixels.

    The mean is subtracted rather than folded into the first convolution, so that this convolution pads with the mean,
    as in training. The division by the standard deviation is folded into the weights of the first
    convolution.
    """

    mean: Tensor

    def __init__(self, network: Any, preprocess: Preprocess) -> None:
        super().__init__()
        self.register_buffer("mean", per_channel(preprocess.mean), persistent=False)
        deviation = per_channel(preprocess.std)
        first = network.first_convolution()
        if first is not None:
            first.weight.data = (first.weight.double() / deviation).to(first.weight.dtype)
            self.divide = nn.Identity()
        else:
            self.divide = Divide(deviation)
        self.network: nn.Module = network

    def forward(self, images: UInt8[Tensor, "b 3 h w"]) -> Float[Tensor, "b classes"]:
        return self.network(self.divide(images.to(self.mean.dtype) - self.mean))


class Divide(nn.Module):
    """Divides each channel by its standard deviation, for networks whose first operation is unknown."""

    by: Tensor

    def __init__(self, by: Float[Tensor, "1 c 1 1"]) -> None:
        super().__init__()
        self.register_buffer("by", by, persistent=False)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        return x / self.by


def portable(model_file: ModelFile) -> Portable:
    """The model in fp32, on the CPU, in evaluation mode. `model_file` is not changed."""
    network: Any = model_file.model
    return Portable(fuse(network).cpu().float(), model_file.preprocess).eval()
