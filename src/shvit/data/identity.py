"""Which image is which, by its content: whatever it is called, wherever it lies, and whatever lies beside it."""

import base64
import zlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, UInt64

from ..errors import InputError
from ..files import check_regular
from .decode import MAX_BYTES

BYTES = 6
"""Of an identity: among a million images, two that differ share one with a probability of 0.2 %."""
TAIL = 4096
VARIED = 100
"""Values, of 256, among every eighth of the last bytes from which these count as compressed pixels."""
READERS, BLOCK = 16, 256
"""Threads that read, and the images that each takes at a time."""


def of_bytes(data: bytes | memoryview) -> int:
    """The identity of an image file's content, as `identity` defines it."""
    return identity(len(data), lambda start, count: data[start : start + count])


def of_file(path: Path) -> int:
    """As `of_bytes`; of a file that cannot be read, or is too large for an image, the hash of its name."""
    try:
        if check_regular(path) > MAX_BYTES:
            return of_name(path.name)
        with path.open("rb") as file:

            def read(start: int, count: int) -> bytes:
                file.seek(start)
                return file.read(count)

            return identity(path.stat().st_size, read)
    except OSError:
        return of_name(path.name)


def of_name(name: str) -> int:
    """The identity of an image that cannot be read: a hash of its name."""
    return _hash(name.encode(errors="surrogatepass"))


def identity(size: int, read: Callable[[int, int], bytes | memoryview]) -> int:
    """A number of 48 bits that depends on an image file's content alone, so that copies share it.

    It is a hash of the size and the last 4 KiB. Where these hold few different values, as margins without compression
    and metadata do, it is a hash of all bytes.

    Args:
        size: Of the file, in bytes.
        read: Given where to begin and how many bytes to read.
    """
    start = max(0, size - TAIL)
    content = read(start, size - start)
    if start and len(set(content[::8])) < VARIED:
        content = read(0, size)
    return _hash(size.to_bytes(8, "little"), content)


def identities(images: Sequence[Any]) -> UInt64[np.ndarray, " n"]:
    """The identity of each image, as `of_image`. Threads read them."""

    def block(start: int) -> list[int]:
        return [of_image(images[index]) for index in range(start, min(start + BLOCK, len(images)))]

    with ThreadPoolExecutor(READERS) as pool:
        blocks = pool.map(block, range(0, len(images), BLOCK))
        return np.fromiter((number for numbers in blocks for number in numbers), np.uint64, len(images))


def of_image(image: Any) -> int:
    """Of a file, of pixels, or what a stored image says itself."""
    if isinstance(image, Path):
        return of_file(image)
    if isinstance(image, np.ndarray):
        return _hash(repr((image.shape, image.dtype.str)).encode(), image.tobytes())
    return image.identity()


def _hash(*parts: bytes | memoryview) -> int:
    digest = blake2b(digest_size=BYTES)
    for part in parts:
        digest.update(part)
    return int.from_bytes(digest.digest(), "little")


@dataclass(frozen=True, eq=False)
class TrainedOn:
    """The images that a model was trained on, by their identities.

    In a file they take about 8 bytes an image of a small dataset, 6 for ten thousand images and 5 for a million.
    """

    known: UInt64[np.ndarray, " n"]
    """In ascending order, each once."""

    @classmethod
    def of(cls, images: Sequence[Any]) -> "TrainedOn":
        return cls(np.unique(identities(images)))

    def __or__(self, other: "TrainedOn | None") -> "TrainedOn":
        return self if other is None else TrainedOn(np.union1d(self.known, other.known))

    def among(self, images: Sequence[Any]) -> Bool[np.ndarray, " n"]:
        """Which of these images are known."""
        return np.isin(identities(images), self.known)

    def to_dict(self) -> dict[str, Any]:
        """For a file: differences between neighbours, whose high bytes are zeros and lie together."""
        steps = np.diff(self.known, prepend=np.uint64(0)).astype("<u8")
        planes = steps.view(np.uint8).reshape(-1, 8).T.tobytes()
        return {"images": len(self.known), "identities": base64.b64encode(zlib.compress(planes, 9)).decode()}

    @classmethod
    def recorded(cls, provenance: Mapping[str, Any]) -> "TrainedOn | None":
        """Those that a model file names; None where it names none."""
        if "trained_on" not in provenance:
            return None
        packed, images = provenance["trained_on"]["identities"], provenance["trained_on"]["images"]
        try:
            content = base64.b64decode(packed, validate=True)
            if images > len(content):  # of six bytes, at least one cannot be foreseen
                raise ValueError("so many do not fit into it")
            planes = zlib.decompressobj().decompress(content, max_length=8 * images + 1)
            steps = np.frombuffer(planes, np.uint8).reshape(8, images).T.copy().view("<u8").ravel()
        except (ValueError, zlib.error) as error:
            raise InputError(f"the model file's list of {images:,} training images cannot be read: {error}") from None
        return cls(np.cumsum(steps, dtype=np.uint64))


def in_short(provenance: Mapping[str, Any]) -> dict[str, Any]:
    """A model file's provenance for people: the number of training images, and not each of them."""
    shown = dict(provenance)
    if "trained_on" in shown:
        shown["trained_on"] = {"images": shown["trained_on"]["images"]}
    return shown
