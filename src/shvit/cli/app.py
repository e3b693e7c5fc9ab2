"""The app, and what its verbs share: parameter types, exit codes, JSON output."""

import sys
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, Parameter
from rich.console import Console

from ..console import as_json
from .flags import Typed

INTERRUPTED = 130
"""Exit code after Ctrl-C, as of any program that a shell stops."""


RESUME_ME = 75
"""Exit code after SIGTERM, which clusters send before they take a machine away: EX_TEMPFAIL, to be tried again."""


app = App(
    name="shvit",
    help="Real-time vision models on the hardware people have. Start with: shvit demo",
    help_format="plaintext",
    version_flags=["--version"],
    default_parameter=Parameter(negative=()),
)


Flags = Annotated[Typed, Parameter(parse=False)]
"""Which flags were typed: `main` gives it to the verbs that ask for it."""


NONE_TYPED = Typed()


Json = Annotated[bool, Parameter("--json", help="Print one JSON document on stdout, and nothing else there.")]


def free_folder(path: Path) -> Path:
    """The path itself, or with the first number that makes it new."""
    free, number = path, 1
    while free.exists():
        number += 1
        free = path.with_name(f"{path.name}-{number}")
    return free


def console_for(as_json: bool) -> Console:
    """For people: stdout, or stderr where stdout is for JSON."""
    return Console(stderr=as_json)


def finish(wanted: bool, document: Any) -> None:
    """Print the JSON document if --json was given."""
    if wanted:
        sys.stdout.write(as_json(document, sys.stdout.encoding) + "\n")
