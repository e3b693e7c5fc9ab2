"""Batches of uint8 images, in an order and with random choices that depend on seed, epoch and image alone."""

import random
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from ..errors import InputError
from .decode import MAX_PIXELS, BadImage, decode
from .sources import Split
from .transforms import Transform


@dataclass(frozen=True)
class Batch:
    """Images that could be used, and what became of the others."""

    images: UInt8[Tensor, "b 3 h w"]
    labels: Int64[Tensor, " b"]
    indices: list[int]
    """Place of each image in its split."""
    bad: dict[int, str]
    """Place of each image that was skipped, and why."""

    def __len__(self) -> int:
        return len(self.indices)


@contextmanager
def seeded(*key: int, device: torch.device | None = None) -> Iterator[None]:
    """Python's, numpy's and torch's global generators start from `key` inside, and are as before afterwards.

    Those of torch are the CPU's and, where one is given, the device's.
    """
    seed = int(np.random.SeedSequence(key).generate_state(1)[0])
    states = random.getstate(), np.random.get_state()
    others = [device] if device is not None and device.type != "cpu" else []
    with torch.random.fork_rng(devices=others, device_type=others[0].type if others else "cuda"):
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed) if others else torch.default_generator.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])


class ImageDataset(Dataset):
    """Item (epoch, index) is an image, label and index; or the reason why there is none."""

    def __init__(self, split: Split, transform: Transform, seed: int, max_pixels: int) -> None:
        self.split = split
        self.transform = transform
        self.seed = seed
        self.max_pixels = max_pixels

    def __getitem__(self, key: tuple[int, int]) -> tuple[UInt8[Tensor, "3 h w"], int, int] | tuple[str, int]:
        epoch, index = key
        try:
            image = decode(self.split.images[index], self.max_pixels)
        except BadImage as error:
            return str(error), index
        with seeded(self.seed, epoch, index):
            return self.transform(image), self.split.labels[index], index


class EpochSampler(Sampler[list[tuple[int, int]]]):
    """Batches of (epoch, index); shuffled by (seed, epoch), or in order."""

    def __init__(self, count: int, batch_size: int, seed: int, shuffle: bool, drop_last: bool) -> None:
        self.allowed = np.arange(count)
        self.batch_size = batch_size
        self.seed = seed
        self.shuffle = shuffle
        self.drop_last = drop_last
        self.epoch = 0
        self.start = 0
        """Batches of the epoch to leave out, because they were done before."""

    def exclude(self, indices: set[int]) -> None:
        """Leave these images out from the next epoch on."""
        self.allowed = np.array([index for index in self.allowed if index not in indices])

    def __len__(self) -> int:
        count = len(self.allowed)
        return count // self.batch_size if self.drop_last else -(-count // self.batch_size)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        order = self.allowed
        if self.shuffle:
            order = np.random.default_rng((self.seed, self.epoch)).permutation(order)
        for start in range(self.start * self.batch_size, len(self) * self.batch_size, self.batch_size):
            yield [(self.epoch, int(index)) for index in order[start : start + self.batch_size]]


class Loader:
    """Iterates one epoch of batches; `epoch` says which. Worker processes are kept between epochs.

    Args:
        split: The images.
        transform: Applied to each decoded image, with the random generators seeded for (seed, epoch, index).
        batch_size: Images a batch. A batch with bad images in it is smaller.
        workers: Processes that decode; 0 decodes in this one. The batches are the same, whatever the number.
        shuffle: A new order every epoch, and no last batch smaller than the others; else in order, and all of them.
        seed: Of the order and of the transforms' choices.
        max_pixels: Images with more are bad.
    """

    def __init__(
        self,
        split: Split,
        transform: Transform,
        batch_size: int,
        workers: int = 0,
        shuffle: bool = False,
        seed: int = 0,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        if batch_size < 1 or workers < 0:
            raise InputError(f"batch size must be at least 1 and workers at least 0, got {batch_size} and {workers}")
        self.sampler = EpochSampler(len(split), batch_size, seed, shuffle, drop_last=shuffle)
        self._loader = DataLoader(
            ImageDataset(split, transform, seed, max_pixels),
            batch_sampler=self.sampler,  # pyright: ignore[reportArgumentType]: keys are (epoch, index) here
            num_workers=workers,
            collate_fn=collate,
            persistent_workers=workers > 0,
            worker_init_fn=_init_worker,
        )

    def __len__(self) -> int:
        return len(self.sampler)

    @property
    def images(self) -> int:
        """Images in an epoch."""
        return len(self.sampler.allowed)

    def epoch(self, epoch: int) -> Iterator[Batch]:
        self.sampler.epoch = epoch
        return iter(self._loader)

    def __iter__(self) -> Iterator[Batch]:
        return self.epoch(0)


def collate(items: list[tuple[Tensor, int, int] | tuple[str, int]]) -> Batch:
    good = [item for item in items if len(item) == 3]
    bad = {index: reason for item in items if len(item) == 2 for reason, index in [item]}
    images = torch.stack([image for image, _, _ in good]) if good else torch.empty(0, 3, 0, 0, dtype=torch.uint8)
    return Batch(images, torch.tensor([label for _, label, _ in good]), [index for _, _, index in good], bad)


def _init_worker(_: int) -> None:
    """Ctrl-C is for the process that trains; it ends its workers itself."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)


def probe(split: Split, count: int, seed: int, max_pixels: int = MAX_PIXELS) -> dict[int, str]:
    """Decode `count` images drawn by seed: the bad among them, and why. All images where there are no more."""
    indices = random.Random(seed).sample(range(len(split)), min(count, len(split)))
    bad = {}
    for index in sorted(indices):
        try:
            decode(split.images[index], max_pixels)
        except BadImage as error:
            bad[index] = str(error)
    return bad
