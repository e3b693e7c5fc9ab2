"""Networks of the paper's experiments, by name, such as `study/s3-multi-head`. The names work like other network names.

Each is a variant of SHViT S1 to S4 with other stages or another token mixer.
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
"""The paper attends to 1/4.67 of the channels."""


def network(name: str) -> tuple[Config, Mixer]:
    """Configuration and mixer of `study/SIZE-KIND`. Raises InputError for an unknown name."""
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
    """Changes the number of attended channels in each stage."""
    return lambda config: replace(
        config, stages=tuple(replace(stage, attended=attended(stage)) for stage in config.stages)
    )


def _four_stages(config: Config) -> Config:
    """A stem of stride 4 and four stages. The last two have attention, and the widths of the variant's first two."""
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
"""How to make each kind from a variant. The ratio 1/4.67 and design (c) are the variants themselves."""
