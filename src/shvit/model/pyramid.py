"""A feature pyramid: maps with equal widths and doubling strides, from the three maps of a backbone.

Source: T.-Y. Lin et al., "Feature Pyramid Networks for Object Detection", CVPR 2017. Levels finer than the
backbone's maps are as in the SHViT paper (CVPR 2024, section on downstream tasks).
"""

from collections.abc import Sequence
from itertools import pairwise
from math import log2

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import interpolate

from ..errors import InputError

WIDTH = 256


class Pyramid(nn.Module):
    """Adds each map, upsampled, to the next finer map. Levels finer than the backbone's maps come from 2x2
    transposed convolutions. Coarser levels come from 3x3 convolutions of stride 2.

    Args:
        widths: Channels of the backbone's maps, fine to coarse.
        given: Strides of the backbone's maps, each twice the previous one.
        wanted: Strides of the pyramid's levels, each twice the previous one. They include the given strides.
        coarsest_from_input: Compute the first coarser level from the backbone's last map, as in the authors'
            RetinaNet, instead of from the last smoothed level.

    Raises:
        InputError: A stride in `given` is not in `wanted`, or is not twice the previous one.
    """

    def __init__(
        self, widths: Sequence[int], given: Sequence[int], wanted: Sequence[int], coarsest_from_input: bool = False
    ) -> None:
        super().__init__()
        if not set(given) <= set(wanted) or any(2 * fine != coarse for fine, coarse in pairwise(given)):
            raise InputError(
                f"detectors need a backbone whose maps have strides among {', '.join(map(str, wanted))}, each twice "
                f"the previous one; got {', '.join(map(str, given))}"
            )
        finer, coarser = round(log2(given[0] / wanted[0])), round(log2(wanted[-1] / given[-1]))
        self.lateral = nn.ModuleList(nn.Conv2d(width, WIDTH, 1) for width in widths)
        self.finer = nn.ModuleList(nn.ConvTranspose2d(WIDTH, WIDTH, 2, 2) for _ in range(finer))
        self.smooth = nn.ModuleList(nn.Conv2d(WIDTH, WIDTH, 3, padding=1) for _ in range(finer + len(widths)))
        self.coarsest_from_input = coarsest_from_input
        sources = [widths[-1] if coarsest_from_input else WIDTH, *[WIDTH] * coarser][:coarser]
        self.coarser = nn.ModuleList(nn.Conv2d(source, WIDTH, 3, stride=2, padding=1) for source in sources)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
                nn.init.kaiming_uniform_(module.weight, a=1)
                nn.init.zeros_(module.bias)  # pyright: ignore[reportArgumentType]: each has a bias

    def forward(self, maps: Sequence[Float[Tensor, "b c h w"]]) -> list[Float[Tensor, "b 256 h2 w2"]]:
        """One map for each wanted stride, fine to coarse."""
        *others, last = [lateral(x) for lateral, x in zip(self.lateral, maps, strict=True)]
        merged = [last]
        for x in reversed(others):
            merged.insert(0, x + interpolate(merged[0], x.shape[2:], mode="nearest"))
        for finer in self.finer:
            merged.insert(0, finer(merged[0]))
        levels = [smooth(x) for smooth, x in zip(self.smooth, merged, strict=True)]
        source = maps[-1] if self.coarsest_from_input else levels[-1]
        for coarser in self.coarser:
            source = coarser(source)
            levels.append(source)
        return levels
