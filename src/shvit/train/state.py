"""What the next step depends on, on disk: `state.pt`. For resuming alone; using a model never needs it."""

from dataclasses import dataclass, fields
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch

from ..errors import InputError
from ..files import replacing


class StateError(InputError):
    """A state that cannot be read or continued from."""


@dataclass
class State:
    """Everything but what follows from the recipe's seed, the epoch and the step."""

    epoch: int
    """The epoch in progress, from 0."""
    step: int
    """Steps done in it."""
    model: dict[str, Any]
    ema: dict[str, Any] | None
    optimizer: dict[str, Any]
    best: float
    """Of the headline metric so far; -1 before the first evaluation."""
    best_metrics: dict[str, Any]
    bad_images: dict[int, str]
    """Of training: place and reason."""
    bad_val: dict[int, str]
    excluded: list[int]
    """Bad training images that were known when the epoch began, and so are not in its order."""
    loss_sum: float
    """Over the steps done in the epoch in progress."""
    seconds: float
    """Spent on training and evaluation so far."""
    fingerprint: str
    """Of the data."""

    def save(self, path: Path) -> None:
        """Write whole or not at all."""
        with replacing(path) as temporary:
            torch.save({entry.name: getattr(self, entry.name) for entry in fields(self)}, temporary)

    @classmethod
    def load(cls, path: Path) -> "State":
        """Raises StateError where there is none, or it is damaged."""
        if not path.is_file():
            raise StateError(f"{path}: no such file, so there is nothing to resume")
        try:
            return cls(**torch.load(path, map_location="cpu", weights_only=True))
        except (RuntimeError, OSError, EOFError, TypeError, ValueError, KeyError, UnpicklingError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise StateError(f"{path} is damaged and cannot be resumed: {reason}") from None
