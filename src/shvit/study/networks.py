"""Networks of the paper's experiments. Every command accepts their names, such as `study/s3-multi-head`.

Each network is SHViT S1, S2, S3 or S4 with different stages or a different token mixer.
"""

from collections.abc import Callable
from dataclasses import replace

from ..errors import InputError
from ..model.attention import SingleHeadAttention
from ..model.config import VARIANTS, Config, Stage
from ..model.shvit import Mixer
from .mixers import BottleneckAttention, all_channels, multi_head

SIZES = {name.removeprefix("shvit_"): config for name, config in VARIANTS.items()}
RATIO = 4.67
"""The single head of the paper attends over 1/4.67 of the channels."""


def network(name: str) -> tuple[Config, Mixer]:
    """Return the configuration and mixer of `study/NAME`. NAME is SIZE-KIND. Raises InputError for an unknown name."""
    size, _, kind = name.partition("-")
    if size not in SIZES or kind not in NETWORK_KINDS:
        raise InputError(
            f"unknown network study/{name}. Use study/SIZE-KIND with SIZE from {', '.join(SIZES)} and KIND from "
            f"{', '.join(NETWORK_KINDS)}"
        )
    make, mixer = NETWORK_KINDS[kind]
    return make(SIZES[size]), mixer


def _unchanged(config: Config) -> Config:
    return config


def _attending(attended: Callable[[Stage], int | None]) -> Callable[[Config], Config]:
    """Make a function that changes the number of attended channels in each stage of a configuration."""
    return lambda config: replace(
        config, stages=tuple(replace(stage, attended=attended(stage)) for stage in config.stages)
    )


def _four_stages(config: Config) -> Config:
    """Use a stem of stride 4 and four stages. Stages 3 and 4 have attention and the old widths of stages 1 and 2."""
    first, second, third = config.stages
    stages = (
        Stage(first.width // 4, first.depth),
        Stage(first.width // 2, first.depth),
        Stage(first.width, second.depth, round(first.width / RATIO)),
        Stage(second.width, third.depth, second.attended),
    )
    return replace(config, stages=stages, stem=2)


NETWORK_KINDS: dict[str, tuple[Callable[[Config], Config], Mixer]] = {
    "no-attention": (_attending(lambda stage: None), SingleHeadAttention),
    "multi-head": (_unchanged, multi_head),
    "ratio-8": (_attending(lambda stage: stage.attended and round(stage.width / 8)), SingleHeadAttention),
    "ratio-2": (_attending(lambda stage: stage.attended and round(stage.width / 2)), SingleHeadAttention),
    "bottleneck": (_unchanged, BottleneckAttention),
    "all-channels": (_unchanged, all_channels),
    "four-stages": (_four_stages, SingleHeadAttention),
    "early-attention": (_attending(lambda stage: stage.attended or round(stage.width / RATIO)), SingleHeadAttention),
}
"""For each KIND: how to change the configuration of S1 to S4, and the token mixer. The ratio 1/4.67 and design (c) have
no KIND, because S1 to S4 have them already."""
