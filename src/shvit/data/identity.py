"""Identities of images: hashes of their content, independent of file names and folders."""

import base64
import zlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import blake2b
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, UInt64

from ..errors import InputError
from ..files import check_regular
from .image_file import MAX_BYTES

BYTES = 6
"""Number of bytes of an identity. Among a million different images, two share an identity with probability 0.2 %."""
TAIL = 4096
"""Number of bytes at the end of a file that are hashed."""
VARIED = 100
"""The last `TAIL` bytes count as compressed if a sample (every eighth byte) has at least this many different values."""
READERS = 16
"""Number of threads that read files."""


def of_bytes(data: bytes | memoryview) -> int:
    """The identity of the bytes of an image file; see `identity`."""
    return identity(len(data), lambda start, count: data[start : start + count])


def of_file(path: Path) -> int:
    """The identity of an image file. For a file that is unreadable or too large for an image: the hash of its name."""
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
    """A 48-bit number that depends only on the content of an image file, so copies have the same identity.

    It is a hash of the size and the last 4 KiB; or of the size and all bytes, if the last 4 KiB hold few different
    values, as uncompressed margins and metadata do.

    Args:
        size: Size of the file in bytes.
        read: Reads bytes of the file, given an offset and a count.
    """
    start = max(0, size - TAIL)
    content = read(start, size - start)
    if start and len(set(content[::8])) < VARIED:
        content = read(0, size)
    return _hash(size.to_bytes(8, "little"), content)


def identities(images: Sequence[Any]) -> UInt64[np.ndarray, " n"]:
    """The identity of each image, as `of_image` returns it. The images are read in parallel threads."""

    def block(start: int) -> list[int]:
        return [of_image(images[index]) for index in range(start, min(start + 256, len(images)))]

    with ThreadPoolExecutor(READERS) as pool:
        return np.fromiter(chain.from_iterable(pool.map(block, range(0, len(images), 256))), np.uint64, len(images))


def of_image(image: Any) -> int:
    """The identity of a file, of an array of pixels, or of an image stored in a larger file."""
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
    """The identities of the images that a model was trained on. A model file stores each identity in 5 to 8 bytes."""

    known: UInt64[np.ndarray, " n"]
    """Sorted and unique."""

    @classmethod
    def of(cls, images: Sequence[Any]) -> "TrainedOn":
        """The identities of these images."""
        return cls(np.unique(identities(images)))

    def __or__(self, other: "TrainedOn | None") -> "TrainedOn":
        return self if other is None else TrainedOn(np.union1d(self.known, other.known))

    def among(self, images: Sequence[Any]) -> Bool[np.ndarray, " n"]:
        """For each of these images, whether the model was trained on it."""
        return np.isin(identities(images), self.known)

    def to_dict(self) -> dict[str, Any]:
        """The identities in compressed form, for a model file.

        The differences of successive identities are stored as byte planes, because their high bytes are mostly zero.
        """
        steps = np.diff(self.known, prepend=np.uint64(0)).astype("<u8")
        planes = steps.view(np.uint8).reshape(-1, 8).T.tobytes()
        return {"images": len(self.known), "identities": base64.b64encode(zlib.compress(planes, 9)).decode()}

    @classmethod
    def recorded(cls, provenance: Mapping[str, Any]) -> "TrainedOn | None":
        """Inverse of `to_dict`, given a model's provenance; None if it lists no identities. Raises InputError."""
        if "trained_on" not in provenance:
            return None
        packed, images = provenance["trained_on"]["identities"], provenance["trained_on"]["images"]
        try:
            content = base64.b64decode(packed, validate=True)
            if images > len(content):  # compression saves at most five of the six bytes
                raise ValueError("it is too short for this number")
            planes = zlib.decompressobj().decompress(content, max_length=8 * images + 1)
            steps = np.frombuffer(planes, np.uint8).reshape(8, images).T.copy().view("<u8").ravel()
        except (ValueError, zlib.error) as error:
            raise InputError(f"the model file's list of {images:,} training images cannot be read: {error}") from None
        return cls(np.cumsum(steps, dtype=np.uint64))


def in_short(provenance: Mapping[str, Any]) -> dict[str, Any]:
    """A model file's provenance for display: with the number of training images instead of their identities."""
    if "trained_on" not in provenance:
        return dict(provenance)
    return {**provenance, "trained_on": {"images": provenance["trained_on"]["images"]}}
