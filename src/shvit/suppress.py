"""Suppress output, log lines and warnings of other libraries. Their errors are still raised.

Warnings and prints are suppressed only in the calling thread, so that a notice in another thread is not lost.
"""

import logging
import os
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any


class _Thread(threading.local):
    unwarned = 0
    """Number of nested `unwarned` blocks in this thread."""
    unprinted = 0
    """Number of nested `quiet` blocks in this thread."""


_thread = _Thread()
_one_at_a_time = threading.RLock()
stderr_lock = threading.RLock()
"""Held while standard error is discarded for the whole process. Acquire it to write text that must be shown."""


class _InUnwarnedThreads:
    """Replaces the pattern of a warnings filter. Matches every warning in threads inside an `unwarned` block."""

    pattern = "(?!)"
    """For libraries that copy filters by their pattern, such as scikit-learn: matches nothing."""

    @staticmethod
    def match(_: str) -> bool:
        return _thread.unwarned > 0


_FILTER: Any = ("ignore", _InUnwarnedThreads, Warning, None, 0)


@contextmanager
def unwarned() -> Iterator[None]:
    """Suppress Python's warnings in this thread.

    `warnings.catch_warnings` is not used, because it changes the filters of all threads, and overlapping blocks do
    not restore them. The filter that is inserted here stays, but has no effect outside `unwarned` blocks.
    """
    filters: Any = warnings.filters
    if not filters or filters[0] is not _FILTER:
        filters.insert(0, _FILTER)
    _thread.unwarned += 1
    try:
        yield
    finally:
        _thread.unwarned -= 1


class _OthersOnly:
    """A stream that discards text written by threads inside a `quiet` block."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        return len(text) if _thread.unprinted else self._stream.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def quiet() -> Iterator[None]:
    """Suppress this thread's warnings, progress bars and prints, and all threads' log lines below ERROR.

    Only one thread at a time can be in the block: the log level and the state of the libraries that convert networks
    are shared by the whole process.
    """
    with _one_at_a_time, unwarned():
        before = logging.root.manager.disable
        logging.disable(logging.WARNING)
        _thread.unprinted += 1
        out, err = (_OthersOnly(stream) for stream in (sys.stdout, sys.stderr))
        try:
            with redirect_stdout(out), redirect_stderr(err):  # pyright: ignore[reportArgumentType]: it has the methods that are used
                yield
        finally:
            _thread.unprinted -= 1
            logging.disable(before)


@contextmanager
def silent() -> Iterator[None]:
    """Suppress the standard error of the whole process, including output from C++. For short calls only."""
    with stderr_lock:
        sys.stderr.flush()
        kept = os.dup(2)
        with Path(os.devnull).open("wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)


@contextmanager
def environment(name: str, value: str) -> Iterator[None]:
    """Set an environment variable inside the block. Only one thread at a time can be in the block."""
    with _one_at_a_time:
        before = os.environ.get(name)
        os.environ[name] = value
        try:
            yield
        finally:
            if before is None:
                del os.environ[name]
            else:
                os.environ[name] = before
