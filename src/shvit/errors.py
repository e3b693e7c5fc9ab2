"""Errors and notices that are shown in one line, without a traceback."""

import warnings
from collections.abc import Sequence

from .redact import redacted
from .suppress import stderr_lock


class _OneLineError(Exception):
    """An error whose message hides tokens and passwords."""

    def __init__(self, *arguments: object) -> None:
        super().__init__(*map(redacted, arguments))


class InputError(_OneLineError, ValueError):
    """The user's input is wrong. The message says what was given and what is allowed. Exit code 2."""


class DataError(InputError):
    """The dataset cannot be used. The message says what was found and what is needed."""


class Failure(_OneLineError, RuntimeError):
    """A run stops for a reason outside the program. The message gives the reason and says what is kept. Exit code 1."""


class Notice(UserWarning):
    """A warning about a run that continues, but not as the user may expect. Each notice is shown only once."""


def notice(text: str) -> None:
    """Issue a `Notice`. Tokens and passwords in the text are hidden."""
    with stderr_lock:
        warnings.warn(redacted(text), Notice, stacklevel=3)


def one_line(error: object, first: bool = False) -> str:
    """The message of an error or warning on one line, or the name of its type if it has no message.

    With `first`, only the first line is kept, since some libraries append a page of advice.
    """
    text = str(error).strip()
    return " ".join((text.partition("\n")[0] if first else text).split()) or type(error).__name__


def check_at_least(least: int, **values: int | None) -> None:
    """Check that keyword arguments are at least `least`. None is accepted, because it stands for a default.

    Raises:
        InputError: A number is smaller than `least`.
    """
    for name, value in values.items():
        if value is not None and value < least:
            raise InputError(f"{name} must be at least {least}, got {value}")


def counted(number: int, singular: str, plural: str = "") -> str:
    """A number with its noun, such as `1 image` or `1,000 images`. By default, the plural is the singular with an s."""
    return f"{number:,} {singular if number == 1 else plural or singular + 's'}"


def few(names: Sequence[str]) -> str:
    """The first five names, separated by commas, and how many more there are."""
    shown = ", ".join(names[:5])
    return shown if len(names) <= 5 else f"{shown} and {len(names) - 5} more"
