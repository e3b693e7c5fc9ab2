"""What is told in one line, without a traceback: two kinds of error, and notices."""

import warnings

from .quiet import stderr_lock
from .redact import redacted


class _Told(Exception):
    """Its message never shows a token or a password."""

    def __init__(self, *arguments: object) -> None:
        super().__init__(*map(redacted, arguments))


class InputError(_Told, ValueError):
    """What the user gave is wrong; the message names what was given and what is allowed. Exit code 2."""


class Failure(_Told, RuntimeError):
    """The work cannot go on for a reason outside the program; the message says why and what is kept. Exit code 1."""


class Notice(UserWarning):
    """The work goes on, but not in the way that was to be expected; the message says how. Told once."""


def notice(text: str) -> None:
    with stderr_lock:
        warnings.warn(redacted(text), Notice, stacklevel=3)
