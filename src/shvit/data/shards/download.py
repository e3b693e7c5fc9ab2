"""Files from elsewhere, kept in a cache: fetched once, by one process, whole or not at all."""

import hashlib
import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from filelock import FileLock

from ...errors import InputError, one_line
from ...files import MAX_TEXT, replacing

PAUSES = (1.0, 5.0)
"""Seconds before a fetch that failed is tried again, each time."""
CHUNK = 1 << 20
NOT_THERE = 22
CURL_SAYS = {6: "no such host", 7: "nobody answers there", 18: "the connection was lost", NOT_THERE: "it is not there"}
"""What the exit codes of curl mean that are met most; webdataset fetches by it."""
T = TypeVar("T")


class FetchError(RuntimeError):
    """What is elsewhere cannot be had; the message says why, without the address."""

    def __init__(self, reason: str, missing: bool = False) -> None:
        super().__init__(reason)
        self.missing = missing
        """Whether the server says that there is no such thing."""


def is_remote(place: str) -> bool:
    """Whether this is a URL or a command, and no path."""
    return place.startswith("pipe:") or "://" in place


def cache_folder() -> Path:
    """`SHVIT_CACHE`, or `~/.cache/shvit`."""
    return Path(os.environ.get("SHVIT_CACHE") or Path.home() / ".cache" / "shvit")


def fetched(url: str, name: str, sha256: str | None = None) -> Path:
    """The path of what `url` gives, fetched now if it is not in the cache. Other processes wait meanwhile.

    Args:
        url: Whatever `webdataset.gopen` opens.
        name: Of the file in the cache.
        sha256: What the file must have; if it is in the cache already, it does not matter from where.

    Raises:
        FetchError: There is no such thing, or three attempts have failed.
        InputError: webdataset is not installed.
    """
    key = hashlib.sha256((sha256 or url).encode()).hexdigest()[:20]
    path = cache_folder() / "shards" / key / name
    if path.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_name(f"{name}.lock")):
        if not path.exists():
            _persistently(lambda: _fetch(url, path, sha256))
    return path


def read_remote(url: str) -> bytes:
    """What `url` gives now, whatever is in the cache: up to 4 GiB. Raises as `fetched`."""
    return _persistently(lambda: b"".join(_bounded(_chunks(url))))


def _bounded(chunks: Iterator[bytes]) -> Iterator[bytes]:
    total = 0
    for chunk in chunks:
        if (total := total + len(chunk)) > MAX_TEXT:
            raise FetchError(f"it has more than {MAX_TEXT:,} bytes")
        yield chunk


def expand(pattern: str) -> list[str]:
    """`a-{0..2}.tar` as a-0.tar, a-1.tar, a-2.tar; other braces as shells expand them. Raises InputError."""
    if "{" not in pattern:
        return [pattern]
    try:
        from braceexpand import braceexpand
    except ImportError:
        raise _not_installed(pattern) from None
    try:
        return list(braceexpand(pattern))
    except ValueError as error:
        raise InputError(f"{pattern} cannot be expanded: {error}") from None


def _fetch(url: str, path: Path, sha256: str | None) -> None:
    digest = hashlib.sha256()
    with replacing(path) as temporary:
        with temporary.open("wb") as file:
            for chunk in _chunks(url):
                file.write(chunk)
                digest.update(chunk)
        if sha256 and digest.hexdigest() != sha256:
            raise FetchError(f"its checksum is {digest.hexdigest()[:12]}… and should be {sha256[:12]}…")


def _persistently(fetch: Callable[[], T]) -> T:
    for pause in PAUSES:
        try:
            return fetch()
        except FetchError as error:
            if error.missing:
                raise
            time.sleep(pause)
    return fetch()


def _chunks(url: str) -> Iterator[bytes]:
    try:
        from webdataset.gopen import gopen
    except ImportError:
        raise _not_installed(url) from None
    try:
        with _heeding_sigterm():
            opened = gopen(url, "rb")
        with opened as stream:
            while chunk := stream.read(CHUNK):
                yield chunk
    except (OSError, ValueError) as error:
        if not (found := re.search(r"exit (-?\d+)", str(error))):
            raise FetchError(one_line(error)) from error
        code = int(found[1])
        missing = code == NOT_THERE and not url.startswith("pipe:")
        raise FetchError(CURL_SAYS.get(code, f"its reader ended with exit code {code}"), missing) from error


@contextmanager
def _heeding_sigterm() -> Iterator[None]:
    """For programs that are started inside: a worker has SIGTERM blocked (see `loader`), and they would inherit it."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _not_installed(place: str) -> InputError:
    return InputError(f"{place} needs webdataset, which is not installed: pip install 'shvit[webdataset]'")
