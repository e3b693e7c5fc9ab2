"""Load batches of uint8 images. Seed and epoch alone determine the order and the random choices for each image."""

import os
import random
import shutil
import signal
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate, get_worker_info

from ..allocator import return_large_blocks
from ..errors import Failure, InputError, check_at_least
from .dataset import Samples
from .decode import decode
from .image_file import MAX_PIXELS, BadImage
from .opencv import use_one_thread
from .transforms import on_canvas

SampleKey = tuple[int, int, int]
"""(view, index, copy): the number of the augmented version, the index of the image, and the number of the image's copy
in the epoch. They seed the random choices."""
Sizes = dict[int, tuple[int, int]]
"""Height and width of images in pixels, by index."""

SHARED_MEMORY = Path("/dev/shm")
"""On Linux, the folder of the shared memory in which workers pass batches to the main process."""
SHARED_BYTES = 2**17
"""Bytes of shared memory that a worker needs before it reads any image: one page for each of its locks."""
NO_SHARED_MEMORY = (
    f"no space left on {SHARED_MEMORY} for data-loading workers: try fewer --workers, or --workers 0; in a container, "
    "you can also try a larger --shm-size"
)
WINDOW = 16
"""Number of shards whose images are shuffled together. All these shards must be stored locally at the same time."""


@dataclass(frozen=True)
class Batch:
    """The usable images of a batch, and the reasons why other images of the batch were skipped."""

    images: UInt8[Tensor, "b 3 h w"]
    targets: Any
    """Targets of the images: a tensor of int64 labels, or a list of the targets that the split's `example` returns."""
    indices: list[int]
    """Index of each image in its split."""
    bad: dict[int, str]
    """Index of each skipped image, and the reason why it was skipped."""
    view: int = 0
    """Number of the augmented version: the epoch, modulo the number of views if views are limited. With `strata`, it
    differs between images, and this is the number of the first one."""

    def __len__(self) -> int:
        return len(self.indices)

    def filled(self, size: int) -> "Batch":
        """A batch of `size` images, in which the first images are repeated to replace the bad ones."""
        if len(self) == size:
            return self
        picked = torch.arange(size) % len(self)
        indices, targets = ([items[i] for i in picked.tolist()] for items in (self.indices, self.targets))
        if isinstance(self.targets, Tensor):
            targets = self.targets[picked]
        return replace(self, images=self.images[picked], targets=targets, indices=indices)

    def pin_memory(self) -> "Batch":
        """The batch in page-locked memory, for asynchronous copies to a GPU. torch's DataLoader calls this method."""
        targets = self.targets.pin_memory() if isinstance(self.targets, Tensor) else self.targets
        return replace(self, images=self.images.pin_memory(), targets=targets)


@contextmanager
def seeded(*key: int, device: torch.device | None = None) -> Iterator[None]:
    """Seed the global generators of Python, NumPy and torch with `key` in this context, and restore them afterwards.

    For torch, these are the generators of the CPU and of `device`.
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
    """Seed the global generators of Python, NumPy and torch with `key`; with `everywhere`, also those of all GPUs."""
    number = int(np.random.SeedSequence(key).generate_state(1)[0])
    random.seed(number)
    np.random.seed(number)
    torch.manual_seed(number) if everywhere else torch.default_generator.manual_seed(number)


@dataclass(frozen=True, eq=False)
class ImageDataset(Dataset):
    """For each key: the image, its target and the key; or the reason why the image cannot be used, and the key."""

    split: Samples
    read: Any
    """Passed to the split's `example`. If it has a method `at_epoch`, this gives the reader for each view."""
    seed: int

    def __getitem__(self, key: SampleKey) -> tuple[UInt8[Tensor, "3 h w"], Any, SampleKey] | tuple[str, SampleKey]:
        if worker := get_worker_info():
            seed(self.seed, *key)  # nothing to restore in a worker process
        at_epoch = getattr(self.read, "at_epoch", None)
        read = at_epoch(key[0]) if at_epoch else self.read
        try:
            with nullcontext() if worker else seeded(self.seed, *key):
                return *self.split.example(key[1], read), key
        except BadImage as error:
            return str(error), key


@dataclass(frozen=True)
class Share:
    """The part of each batch that one of several processes loads, and the number of pieces to divide that part into."""

    rank: int = 0
    ranks: int = 1
    pieces: int = 1

    def of(self, batch: np.ndarray) -> list[np.ndarray]:
        """This process's part of a batch, divided into pieces."""
        return [batch[self.rank :: self.ranks][piece :: self.pieces] for piece in range(self.pieces)]


@dataclass(eq=False)
class EpochSampler(Sampler[list[SampleKey]]):
    """Yields this process's keys, one micro-batch at a time. Shuffling is seeded by (seed, epoch)."""

    split: Samples
    """The images. Images in shards are shuffled within groups of `WINDOW` shards."""
    batch_size: int
    """Images per batch, over all processes and micro-batches."""
    seed: int = 0
    shuffle: bool = False
    """Use a new order every epoch, and drop the last batch if it is smaller; otherwise yield all images in order."""
    share: Share = Share()
    """The part of each batch to yield in this process, and its number of pieces; default: all, in one piece."""
    repeats: int = 1
    """Repeated augmentation: number of copies of each image in an epoch. The length of the epoch is the
    same for any number of copies: with two copies, an epoch contains only half of the images.

    Source: M. Berman et al., "MultiGrain", 2019; also used by DeiT."""
    views: int | None = None
    """Number of augmented versions of each image; None for a new version each time the image is drawn."""
    strata: Int64[np.ndarray, " n"] | None = None
    """Group of each image, such as its class. Each group is drawn equally often, and so are the images of a group. An
    epoch has the same number of batches as without groups. None: each image is drawn once per epoch. Needs `shuffle`.
    """
    epoch: int = field(default=0, init=False)
    start: int = field(default=0, init=False)
    """Number of batches at the beginning of the epoch to skip, because training resumes after them."""

    def __post_init__(self) -> None:
        self.allowed = np.arange(len(self.split))

    def exclude(self, indices: set[int]) -> None:
        """Leave out these images from the next epoch on."""
        self.allowed = np.setdiff1d(self.allowed, np.fromiter(indices, np.int64, len(indices)))

    @property
    def batches(self) -> int:
        """Number of batches in an epoch, including those before `start`."""
        count = len(self.allowed)
        return count // self.batch_size if self.shuffle else -(-count // self.batch_size)

    def __len__(self) -> int:
        return (self.batches - self.start) * self.share.pieces

    def __iter__(self) -> Iterator[list[SampleKey]]:
        images, views = self._draws()
        if self.views:
            views = views % self.views
        order = self._order(images)
        images, views = images[order], views[order]
        copies = np.arange(len(order)) % self.repeats
        for batch in range(self.start, self.batches):
            positions = np.arange(batch * self.batch_size, min((batch + 1) * self.batch_size, len(order)))
            for piece in self.share.of(positions):
                yield [(int(views[place]), int(images[place]), int(copies[place])) for place in piece]

    def _draws(self) -> tuple[np.ndarray, np.ndarray]:
        """The images of this epoch, and the view of each.

        With groups, draws are numbered over all epochs, and the groups take turns. A group's images are drawn in a
        random order; after all of them have been drawn, the next round begins with a new order. The view of a drawn
        image is the number of its group's round.
        """
        if self.strata is None:
            return self.allowed, np.full(len(self.allowed), self.epoch)
        groups = self.strata[self.allowed]
        ends = np.unique(groups, return_counts=True)[1].cumsum()
        members = np.split(self.allowed[np.argsort(groups, kind="stable")], ends[:-1])
        count = -(-self.batches * self.batch_size // self.repeats)
        images, views = [], []
        for turn, group in enumerate(members):
            first, last = (-(-(epoch * count - turn) // len(members)) for epoch in (self.epoch, self.epoch + 1))
            rounds, places = np.divmod(np.arange(first, last), len(group))
            for each in {*rounds[:1].tolist(), *rounds[-1:].tolist()}:  # all other rounds are complete
                order = np.random.default_rng((self.seed, turn, each)).permutation(len(group))
                places[rounds == each] = order[places[rounds == each]]
            images.append(group[places])
            views.append(rounds)
        return np.concatenate(images), np.concatenate(views)

    def _order(self, images: np.ndarray) -> np.ndarray:
        """The order of these images, as positions. With `repeats`, each position is repeated, and the rest cut off."""
        if not self.shuffle:
            return np.arange(len(images))
        generator = np.random.default_rng((self.seed, self.epoch))
        if self.split.shards is None:
            order = generator.permutation(len(images))
        else:
            shards = self.split.shards[images]
            turns = generator.permutation(int(shards.max(initial=0)) + 1) // WINDOW
            order = np.lexsort((generator.random(len(shards)), turns[shards]))
        return order.repeat(self.repeats)[: self.batches * self.batch_size]


class Loader:
    """Loads batches; `epoch` iterates over one epoch. Worker processes are kept between epochs.

    Args:
        read: Passed to the split's `example` to read an image (a `Reader` for a `Split`). The random generators are
            seeded by (seed, view, index, copy) before each image.
        workers: Number of worker processes; 0 to decode in this process. It does not change the batches.
        pinned: Put batches into page-locked memory, for asynchronous copies to a GPU.

    The other arguments are those of `EpochSampler`. A batch with bad images is smaller than `batch_size`.
    """

    def __init__(
        self,
        split: Samples,
        read: Any,
        batch_size: int,
        workers: int = 0,
        shuffle: bool = False,
        seed: int = 0,
        share: Share | None = None,
        repeats: int = 1,
        views: int | None = None,
        strata: np.ndarray | None = None,
        pinned: bool = False,
    ) -> None:
        check_at_least(1, batch_size=batch_size)
        check_at_least(0, workers=workers)
        self.sampler = EpochSampler(split, batch_size, seed, shuffle, share or Share(), repeats, views, strata)
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
        """Number of batches in an epoch. Each batch is yielded in `share.pieces` pieces, one after another."""
        return self.sampler.batches

    @property
    def images(self) -> int:
        """Number of images in an epoch."""
        return len(self.sampler.allowed)

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """The batches of one epoch. Raises Failure if there is not enough shared memory for the workers."""
        self.sampler.epoch = epoch
        needed = SHARED_BYTES * self._loader.num_workers
        if needed and SHARED_MEMORY.is_dir() and shutil.disk_usage(SHARED_MEMORY).free < needed:
            raise Failure(NO_SHARED_MEMORY)
        return iter(self._loader)

    def __iter__(self) -> Iterator[Batch]:
        return self.epoch(0)


@contextmanager
def worker_death_as_failure() -> Iterator[None]:
    """Turn the death of a data-loading worker into Failure, and reduce an error in a worker to its one-line message.

    torch may report the death of a worker at any moment, not only when a batch is requested.
    """
    try:
        yield
    except (RuntimeError, InputError, OSError) as error:
        text = str(error).strip()
        if "shared memory" in text and ("No space left" in text or "Bus error" in text):
            raise Failure(NO_SHARED_MEMORY) from error
        if "DataLoader worker (pid" in text:
            killed = "killed by signal" in text
            hint = "(out of memory?): try fewer --workers" if killed else "(use --workers 0 to see why)"
            raise Failure(f"a data-loading worker died {hint}; {text}") from error
        if not isinstance(error, Failure | InputError | OSError) or "in DataLoader worker process" not in text:
            raise
        reason = text.splitlines()[-1].partition(": ")[2]  # the last line follows the worker's traceback
        raise (InputError if isinstance(error, InputError) else Failure)(reason) from error


def collate(items: list[tuple[Tensor, Any, SampleKey] | tuple[str, SampleKey]]) -> Batch:
    """Make a batch from items of an `ImageDataset`."""
    good = [item for item in items if len(item) == 3]
    bad = {key[1]: reason for item in items if len(item) == 2 for reason, key in [item]}
    images = stack([image for image, _, _ in good]) if good else torch.empty(0, 3, 0, 0, dtype=torch.uint8)
    view = items[0][-1][0] if items else 0
    targets: Any = [target for _, target, _ in good]
    if all(isinstance(target, int) for target in targets):
        targets = torch.tensor(targets)
    return Batch(images, targets, [key[1] for *_, key in good], bad, view)


def stack(images: list[UInt8[Tensor, "3 h w"]]) -> UInt8[Tensor, "b 3 h w"]:
    """Stack images to a batch in channels_last. In a worker process, the batch lies in shared memory.

    Images of different sizes are padded at the right and at the bottom.
    """
    height, width = (max(image.shape[axis] for image in images) for axis in (1, 2))
    if any(image.shape[1:] != (height, width) for image in images):
        images = [on_canvas(image, height, width) for image in images]
    return default_collate([image.permute(1, 2, 0) for image in images]).permute(0, 3, 1, 2)


def _init_worker(_: int) -> None:
    """Ignore Ctrl-C and SIGTERM, which may be sent to all processes: the main process ends its workers itself."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # not on macOS
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_by_parent, daemon=True).start()
    return_large_blocks()  # training keeps them
    torch.set_num_threads(1)
    use_one_thread()


def _end_by_parent() -> None:
    """End this process when its parent sends SIGTERM, and only then."""
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)


def probe(split: Samples, indices: Iterable[int], max_pixels: int = MAX_PIXELS) -> tuple[Sizes, dict[int, str]]:
    """Decode images. Returns the height and width of each usable image and the reason for each bad image, by index."""
    sizes, bad = {}, {}
    for index in indices:
        try:
            image = decode(split.source(index), max_pixels)
        except BadImage as error:
            bad[index] = str(error)
        else:
            sizes[index] = image.height, image.width
    return sizes, bad


def draw_some(split: Samples, count: int, seed: int) -> list[int]:
    """Sorted indices of at most `count` random images, from at most `WINDOW` shards because shards may be remote."""
    generator = random.Random(seed)
    indices = range(len(split))
    if split.shards is not None and len(split) > count:
        shards = np.unique(split.shards).tolist()
        drawn = generator.sample(shards, min(WINDOW, len(shards)))
        indices = np.flatnonzero(np.isin(split.shards, drawn)).tolist()
    return sorted(generator.sample(indices, min(count, len(indices))))
