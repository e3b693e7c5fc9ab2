"""The two kinds of error that are told in one line, without a traceback."""


class InputError(ValueError):
    """What the user gave is wrong; the message names what was given and what is allowed. Exit code 2."""


class Failure(RuntimeError):
    """The work cannot go on for a reason outside the program; the message says why and what is kept. Exit code 1."""
