"""The layout in memory that the kernels need for weights and maps."""

from math import ceil

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import pad

BLOCK = 128
"""The longest side of a tile. Weights that a kernel reads tile by tile are padded to a multiple of this side."""


class Put:
    """Copies weights to the device, padded with zeros."""

    def __init__(self, dtype: torch.dtype, device: str) -> None:
        self._dtype = dtype
        self._device = device

    def matrix(self, weight: Float[Tensor, "*taps k n"], rows: int, columns: int) -> Tensor:
        """Copy a factor of a matrix product, padded to (rows, columns)."""
        *_, k, n = weight.shape
        return pad(weight, (0, columns - n, 0, rows - k)).to(self._device, self._dtype).contiguous()

    def vector(self, values: Float[Tensor, "*taps n"], columns: int) -> Tensor:
        """Copy values that are added or multiplied in fp32, padded to this number of columns."""
        return pad(values, (0, columns - values.shape[-1])).to(self._device, torch.float32).contiguous()

    def product(self, weight: Float[Tensor, "*taps k n"], bias: Float[Tensor, " n"], columns: int) -> dict[str, Tensor]:
        """Copy `weight` and `bias` of a matrix product that is computed tile by tile."""
        columns = blocks(columns)
        return {"weight": self.matrix(weight, blocks(weight.shape[-2]), columns), "bias": self.vector(bias, columns)}


def memory_width(channels: int) -> int:
    """Channels of a row in memory, rounded up so that every row is aligned to 16 bytes."""
    return ceil(channels / 8) * 8


def power(channels: int) -> int:
    """The side of a tile for these channels: a power of two, and at least 16, the minimum for matrix units."""
    return max(16, 1 << (channels - 1).bit_length())


def two_tiles(channels: int) -> tuple[int, int]:
    """Sides of two tiles for these channels. The first is the largest power of two they fill. The second can be 0."""
    first = max(16, 1 << (channels.bit_length() - 1))
    return first, power(channels - first) if channels > first else 0


def blocks(channels: int) -> int:
    """The channels, rounded up to whole tiles."""
    return ceil(channels / BLOCK) * BLOCK


def halved(side: int) -> int:
    """A side after a convolution of stride 2."""
    return (side + 1) // 2
