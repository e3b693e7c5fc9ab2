"""The app and what its verbs share: parameter types, exit codes, JSON output."""

import sys
from typing import Annotated, Any

from cyclopts import App, Parameter
from rich.console import Console

from ..console import as_json
from .flags import Typed

INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells use it."""
RESUME_ME = 75
"""Exit code after SIGTERM (EX_TEMPFAIL: try again). Clusters send SIGTERM before they take a machine away."""

app = App(
    name="shvit",
    help="Real-time vision models for the hardware you have. Start with: shvit demo",
    help_format="plaintext",
    version_flags=["--version"],
    default_parameter=Parameter(negative=()),
)

Json = Annotated[bool, Parameter("--json", help="Print one JSON document to stdout, and nothing else there.")]
Flags = Annotated[Typed, Parameter(parse=False)]
"""Which flags were typed. `main` passes it to the verbs that have this parameter."""
NONE_TYPED = Typed()


def console_for(as_json: bool) -> Console:
    """The console for text: stdout, or stderr if stdout is reserved for JSON."""
    return Console(stderr=as_json)


def finish(wanted: bool, document: Any) -> None:
    """Print the JSON document if --json was given."""
    if wanted:
        sys.stdout.write(as_json(document, sys.stdout.encoding) + "\n")
