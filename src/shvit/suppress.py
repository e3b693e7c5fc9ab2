"""Keeps what other libraries print, log and warn of from the user. What goes wrong in them is still raised.

Warnings and prints are dropped for the calling thread alone, so that a notice in another thread is not lost.
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
    """How many `unwarned` blocks this thread is in."""
    unprinted = 0


_thread = _Thread()
_one_at_a_time = threading.RLock()
stderr_lock = threading.RLock()
"""Held while the process has no standard error. Hold it to write something that must arrive there."""


class _InUnwarnedThreads:
    """Takes the place of the pattern in a filter of warnings: matches all of them, in some threads."""

    @staticmethod
    def match(_: str) -> bool:
        return _thread.unwarned > 0


_FILTER: Any = ("ignore", _InUnwarnedThreads, Warning, None, 0)


@contextmanager
def unwarned() -> Iterator[None]:
    """Without Python's warnings in this thread.

    `warnings.catch_warnings` changes the filters of all threads, and of two that overlap the later one to end restores
    what the other had set. The one filter that is set here stays, and has no effect outside such blocks.
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
    """A stream without what the threads inside of `quiet` write."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        return len(text) if _thread.unprinted else self._stream.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def quiet() -> Iterator[None]:
    """Without Python's warnings, progress bars and prints of this thread, and without log lines below errors.

    One thread at a time: the level of logging belongs to the whole process, and so does the state of the libraries
    that convert networks, which is what this is for.
    """
    with _one_at_a_time, unwarned():
        before = logging.root.manager.disable
        logging.disable(logging.WARNING)
        _thread.unprinted += 1
        out, err = (_OthersOnly(stream) for stream in (sys.stdout, sys.stderr))
        try:
            with redirect_stdout(out), redirect_stderr(err):  # pyright: ignore[reportArgumentType]: it has what they use
                yield
        finally:
            _thread.unprinted -= 1
            logging.disable(before)


@contextmanager
def silent() -> Iterator[None]:
    """Without anything on the process's standard error, where C++ writes past Python. For short calls only."""
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
    """A variable of the process's environment has this value; one thread at a time."""
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
