"""Batches of uint8 images, in an order and with random choices that depend on seed, epoch and image alone."""

import os
import random
import shutil
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate, get_worker_info

from ..errors import Failure, InputError, check_at_least
from .decode import MAX_PIXELS, BadImage, ImageInput, decode
from .opencv import use_one_thread
from .transforms import on_canvas

Key = tuple[int, int, int]
"""Which view of which image, and which of its copies in the epoch: what its random choices follow from."""

SHARED_MEMORY = Path("/dev/shm")
"""Where workers leave what they have read, on Linux."""
SHARED_BYTES = 2**17
"""The least that a worker takes of it before it has read anything: a page for each of its locks."""
NO_SHARED_MEMORY = (
    f"no space left on {SHARED_MEMORY} for what data-loading workers read: fewer --workers take less, --workers 0 "
    "takes none; containers have more with --shm-size"
)

WINDOW = 16
"""Shards whose images are shuffled among one another; as many as must be at hand at once."""


@dataclass(frozen=True)
class Batch:
    """Images that could be used, and what became of the others."""

    images: UInt8[Tensor, "b 3 h w"]
    targets: Any
    """What is to be learnt from each image: int64 labels, or a list of what the split's `example` gives."""
    indices: list[int]
    """Place of each image in its split."""
    bad: dict[int, str]
    """Place of each image that was skipped, and why."""
    view: int = 0
    """Which of the images' augmented versions these are: the epoch, or less where there are fewer views than epochs."""

    def __len__(self) -> int:
        return len(self.indices)

    def filled(self, size: int) -> "Batch":
        """One that bad images made smaller, filled up with its own first images, so that all steps are alike."""
        if len(self) == size:
            return self
        picked = torch.arange(size) % len(self)
        places = picked.tolist()
        given = self.targets
        targets = given[picked] if isinstance(given, Tensor) else [given[place] for place in places]
        return replace(self, images=self.images[picked], targets=targets, indices=[self.indices[i] for i in places])

    def pin_memory(self) -> "Batch":
        """For torch's loader: copies to a GPU need not wait for one another."""
        targets = self.targets.pin_memory() if isinstance(self.targets, Tensor) else self.targets
        return replace(self, images=self.images.pin_memory(), targets=targets)


@contextmanager
def seeded(*key: int, device: torch.device | None = None) -> Iterator[None]:
    """Python's, numpy's and torch's global generators start from `key` inside, and are as before afterwards.

    Those of torch are the CPU's and, where one is given, the device's.
    """
    states = random.getstate(), np.random.get_state()
    others = [device] if device is not None and device.type != "cpu" else []
    with torch.random.fork_rng(devices=others, device_type=others[0].type if others else "cuda"):
        try:
            seed(*key, everywhere=bool(others))
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])


def seed(*key: int, everywhere: bool = False) -> None:
    """Start Python's, numpy's and torch's global generators, those of the CPU or of all devices, from `key`."""
    number = int(np.random.SeedSequence(key).generate_state(1)[0])
    random.seed(number)
    np.random.seed(number)
    torch.manual_seed(number) if everywhere else torch.default_generator.manual_seed(number)


class Examples(Protocol):
    """Images in a fixed order, with what is to be learnt from them: a `Split`, or `CocoSplit`."""

    @property
    def shards(self) -> np.ndarray | None:
        """As of a `Split`."""
        ...

    def __len__(self) -> int: ...

    def example(self, index: int, read: Any) -> tuple[UInt8[Tensor, "3 h w"], Any]:
        """What `read` makes of an image, and its target. Raises BadImage."""
        ...

    def source(self, index: int) -> ImageInput:
        """What to decode. Raises BadImage where it cannot be had."""
        ...


class ImageDataset(Dataset):
    """Item (view, index, copy) is an image, its target and key; or the reason why there is none."""

    def __init__(self, split: Examples, read: Any, seed: int) -> None:
        self.split = split
        self.read = read
        self.seed = seed

    def __getitem__(self, key: Key) -> tuple[UInt8[Tensor, "3 h w"], Any, Key] | tuple[str, Key]:
        if get_worker_info() is None:
            with seeded(self.seed, *key):
                return self._read(key)
        seed(self.seed, *key)  # a worker's generators are nobody else's: nothing to restore
        return self._read(key)

    def _read(self, key: Key) -> tuple[UInt8[Tensor, "3 h w"], Any, Key] | tuple[str, Key]:
        _, index, _ = key
        try:
            return *self.split.example(index, self.read), key
        except BadImage as error:
            return str(error), key


@dataclass(frozen=True)
class Share:
    """The part of every batch that one of several processes takes, and in how many pieces."""

    rank: int = 0
    ranks: int = 1
    pieces: int = 1

    def of(self, batch: np.ndarray) -> list[np.ndarray]:
        return [batch[self.rank :: self.ranks][piece :: self.pieces] for piece in range(self.pieces)]


class EpochSampler(Sampler[list[Key]]):
    """Pieces of batches of keys; shuffled by (seed, epoch), or in order.

    Args:
        split: The images; those of few shards stay together in the order where it says in which shard they are.
        batch_size: Images a batch, over all processes and pieces.
        seed: Of the order.
        shuffle: Whether there is a new order every epoch, and no last batch smaller than the others.
        share: What of each batch is yielded here.
        repeats: How often an image comes in an epoch, which then has as many times fewer images (M. Berman et al.,
            "MultiGrain", 2019; as DeiT trains).
        views: Augmented versions of each image; None for a new one every epoch.
    """

    def __init__(
        self,
        split: Examples,
        batch_size: int,
        seed: int = 0,
        shuffle: bool = False,
        share: Share | None = None,
        repeats: int = 1,
        views: int | None = None,
    ) -> None:
        self.split = split
        self.allowed = np.arange(len(split))
        self.batch_size = batch_size
        self.seed = seed
        self.shuffle = shuffle
        self.share = share or Share()
        self.repeats = repeats
        self.views = views
        self.epoch = 0
        self.start = 0
        """Batches of the epoch to leave out, because they were done before."""

    def exclude(self, indices: set[int]) -> None:
        """Leave these images out from the next epoch on."""
        self.allowed = np.setdiff1d(self.allowed, np.fromiter(indices, np.int64, len(indices)))

    @property
    def batches(self) -> int:
        """In an epoch, those before `start` included."""
        count = len(self.allowed)
        return count // self.batch_size if self.shuffle else -(-count // self.batch_size)

    def __len__(self) -> int:
        return (self.batches - self.start) * self.share.pieces

    def __iter__(self) -> Iterator[list[Key]]:
        order = self._order()
        copies = np.arange(len(order)) % self.repeats
        view = self.epoch % self.views if self.views else self.epoch
        for batch in range(self.start, self.batches):
            places = np.arange(batch * self.batch_size, min((batch + 1) * self.batch_size, len(order)))
            for piece in self.share.of(places):
                yield [(view, int(order[place]), int(copies[place])) for place in piece]

    def _order(self) -> np.ndarray:
        if not self.shuffle:
            return self.allowed
        generator = np.random.default_rng((self.seed, self.epoch))
        if self.split.shards is None:
            order = generator.permutation(self.allowed)
        else:
            shards = self.split.shards[self.allowed]
            turns = generator.permutation(int(shards.max(initial=0)) + 1) // WINDOW
            order = self.allowed[np.lexsort((generator.random(len(shards)), turns[shards]))]
        return order.repeat(self.repeats)[: len(order)]


class Loader:
    """Iterates one epoch of batches; `epoch` says which. Worker processes are kept between epochs.

    Args:
        split: The images.
        read: Makes a tensor of each, in the way that the split's `example` uses it (of a `Split`: a `Reader`), with
            the random generators seeded for (seed, view, image, copy).
        batch_size: Images a batch. A batch with bad images in it is smaller.
        workers: Processes that decode; 0 decodes in this one. The batches are the same, whatever the number.
        shuffle: A new order every epoch, and no last batch smaller than the others; else in order, and all of them.
        seed: Of the order and of the random choices.
        share: What of each batch is wanted here, and in how many pieces; default: all, in one.
        repeats: How often an image comes in an epoch.
        views: Augmented versions of each image; None for a new one every epoch.
        pinned: Whether batches are to lie in memory that a GPU copies from by itself.
    """

    def __init__(
        self,
        split: Examples,
        read: Any,
        batch_size: int,
        workers: int = 0,
        shuffle: bool = False,
        seed: int = 0,
        share: Share | None = None,
        repeats: int = 1,
        views: int | None = None,
        pinned: bool = False,
    ) -> None:
        check_at_least(1, batch_size=batch_size)
        check_at_least(0, workers=workers)
        self.sampler = EpochSampler(split, batch_size, seed, shuffle, share, repeats, views)
        self._loader = DataLoader(
            ImageDataset(split, read, seed),
            batch_sampler=self.sampler,  # pyright: ignore[reportArgumentType]: keys are (view, index, copy) here
            num_workers=workers,
            collate_fn=collate,
            persistent_workers=workers > 0,
            pin_memory=pinned,
            worker_init_fn=_init_worker,
        )

    def __len__(self) -> int:
        """Batches in an epoch, each of as many pieces as the share has."""
        return self.sampler.batches

    @property
    def images(self) -> int:
        """Images in an epoch."""
        return len(self.sampler.allowed)

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """The batches of one epoch. Raises Failure where there is no memory to share with workers."""
        self.sampler.epoch = epoch
        needed = SHARED_BYTES * self._loader.num_workers
        if needed and SHARED_MEMORY.is_dir() and shutil.disk_usage(SHARED_MEMORY).free < needed:
            raise Failure(NO_SHARED_MEMORY)
        return iter(self._loader)

    def __iter__(self) -> Iterator[Batch]:
        return self.epoch(0)


@contextmanager
def worker_death_as_failure() -> Iterator[None]:
    """Inside, a data-loading worker that ends is a Failure, and an error in a worker keeps its one-line message.

    torch raises the former at any moment, not only when a batch is asked for.
    """
    try:
        yield
    except (RuntimeError, InputError, OSError) as error:
        text = str(error).strip()
        if "shared memory" in text and ("No space left" in text or "Bus error" in text):
            raise Failure(NO_SHARED_MEMORY) from error
        if "DataLoader worker (pid" in text:
            killed = "killed by signal" in text
            hint = "fewer --workers take less memory" if killed else "--workers 0 shows why"
            raise Failure(f"a data-loading worker {'was killed' if killed else 'ended'}: {hint} ({text})") from error
        if not isinstance(error, Failure | InputError | OSError) or "in DataLoader worker process" not in text:
            raise
        reason = text.splitlines()[-1].partition(": ")[2]  # below the worker's traceback
        raise (InputError if isinstance(error, InputError) else Failure)(reason) from error


def collate(items: list[tuple[Tensor, Any, Key] | tuple[str, Key]]) -> Batch:
    good = [item for item in items if len(item) == 3]
    bad = {key[1]: reason for item in items if len(item) == 2 for reason, key in [item]}
    images = stack([image for image, _, _ in good]) if good else torch.empty(0, 3, 0, 0, dtype=torch.uint8)
    view = items[0][-1][0] if items else 0
    targets: Any = [target for _, target, _ in good]
    if all(isinstance(target, int) for target in targets):
        targets = torch.tensor(targets)
    return Batch(images, targets, [key[1] for *_, key in good], bad, view)


def stack(images: list[UInt8[Tensor, "3 h w"]]) -> UInt8[Tensor, "b 3 h w"]:
    """In channels_last, as readers give them and networks want them; in a worker, where the main process sees it.

    Images of different sizes get margins, at the right and below.
    """
    height, width = (max(image.shape[axis] for image in images) for axis in (1, 2))
    if any(image.shape[1:] != (height, width) for image in images):
        images = [on_canvas(image, height, width) for image in images]
    return default_collate([image.permute(1, 2, 0) for image in images]).permute(0, 3, 1, 2)


def _init_worker(_: int) -> None:
    """Ctrl-C and SIGTERM, which may be sent to all, are for the process that trains; it ends its workers itself."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # not on macOS
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_by_parent, daemon=True).start()
    torch.set_num_threads(1)
    use_one_thread()


def _end_by_parent() -> None:
    """Ends this process at a SIGTERM of its parent, at no one else's."""
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)


def probe(split: Examples, count: int, seed: int, max_pixels: int = MAX_PIXELS) -> dict[int, str]:
    """Decode images as `draw_some` draws them: the bad among them, and why."""
    bad = {}
    for index in draw_some(split, count, seed):
        try:
            decode(split.source(index), max_pixels)
        except BadImage as error:
            bad[index] = str(error)
    return bad


def draw_some(split: Examples, count: int, seed: int) -> list[int]:
    """Places of `count` images, in order, of few shards, which may have to be fetched; all where there are no more."""
    generator = random.Random(seed)
    places = range(len(split))
    if split.shards is not None and len(split) > count:
        shards = np.unique(split.shards).tolist()
        drawn = generator.sample(shards, min(WINDOW, len(shards)))
        places = np.flatnonzero(np.isin(split.shards, drawn)).tolist()
    return sorted(generator.sample(places, min(count, len(places))))
