"""Rename the weights of the authors' code to shvit's names."""

import re
from typing import Any

from .timm_names import StateDict, from_timm

DOWNSAMPLE = {"0": "0.0", "1": "0.1", "2": "1", "3": "2.0", "4": "2.1"}
"""Parts of a downsample block: number in timm -> name within the authors' `blocks2` or `blocks3`."""


def from_official(state_dict: dict[str, Any]) -> StateDict:
    """Rename the weights of the authors' code to shvit's names.

    Also accepts a whole checkpoint of the authors, with the weights in the entry `model`. Raises InputError for an
    unknown key.
    """
    return from_timm({_to_timm(key): value for key, value in state_dict.get("model", state_dict).items()})


def _to_timm(key: str) -> str:
    match = re.match(r"blocks(\d)\.(.*)", key)
    if match is None:
        return key
    stage, rest = int(match[1]) - 1, match[2]
    if stage > 0:
        for number, authors in DOWNSAMPLE.items():
            if rest.startswith(f"{authors}."):
                return f"stages.{stage}.downsample.{number}.{rest[len(authors) + 1 :]}"
    index, _, rest = rest.partition(".")
    return f"stages.{stage}.blocks.{int(index) - (3 if stage > 0 else 0)}.{rest}"
