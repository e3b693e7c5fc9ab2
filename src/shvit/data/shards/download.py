"""Download files to a cache. Each file is downloaded once, by one process, and is stored only if it is complete."""

import hashlib
import re
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

from filelock import FileLock

from ...errors import InputError, one_line
from ...files import MAX_TEXT, cache_folder, replacing

PAUSES = (1.0, 5.0)
"""Seconds to wait before the second and the third attempt."""
NOT_FOUND = 22
CURL_ERRORS = {6: "no such host", 7: "connection failed", 18: "the connection was lost", NOT_FOUND: "not found"}
"""The most frequent exit codes of curl, which webdataset uses for downloads."""
T = TypeVar("T")


class FetchError(RuntimeError):
    """A download failed. The message is the reason, without the URL."""

    def __init__(self, reason: str, missing: bool = False) -> None:
        super().__init__(reason)
        self.missing = missing
        """Whether the server reports that the file does not exist."""


def is_remote(location: str) -> bool:
    """Whether `location` is a URL or a `pipe:` command rather than a path."""
    return location.startswith("pipe:") or "://" in location


def fetched(url: str, name: str, sha256: str | None = None) -> Path:
    """The path of a file in the cache. If the file is missing, one process downloads it while others wait.

    Args:
        url: Anything that `webdataset.gopen` opens.
        name: Name of the file in the cache.
        sha256: Expected checksum. A cached file with this checksum is used even if its URL was different.

    Raises:
        FetchError: There is no such file, or three attempts failed.
        InputError: webdataset is not installed.
    """
    key = hashlib.sha256((sha256 or url).encode()).hexdigest()[:20]
    path = cache_folder() / "shards" / key / name
    if path.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_name(f"{name}.lock")):
        if not path.exists():
            _with_retries(lambda: _fetch(url, path, sha256))
    return path


def read_remote(url: str) -> bytes:
    """The content of a URL, up to 4 GiB, without the cache. Raises the same errors as `fetched`."""

    def read() -> bytes:
        content = bytearray()
        for chunk in _chunks(url):
            content += chunk
            if len(content) > MAX_TEXT:
                raise FetchError(f"it has more than {MAX_TEXT:,} bytes")
        return bytes(content)

    return _with_retries(read)


def expand(pattern: str) -> list[str]:
    """Expand braces as shells do: `a-{0..2}.tar` to a-0.tar, a-1.tar and a-2.tar. Raises InputError."""
    if "{" not in pattern:
        return [pattern]
    braceexpand = _webdataset("braceexpand", pattern)
    try:
        return list(braceexpand.braceexpand(pattern))
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
            raise FetchError(f"its checksum is {digest.hexdigest()[:12]}… but should be {sha256[:12]}…")


def _with_retries(fetch: Callable[[], T]) -> T:
    for pause in PAUSES:
        try:
            return fetch()
        except FetchError as error:
            if error.missing:
                raise
            time.sleep(pause)
    return fetch()


def _chunks(url: str) -> Iterator[bytes]:
    webdataset = _webdataset("webdataset.gopen", url)
    try:
        with _sigterm_unblocked():
            opened = webdataset.gopen(url, "rb")
        with opened as stream:
            while chunk := stream.read(1 << 20):
                yield chunk
    except (OSError, ValueError) as error:
        if not (exit_code := re.search(r"exit (-?\d+)", str(error))):
            raise FetchError(one_line(error)) from error
        code = int(exit_code[1])
        missing = code == NOT_FOUND and not url.startswith("pipe:")
        raise FetchError(CURL_ERRORS.get(code, f"the download command ended with exit code {code}"), missing) from error


@contextmanager
def _sigterm_unblocked() -> Iterator[None]:
    """Unblock SIGTERM in this context. Workers block it (see `loader`), and their child processes inherit the block."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _webdataset(module: str, location: str) -> Any:
    try:
        return import_module(module)
    except ImportError:
        command = "pip install 'shvit[webdataset]'"
        raise InputError(f"{location} needs webdataset, which is not installed: {command}") from None
