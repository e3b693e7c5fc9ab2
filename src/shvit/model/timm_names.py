"""Convert the names of SHViT's weights from and to timm's."""

import re

from torch import Tensor

from ..errors import InputError

StateDict = dict[str, Tensor]

_FEED_FORWARD = {"expand": "pw1", "project": "pw2"}
_PARTS = {
    **{f"stem.{index}": f"patch_embed.{index}" for index in (0, 2, 4, 6)},
    "head": "head",
    "distillation_head": "head_dist",
    "downsample.local_before.branch": "downsample.0.m",
    **{f"downsample.feed_forward_before.branch.{a}": f"downsample.1.m.{b}" for a, b in _FEED_FORWARD.items()},
    "downsample.reduce.expand": "downsample.2.conv1",
    "downsample.reduce.depthwise": "downsample.2.conv2",
    "downsample.reduce.squeeze_excite.reduce": "downsample.2.se.fc1",
    "downsample.reduce.squeeze_excite.expand": "downsample.2.se.fc2",
    "downsample.reduce.project": "downsample.2.conv3",
    "downsample.local_after.branch": "downsample.3.m",
    **{f"downsample.feed_forward_after.branch.{a}": f"downsample.4.m.{b}" for a, b in _FEED_FORWARD.items()},
    "local.branch": "conv.m",
    "mixer.branch.norm": "mixer.m.pre_norm",
    "mixer.branch.qkv": "mixer.m.qkv",
    "mixer.branch.project": "mixer.m.proj.1",
    **{f"feed_forward.branch.{a}": f"ffn.m.{b}" for a, b in _FEED_FORWARD.items()},
}
"""Parts of a network, within a stage or block: name in shvit -> name in timm."""

_LEAVES = {"conv": "c", "norm": "bn", "linear": "l"}
"""Layers within a part: name in shvit -> name in timm. Other names are the same."""

_SCOPE = r"(?P<scope>stages\.\d+\.(?:blocks\.\d+\.)?|)"


def from_timm(state_dict: StateDict) -> StateDict:
    """Rename the weights of timm's `shvit_*` models to shvit's names. Raises InputError for an unknown key."""
    parts, leaves = ({theirs: ours for ours, theirs in names.items()} for names in (_PARTS, _LEAVES))
    return {_rename(key, parts, leaves): value for key, value in state_dict.items()}


def to_timm(state_dict: StateDict) -> StateDict:
    """Inverse of `from_timm`."""
    return {_rename(key, _PARTS, _LEAVES): value for key, value in state_dict.items()}


def _rename(key: str, parts: dict[str, str], leaves: dict[str, str]) -> str:
    scope = re.match(_SCOPE, key)
    assert scope is not None
    rest = key[scope.end() :]
    for part, other in parts.items():
        if rest.startswith(f"{part}."):
            leaf, dot, tail = rest[len(part) + 1 :].partition(".")
            return f"{scope['scope']}{other}.{leaves.get(leaf, leaf)}{dot}{tail}"
    raise InputError(f"SHViT has no weight {key!r}")
