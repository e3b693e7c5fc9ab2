"""What is told in one line, without a traceback: two kinds of error, and notices."""

import warnings
from collections.abc import Sequence

from .quiet import stderr_lock


class InputError(ValueError):
    """What the user gave is wrong; the message names what was given and what is allowed. Exit code 2."""


class DataError(InputError):
    """The data given cannot be used; the message says, in one line, what was found and what is needed."""


class Failure(RuntimeError):
    """The work cannot go on for a reason outside the program; the message says why and what is kept. Exit code 1."""


class Notice(UserWarning):
    """The work goes on, but not in the way that was to be expected; the message says how. Told once."""


def notice(text: str) -> None:
    with stderr_lock:
        warnings.warn(text, Notice, stacklevel=3)


def few(names: Sequence[str]) -> str:
    """The first five names, and how many more there are."""
    shown = ", ".join(names[:5])
    return shown if len(names) <= 5 else f"{shown} and {len(names) - 5} more"
