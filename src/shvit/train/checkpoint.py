"""What the next step depends on, on disk: `state.pt`. For resuming alone; using a model never needs it."""

import hashlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch

from ..errors import InputError, one_line
from ..files import replacing

NEWEST, PREVIOUS = "state.pt", "state.previous.pt"
NAMES = NEWEST, PREVIOUS


class StateError(InputError):
    """A state that cannot be read or continued from."""


@dataclass
class State:
    """Everything but what follows from the recipe's seed, the epoch and the step.

    These are the rate of the schedule, the order of the images, and every random choice: `loader.seeded` sets the
    generators anew for each image and each step, so that there are no states of generators to keep.
    """

    epoch: int
    """The epoch in progress, from 0."""
    step: int
    """Steps done in it."""
    processes: int
    """That trained together."""
    precision: str
    """They computed in."""
    model: dict[str, Any]
    ema: dict[str, Any] | None
    optimizer: dict[str, Any]
    scaler: dict[str, Any]
    """Of the loss, in fp16; else empty."""
    best: float
    """Of the headline metric so far; -1 before the first evaluation."""
    best_metrics: dict[str, Any]
    bad_images: dict[int, str]
    """Of training: place and reason."""
    bad_val: dict[int, str]
    excluded: list[int]
    """Bad training images that were known when the epoch began, and so are not in its order."""
    loss_sum: float
    """Over the steps done in the epoch in progress; the mean of all processes."""
    seconds: float
    """Spent on training and evaluation so far."""
    fingerprint: str
    """Of the data."""

    def save(self, folder: Path) -> None:
        """Write state.pt, whole or not at all, and keep the one that was there as state.previous.pt."""
        content = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        newest, previous = (folder / name for name in NAMES)
        with replacing(newest) as temporary:
            torch.save({**content, "digest": _digest(content)}, temporary)
            with suppress(FileNotFoundError):
                newest.replace(previous)

    @classmethod
    def load(cls, folder: Path) -> tuple["State | None", list[str]]:
        """The newest sound state, and what is wrong with those that are not; None before the first was written.

        Raises:
            StateError: There are states, and none is sound.
        """
        problems = []
        for path in (folder / name for name in NAMES):
            if not path.is_file():
                continue
            try:
                return cls._read(path), problems
            except StateError as error:
                problems.append(str(error))
        if problems:
            raise StateError(f"nothing to resume from: {'; '.join(problems)}")
        return None, []

    @classmethod
    def _read(cls, path: Path) -> "State":
        try:
            content = torch.load(path, map_location="cpu", weights_only=True)
            if content.pop("digest") != _digest(content):
                raise ValueError("its checksum differs")
            return cls(**content)
        except (
            RuntimeError,
            OSError,
            EOFError,
            TypeError,
            ValueError,
            KeyError,
            AttributeError,
            UnpicklingError,
        ) as error:
            reason = one_line(error, first=True)
            raise StateError(f"{path} is damaged ({reason})") from None


def _digest(content: dict[str, Any]) -> str:
    digest = hashlib.sha256()
    for piece in _pieces(content):
        digest.update(piece)
    return digest.hexdigest()


def _pieces(value: Any) -> Iterator[bytes | memoryview]:
    """All that a nested value holds, as bytes, in one order."""
    if isinstance(value, torch.Tensor):
        yield f"{value.dtype} {tuple(value.shape)}\n".encode()
        yield value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data
    elif isinstance(value, dict):
        for key, entry in value.items():
            yield f"{key!r}:".encode()
            yield from _pieces(entry)
    elif isinstance(value, list | tuple):
        yield f"{len(value)}[".encode()
        for entry in value:
            yield from _pieces(entry)
    else:
        yield f"{value!r}\n".encode()
