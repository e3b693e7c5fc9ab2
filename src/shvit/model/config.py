"""The sizes of the four published networks, one row each."""

from dataclasses import dataclass

from ..errors import InputError

MAX_WIDTH, MAX_DEPTH, MAX_STAGES, MAX_IMAGE_SIZE = 16384, 256, 8, 8192
"""Limits far above the sizes of real networks. They keep damaged files from requesting too much memory."""


@dataclass(frozen=True)
class Stage:
    """One stage: `depth` blocks on maps of `width` channels."""

    width: int
    depth: int
    attended: int | None = None
    """Channels of the attention head (the paper's C_p); None for a stage without attention."""


@dataclass(frozen=True)
class Config:
    """The sizes of an SHViT, except the numbers of classes and input channels."""

    stages: tuple[Stage, ...]
    image_size: int = 224
    """Side of the square images that the network was designed for, in pixels; other sizes work as well."""
    stem: int = 4
    """Number of convolutions of stride 2 before the first stage. With 4, the first map has stride 16."""

    def __post_init__(self) -> None:
        if not 1 <= len(self.stages) <= MAX_STAGES:
            raise InputError(f"an SHViT has 1 to {MAX_STAGES} stages, got {len(self.stages)}")
        sizes = [self.image_size, self.stem]
        for stage in self.stages:
            sizes += [stage.width, stage.depth] + ([] if stage.attended is None else [stage.attended])
        if not all(type(size) is int for size in sizes):
            raise InputError(f"sizes of an SHViT must be whole numbers, got {self}")
        if not 32 <= self.image_size <= MAX_IMAGE_SIZE:
            raise InputError(f"image_size must be 32 to {MAX_IMAGE_SIZE} pixels, got {self.image_size}")
        if not 1 <= self.stem <= 5:
            raise InputError(f"a stem has 1 to 5 convolutions, got {self.stem}")
        if self.stages[0].width % self.stem_divisor or self.stages[0].width < self.stem_divisor:
            raise InputError(
                f"the first stage's width must be a multiple of {self.stem_divisor}, got {self.stages[0].width}"
            )
        for stage in self.stages:
            if not (1 <= stage.width <= MAX_WIDTH and 0 <= stage.depth <= MAX_DEPTH):
                raise InputError(
                    f"a stage is 1 to {MAX_WIDTH} channels wide and 0 to {MAX_DEPTH} blocks deep, got {stage}"
                )
            if stage.attended is not None and not 0 < stage.attended < stage.width:
                raise InputError(f"attended channels must lie between 1 and width - 1, got {stage}")

    @property
    def stem_divisor(self) -> int:
        """Width of the first stage, divided by the width of the stem's first convolution."""
        return 2 ** (self.stem - 1)


VARIANTS: dict[str, Config] = {
    "shvit_s1": Config((Stage(128, 2), Stage(224, 4, attended=48), Stage(320, 5, attended=68))),
    "shvit_s2": Config((Stage(128, 2), Stage(308, 4, attended=66), Stage(448, 5, attended=96))),
    "shvit_s3": Config((Stage(192, 3), Stage(352, 5, attended=75), Stage(448, 5, attended=96))),
    "shvit_s4": Config((Stage(224, 4), Stage(336, 7, attended=72), Stage(448, 6, attended=96)), image_size=256),
}
