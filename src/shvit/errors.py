"""What is told in one line, without a traceback: two kinds of error, and notices."""

import warnings
from collections.abc import Sequence

from .redact import redacted
from .suppress import stderr_lock


class _Told(Exception):
    """Its message never shows a token or a password."""

    def __init__(self, *arguments: object) -> None:
        super().__init__(*map(redacted, arguments))


class InputError(_Told, ValueError):
    """What the user gave is wrong; the message names what was given and what is allowed. Exit code 2."""


class DataError(InputError):
    """The data given cannot be used; the message says, in one line, what was found and what is needed."""


class Failure(_Told, RuntimeError):
    """The work cannot go on for a reason outside the program; the message says why and what is kept. Exit code 1."""


class Notice(UserWarning):
    """The work goes on, but not in the way that was to be expected; the message says how. Told once."""


def notice(text: str) -> None:
    with stderr_lock:
        warnings.warn(redacted(text), Notice, stacklevel=3)


def few(names: Sequence[str]) -> str:
    """The first five names, and how many more there are."""
    shown = ", ".join(names[:5])
    return shown if len(names) <= 5 else f"{shown} and {len(names) - 5} more"
