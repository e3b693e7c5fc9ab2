"""The networks that the paper's experiments compare, by name: `study/s3-multi-head` goes where a network's name does.

Each is an SHViT of other sizes, or with another token mixer; of S1 to S4, as the name begins.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from ..errors import InputError
from ..model.attention import SingleHeadAttention
from ..model.config import VARIANTS, Config, Stage
from ..model.shvit import Mixer
from .mixers import BottleneckAttention, all_channels, multi_head

SIZES = {name.removeprefix("shvit_"): config for name, config in VARIANTS.items()}
RATIO = 4.67
"""The paper's: a head has this part of the channels."""


def network(name: str) -> tuple[Config, Mixer]:
    """Sizes and mixer of `study/NAME`, NAME being SIZE-KIND. Raises InputError naming what is allowed."""
    size, _, kind = name.partition("-")
    if size not in SIZES or kind not in KINDS:
        raise InputError(f"unknown network study/{name}: allowed is study/SIZE-KIND, {_allowed()}")
    make, mixer = KINDS[kind]
    return make(SIZES[size]), mixer


def _allowed() -> str:
    return f"SIZE one of {', '.join(SIZES)} and KIND one of {', '.join(KINDS)}"


def _no_attention(config: Config) -> Config:
    return _with_stages(config, attended=lambda stage: None)


def _ratio(part: float) -> Callable[[Config], Config]:
    return lambda config: _with_stages(config, attended=lambda stage: stage.attended and round(stage.width / part))


def _early_attention(config: Config) -> Config:
    """Attention in stage 1, too."""
    return _with_stages(config, attended=lambda stage: stage.attended or round(stage.width / RATIO))


def _four_stages(config: Config) -> Config:
    """A stem of stride 4 and four stages: as wide on maps of 14x14 and 7x7 as the variant, half as wide before each.

    As many blocks, and as many more on the first maps as in the variant's first stage; attention in the last two
    stages, as there.
    """
    first, second, third = config.stages
    stages = (
        Stage(first.width // 4, first.depth),
        Stage(first.width // 2, first.depth),
        Stage(first.width, second.depth, round(first.width / RATIO)),
        Stage(second.width, third.depth, second.attended),
    )
    return replace(config, stages=stages, stem=2)


def _with_stages(config: Config, **changes: Callable[[Stage], Any]) -> Config:
    stages = (replace(stage, **{name: new(stage) for name, new in changes.items()}) for stage in config.stages)
    return replace(config, stages=tuple(stages))


KINDS: dict[str, tuple[Callable[[Config], Config], Mixer]] = {
    "no-attention": (_no_attention, SingleHeadAttention),
    "multi-head": (lambda config: config, multi_head),
    "ratio-8": (_ratio(8), SingleHeadAttention),
    "ratio-2": (_ratio(2), SingleHeadAttention),
    "bottleneck": (lambda config: config, BottleneckAttention),
    "all-channels": (lambda config: config, all_channels),
    "four-stages": (_four_stages, SingleHeadAttention),
    "early-attention": (_early_attention, SingleHeadAttention),
}
"""How each is made from a variant. The paper's ratio of 1/4.67 and its design (c) are the variants themselves."""
