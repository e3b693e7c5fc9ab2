"""Checkpoints: `state.pt` holds everything needed to resume a run. Using the trained model does not require it."""

import hashlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch

from ..errors import InputError, counted, one_line
from ..files import replacing

NEWEST, PREVIOUS = "state.pt", "state.previous.pt"
NAMES = NEWEST, PREVIOUS
"""File names, newest first."""
DAMAGE = (RuntimeError, OSError, EOFError, TypeError, ValueError, KeyError, AttributeError, UnpicklingError)
"""Exceptions that torch raises for damaged files."""


class CheckpointError(InputError):
    """A checkpoint is damaged."""


@dataclass
class Checkpoint:
    """The state needed to resume a run.

    The state of random generators is not needed: the recipe's seed, the epoch and the step determine the learning rate,
    the order of the images and all random numbers (see `loader.seeded`).
    """

    epoch: int
    """Completed epochs."""
    step: int
    """Completed steps of the current epoch."""
    processes: int
    """Number of training processes."""
    precision: str
    model: dict[str, Any]
    ema: dict[str, Any] | None
    optimizer: dict[str, Any]
    scaler: dict[str, Any]
    """State of the loss scaler in fp16; otherwise empty."""
    best_metrics: dict[str, Any]
    """Metrics of best.safetensors, and its `epoch`. Empty before the first evaluation."""
    bad_images: dict[int, str]
    """Bad training images: index and reason."""
    bad_val: dict[int, str]
    """Bad validation images: index and reason."""
    excluded: list[int]
    """Bad training images found before this epoch. The epoch does not load them."""
    loss_sum: float
    """Sum of the losses of this epoch's steps. Each loss is the mean over all processes."""
    seconds: float
    """Time spent on training and evaluation so far."""
    fingerprint: str
    """Fingerprint of the dataset."""

    def differences(self, processes: int, precision: str) -> Iterator[str]:
        """Yield warnings if the run is resumed with a different number of processes or a different precision."""
        if self.processes != processes:
            yield (
                f"the run began with {counted(self.processes, 'process', 'processes')} and resumes with {processes}: "
                "each step uses the same images, but groups them differently for mixup, CutMix and BatchNorm"
            )
        if self.precision != precision:
            yield f"the run began with precision {self.precision} and resumes with precision {precision}"

    def save(self, folder: Path) -> None:
        """Write state.pt atomically, and keep the previous one as state.previous.pt."""
        content = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        newest, previous = (folder / name for name in NAMES)
        with replacing(newest) as temporary:
            torch.save({**content, "digest": _digest(content)}, temporary)
            with suppress(FileNotFoundError):
                newest.replace(previous)

    @classmethod
    def load(cls, folder: Path) -> tuple["Checkpoint | None", list[str]]:
        """Return the newest intact checkpoint (None if no file exists) and the errors of damaged checkpoints.

        Raises:
            CheckpointError: There are checkpoints, but all of them are damaged.
        """
        problems = []
        for path in (folder / name for name in NAMES):
            if not path.is_file():
                continue
            try:
                return cls._read(path), problems
            except CheckpointError as error:
                problems.append(str(error))
        if problems:
            raise CheckpointError(f"nothing to resume from: {'; '.join(problems)}")
        return None, []

    @classmethod
    def _read(cls, path: Path) -> "Checkpoint":
        try:
            content = torch.load(path, map_location="cpu", weights_only=True)
            if content.pop("digest") != _digest(content):
                raise ValueError("its checksum does not match")
            content.pop("best", None)  # earlier versions repeated one of best_metrics
            return cls(**content)
        except DAMAGE as error:
            raise CheckpointError(f"{path} is damaged ({one_line(error, first=True)})") from None


def _digest(content: dict[str, Any]) -> str:
    digest = hashlib.sha256()
    for piece in _pieces(content):
        digest.update(piece)
    return digest.hexdigest()


def _pieces(value: Any) -> Iterator[bytes | memoryview]:
    """The content of a nested value as bytes, in a fixed order."""
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
