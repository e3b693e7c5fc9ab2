"""Networks of the paper's experiments, by name, such as `study/s3-multi-head`. The names work like other network names.

Each is a variant of SHViT S1 to S4 with other stages or another token mixer.
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
"""The paper attends to 1/4.67 of the channels."""


def network(name: str) -> tuple[Config, Mixer]:
    """Configuration and mixer of `study/SIZE-KIND`. Raises InputError for an unknown name."""
    size, _, kind = name.partition("-")
    if size not in SIZES or kind not in KINDS:
        raise InputError(f"unknown network study/{name}. Use study/SIZE-KIND with {_allowed()}")
    make, mixer = KINDS[kind]
    return make(SIZES[size]), mixer


def _allowed() -> str:
    return f"SIZE from {', '.join(SIZES)} and KIND from {', '.join(KINDS)}"


def _no_attention(config: Config) -> Config:
    return _with_stages(config, attended=lambda stage: None)


def _ratio(part: float) -> Callable[[Config], Config]:
    return lambda config: _with_stages(config, attended=lambda stage: stage.attended and round(stage.width / part))


def _early_attention(config: Config) -> Config:
    """Attention in stage 1 as well."""
    return _with_stages(config, attended=lambda stage: stage.attended or round(stage.width / RATIO))


def _four_stages(config: Config) -> Config:
    """A stem of stride 4 and four stages.

    The widths at 14x14 and 7x7 tokens are the variant's; earlier stages are half as wide each. The new first stage has
    as many blocks as the variant's first stage. The last two stages have attention.
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
"""How to make each kind from a variant. The ratio 1/4.67 and design (c) are the variants themselves."""
