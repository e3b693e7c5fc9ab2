"""PyTorch, on any device it has: the network folded, in channels_last, in fp32 or bf16."""

from typing import ClassVar

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from ..data.transforms import Preprocess
from ..model.fuse import fuse
from ..modelfile import ModelFile


class Normalize(nn.Module):
    """What makes a network take uint8 images: subtracts the mean and divides by the deviation, in fp32.

    Gives channels_last maps on its own device, in `dtype`.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, preprocess: Preprocess, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.dtype = dtype
        self.register_buffer("mean", _per_channel(preprocess.mean), persistent=False)
        self.register_buffer("std", _per_channel(preprocess.std), persistent=False)

    def forward(self, images: UInt8[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h w"]:
        floats = images.to(self.mean.device, torch.float32, memory_format=torch.channels_last)
        return floats.sub_(self.mean).div_(self.std).to(self.dtype)


class TorchEngine:
    """The reference engine."""

    name: ClassVar[str] = "torch"

    def __init__(self, model_file: ModelFile, precision: str, device: str, threads: int | None = None) -> None:
        self.precision = precision
        self.threads = threads
        dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
        network = fuse(model_file.model).to(dtype=dtype, memory_format=torch.channels_last)  # pyright: ignore
        self.network = nn.Sequential(Normalize(model_file.preprocess, dtype), network).to(device)

    @classmethod
    def unavailable(cls, device: str) -> str | None:
        return None

    @classmethod
    def precisions(cls, device: str) -> tuple[str, ...]:
        return ("bf16", "fp32") if has_bf16(device) else ("fp32",)

    @torch.inference_mode()
    def __call__(self, images: UInt8[Tensor, "b 3 h w"]) -> Float[Tensor, "b classes"]:
        before = torch.get_num_threads()
        if self.threads is not None:
            torch.set_num_threads(self.threads)
        try:
            return self.network(images).float().cpu()
        finally:
            torch.set_num_threads(before)


def has_bf16(device: str) -> bool:
    """Whether the device computes in bf16 by its own instructions, so that bf16 is faster than fp32."""
    kind = torch.device(device).type
    if kind == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return kind == "cpu" and torch.cpu._is_avx512_bf16_supported()  # torch has no public name for this


def _per_channel(values: tuple[float, ...]) -> Float[Tensor, "1 c 1 1"]:
    return 255 * torch.tensor(values).view(1, -1, 1, 1)
